"""The arguments of the application: what `serve_config.yaml` may say, checked by pydantic. Imports no model library."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from deployments.gateway_settings import GatewaySettings, OidcArgs

REPOSITORY = Path(__file__).resolve().parent.parent


class Task(StrEnum):
    """What a model does, in the Hugging Face Hub's words."""

    CLASSIFICATION = "image-classification"
    SEGMENTATION = "image-segmentation"
    TEXT = "text-generation"
    EMBEDDING = "feature-extraction"


class Refit(StrEnum):
    """Who has a model's levels solved anew on live inputs once they drift."""

    AUTO = "auto"
    ASK = "ask"
    OFF = "off"


class Scaling(BaseModel):
    """Replicas of one deployment and what each asks of Ray. Fractions share a core or a card."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_replicas: Annotated[int, Field(ge=1)] = 1
    autoscaling: dict[str, Any] | None = Field(
        default=None, description="Ray Serve's autoscaling_config, in place of num_replicas"
    )
    num_cpus: Annotated[float, Field(ge=0.0)] = 0.1
    num_gpus: Annotated[float, Field(ge=0.0)] | None = Field(
        default=None,
        description="None: an equal share of one card where Ray sees one, else none. Leave as much of a shared card"
        " free: the process that calibrates a model takes what its replica does",
    )


ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?$")]


class ModelSpec(BaseModel):
    """One model to serve: its id, its task, where it comes from, and what calibrates it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: ModelName = Field(description="the id that clients name, such as mine or org/mine")
    aliases: tuple[ModelName, ...] = Field(
        default=(), description="other names that clients may call it by; it is admitted and counted under its id"
    )
    task: Task
    source: str = Field(
        description="`torchvision:<architecture>`, a local folder, a hub id; for text also a .gguf file (of a split one"
        " any part), `<hub id>:<file>.gguf`, or `package:<import name>/<file>.gguf` of a Python package"
    )
    weights: str | None = Field(
        default=None, description="torchvision only: a weights enum such as IMAGENET1K_V2, or a state-dict file"
    )
    labels: tuple[str, ...] | None = Field(default=None, description="class names, where the source has none")
    input_size: Annotated[int, Field(ge=8, le=4096)] | None = Field(
        default=None, description="state dict: side in pixels of the square that pictures are squashed to"
    )
    transforms: str | dict[str, Any] | None = Field(
        default=None,
        description="state dict, in place of input_size: the torchvision weights whose preprocessing it was trained"
        " with, such as ResNet50_Weights.IMAGENET1K_V2, or its own settings: {crop_size: 224, resize_size: 256, mean:"
        " [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5], interpolation: bicubic}",
    )
    arguments: dict[str, Any] = Field(
        default_factory=dict,
        description="state dict: arguments of torchvision's builder, such as {image_size: 384} for a vit",
    )
    calibration: str | None = Field(
        default=None,
        description="unlabelled inputs that the model was not trained on: a folder of images, a text file,"
        " or a bundled sample of features (.safetensors)",
    )
    refit: Refit = Field(
        default=Refit.ASK,
        description="once levels drift: `auto` solves them anew on live inputs of at least five tenants; `ask` reports"
        " it, and an admin runs `tenants calibrate`; `off` reports it, and keeps no live inputs to solve on",
    )
    dtype: str = Field(default="float32", pattern=r"^(float32|bfloat16|float16)$")
    field: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] | None = Field(
        default=None,
        description="name of the noise field: models with one field have one noise, which nobody can average away over"
        " their ids. None: a digest of the final layer, the same in float32, bfloat16 and float16, for any labels and"
        " any backbone. A quantised copy (GGUF, int8) needs it, and a final layer trained anew: name the original's,"
        " which `tenants levels --json` shows",
    )
    length_scale: Annotated[float, Field(gt=0.0)] | None = Field(
        default=None,
        description="ell of the noise field, in median distances between inputs of one class; None: that of the field,"
        " or of a new one the task's default",
    )
    depth: Annotated[int, Field(ge=8, le=1024)] | None = Field(
        default=None,
        description="D of the noise field; None: that of the field, or of a new one 32 for text, 128 for masks, 512 for"
        " labels",
    )
    threads: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="CPU threads of a forward; None: its replica's cores divided by the models, at least 1",
    )
    max_batch_size: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=16, description="rows of a batch: images, or a step's sequences"
    )
    max_batch_wait_ms: Annotated[float, Field(ge=0.0, le=1000.0)] = 4.0
    max_queue_per_tenant: Annotated[int, Field(ge=1)] = 256
    max_step_s: Annotated[float, Field(gt=0.0)] = Field(
        default=120.0, description="a batch or a step of text that takes longer hangs: its replica is replaced"
    )
    max_context: Annotated[int, Field(ge=16)] | None = Field(
        default=None, description="text: most tokens of prompt and answer together; None: the model's own limit"
    )
    tools: Literal["template", "told"] = Field(
        default="template",
        description="text: who tells a model of tools: its chat template, where that takes any; or, where it takes"
        " none, the system's turn (`told`), for a model that was trained to call tools nevertheless, such as SmolLM2",
    )
    pooling: Literal["mean", "cls", "last"] | None = Field(
        default=None,
        description="feature-extraction: what of a text's hidden states is its embedding: their mean, the first, or the"
        " last; None: what the source's own 1_Pooling/config.json says, else the mean",
    )
    cache_gib: Annotated[float, Field(gt=0.0)] | None = Field(
        default=None,
        description="text: GiB of memory for the keys and values of running answers; None: 1.5 on a CPU, and on a card"
        " what its part of it has free beside the weights",
    )
    scaling: Scaling = Scaling()

    @property
    def deployment(self) -> str:
        """What Serve calls the model: it makes file names of that, and an id may hold a slash. None holds a colon."""
        return self.id.replace("/", ":")

    @model_validator(mode="after")
    def _pooling_only_for_embeddings(self) -> ModelSpec:
        if self.pooling and self.task is not Task.EMBEDDING:
            raise ValueError(f"pooling applies to {Task.EMBEDDING} only; leave it out")
        return self

    @model_validator(mode="after")
    def _weights_only_for_torchvision(self) -> ModelSpec:
        if not self.source.startswith("torchvision:"):
            for name in ("weights", "transforms", "arguments"):
                if getattr(self, name):
                    raise ValueError(
                        f"{name} applies to a torchvision source only; name the folder or hub id in source"
                    )
        return self


