"""`benchmarks.batches --local`: the gateway and both models in one process, without Ray, to be killed as a whole.

The engines, the gateway, its store and HTTP are the real ones; one process has them all, which is stricter for the
chat user than an application's several.

    STORE_URL=<its URL> python -m benchmarks.batches_local <port> <folder>
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import uvicorn

from benchmarks.running_support import CLASSIFIER, TEXT
from benchmarks.tenancy_support import REPOSITORY, free_port
from benchmarks.text_support import text_spec
from deployments.config import AppArgs, ModelSpec, StoreArgs, Task
from deployments.contracts.catalog import ModelInfo
from deployments.contracts.spending import Spent
from deployments.engines.images.classifier import ImageClassifier
from deployments.engines.images.pipeline import Pipeline
from deployments.engines.text.choices import answer
from deployments.engines.text.generator import Generator
from tenants.admin import installation
from tenants.admin.admin import TenantAdmin
from tenants.store.embedded import EmbeddedValkey
from tenants.store.store import TenantStore

_FOLDER = REPOSITORY / "models" / CLASSIFIER


class LocalModels:
    """A gateway's models, in its own process, at level 1.0."""

    def __init__(self, text: Generator, pictures: ImageClassifier) -> None:
        self._text, self._pipeline = text, Pipeline(pictures, 1)
        common: dict[str, Any] = {"floor": 0.01, "created": int(time.time())}
        self.infos = {
            TEXT: ModelInfo(id=TEXT, task=Task.TEXT, classes=None, context=text.context, **common),
            CLASSIFIER: ModelInfo(id=CLASSIFIER, task=Task.CLASSIFICATION, classes=tuple(pictures.classes), **common),
        }

    def known(self) -> Collection[str]:
        """Both."""
        return list(self.infos)

    def starting(self, *, own: bool) -> list[str]:
        """None."""
        return []

    def model(self, model_id: str) -> LocalModels:
        """Either: the methods differ."""
        return self

    async def spent(self, call: str) -> Spent | None:
        """Nobody knows."""
        return None

    async def call(self, method: str, *args: Any, deadline: float) -> Any:
        """A picture's labels, or a prompt's tokens."""
        if method == "encode":
            return self._text.language_model.encoder.prompts(args[0])[1]
        data, top_k, _, most_pixels, modulation, share, _ = args
        _, labels = await self._pipeline.read(data, most_pixels, modulation, share, top_k=top_k)
        return [label.to_json() for label in labels]

    async def stream(self, method: str, *args: Any, deadline: float) -> AsyncGenerator[Any]:
        """A text's answer."""
        if method != "generate":
            return
        prompts, param, params, modulation, share, _ = args
        params = {name: value for name, value in params.items() if name != "whole"}  # how a replica paces messages
        async with aclosing(answer(self._text, prompts, params, modulation, share, param=param)) as deltas:
            async for delta in deltas:
                yield delta


async def serve(store_url: str, port: int, folder: Path) -> None:
    """Serve until killed."""
    from deployments.serving.ingress import TenantGateway
    from deployments.serving.store import StoreAccess

    torch.set_num_threads(1)
    spec: Any = {"id": CLASSIFIER, "task": "image-classification", "source": str(_FOLDER), "threads": 1}
    args = AppArgs(models=(spec,), store=StoreArgs(redis_url=store_url, data_dir=str(folder)))
    text = await asyncio.to_thread(Generator.load, text_spec(threads=1), torch.device("cpu"))
    pictures = await asyncio.to_thread(ImageClassifier.load, ModelSpec.model_validate(spec), torch.device("cpu"))
    gateway: Any = TenantGateway.__new__(TenantGateway)
    await TenantGateway.__init__(gateway, args, {}, StoreAccess(None, args.store))
    gateway.service.models = LocalModels(text, pictures)
    api = gateway.__serve_build_asgi_app__()
    await uvicorn.Server(uvicorn.Config(api, port=port, log_level="warning", lifespan="off")).serve()


@dataclass
class LocalServer:
    """Such a process, and a store that outlives it; in the place of `changes_support.Server`."""

    folder: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.valkey = EmbeddedValkey(self.folder / "data")
        self.log = self.folder / "serve.log"

    @property
    def base_url(self) -> str:
        """Where the gateway answers."""
        return f"http://127.0.0.1:{self.port}"

    async def prepare(self) -> None:
        """An installation's records, and what `running` reads."""
        async with await TenantStore.connect(self.valkey.url, timeout_s=5.0) as store:
            await installation.create_secrets(store)
            await TenantAdmin(store, who="benchmark").tiers()
        (self.folder / "data" / "demo.env").write_text(f"BASE_URL={self.base_url}\n")
        (self.folder / "data" / "admin.env").write_text(f"OWNER_REDIS_URL={self.valkey.url}\n")

    def start(self) -> None:
        """Start the process."""
        words = [sys.executable, "-W", "ignore", "-m", "benchmarks.batches_local"]
        words += [str(self.port), str(self.folder / "held")]
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "STORE_URL": self.valkey.url}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(words, cwd=REPOSITORY, env=environment, stdout=log, stderr=log)

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """End it, and the store."""
        self.kill()
        self.valkey.stop()


if __name__ == "__main__":
    asyncio.run(serve(os.environ["STORE_URL"], int(sys.argv[1]), Path(sys.argv[2])))