def model_of(deployment: str) -> str:
    """Id of the model that Serve calls so."""
    return deployment.replace(":", "/")


def resolve_path(path: str) -> Path:
    """A path of the configuration, absolute: a relative one is below the repository, on each node its own.

    Not below the working folder, which of a replica is that of whoever started Ray on its node.
    """
    return (REPOSITORY / Path(path).expanduser()).resolve()


class StoreArgs(BaseModel):
    """Where entitlements live."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    redis_url: str = Field(
        default="embedded",
        description="`embedded` (a Valkey server of this application's own), or redis://, rediss://, redis+sentinel://."
        " The environment's REDIS_URL goes before, and for replicas AIM_REPLICA_REDIS_URL; keep credentials there",
    )
    public_url: str = Field(
        default="http://127.0.0.1:8000", description="where clients reach the gateway; written to demo.env"
    )
    noise_secret_file: str | None = Field(
        default=None, description="file with the noise secret; None: the environment's AIM_NOISE_SECRET, or the store"
    )
    receipt_secret_file: str | None = Field(
        default=None,
        description="file with the secret of receipts; None: the environment's AIM_RECEIPT_SECRET, or the store",
    )
    data_dir: str = Field(
        default=".data",
        description="folder of the embedded server, of the demo keys, and of what gateways hold back in an outage",
    )
    application: str = Field(
        default="default", description="of a model that is an application: the one that has the embedded store"
    )
    cache_ttl_s: Annotated[float, Field(gt=0.0, le=3600.0)] = Field(
        default=60.0, description="how long entitlements are used unasked while edits are announced; else a second"
    )
    stale_grace_s: Annotated[float, Field(ge=0.0)] = Field(
        default=300.0, description="how long known keys are served while the store is away"
    )

    @property
    def folder(self) -> Path:
        """`data_dir`, absolute."""
        return resolve_path(self.data_dir)


DRAIN_S = 600.0
"""A replica that is replaced has so long to end its answers: the longest deadline that can be set while it runs."""


class GatewayArgs(GatewaySettings):
    """The tenant-policy gateway as it is built; a change here restarts the application."""

    admin_api: bool = Field(
        default=False,
        description="whether /admin/v1 is served, for people with admin keys (`tenants admin-key create`). It needs the"
        " URL of the store's user admin in AIM_ADMIN_REDIS_URL, but for the embedded store",
    )
    admin_oidc: OidcArgs | None = Field(
        default=None, description="people's tokens at /admin/v1; wants `pip install 'aim-serve[oidc]'`"
    )
    scaling: Scaling = Scaling()

    @property
    def drain_s(self) -> float:
        """Seconds that a replica has to end its answers."""
        return max(self.deadline_s, DRAIN_S)


class AppArgs(BaseModel):
    """All arguments of `deployments.app:build_app`: `models` may be empty where each is an application of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: tuple[ModelSpec, ...]
    store: StoreArgs = StoreArgs()
    gateway: GatewayArgs = GatewayArgs()

    @field_validator("models")
    @classmethod
    def _unique(cls, models: tuple[ModelSpec, ...]) -> tuple[ModelSpec, ...]:
        names = [name for model in models for name in (model.id, *model.aliases)]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"model ids and aliases must be unique; given twice: {', '.join(sorted(twice))}")
        return models


class ModelArgs(BaseModel):
    """All arguments of `deployments.app:build_model`: one model as an application of its own.

    Its name must begin with `model-` and its `route_prefix` be null; `store` and `gateway` are the gateway's own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelSpec
    store: StoreArgs = StoreArgs()
    gateway: GatewayArgs = GatewayArgs()
    sharing: Annotated[int, Field(ge=1)] = Field(default=1, description="models that share the cores of a machine")
