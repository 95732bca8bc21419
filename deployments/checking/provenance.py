"""`tenants trace`: from which level of which model, if of any, given answers to given inputs come.

`tenants.command.entry` finds it by name, since it needs engines, which `tenants` may not import. Whoever runs it
must be able to read the noise secret, as a replica does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deployments.config import REPOSITORY, AppArgs, ModelSpec, Task
from deployments.environment import noise_secret
from tenants.command.console import Json, failure, run
from tenants.records.schema import RecordError
from tenants.store.store import TenantStore

if TYPE_CHECKING:  # torch, which the command loads when it is used
    from deployments.engines.calibrated import CalibratedEngine
    from policies.provenance.answers import Answers
    from policies.provenance.trace import Trace

DEFAULT_CONFIG = Path("serve_config.yaml")


@dataclass(frozen=True)
class Given:
    """One line of the file.

    Attributes:
        line: its number.
        input: path of a picture, a text that was continued, or the messages of a conversation.
        answer: as `traced_picture` and `traced_text` take it.
        task: of the models that may have given it.
    """

    line: int
    input: Any
    answer: Any
    task: Task


def trace(
    context: typer.Context,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help='JSON lines: {"input": picture, "answer": label, or mask.png of class indices} or'
            ' {"prompt": text or messages, "answer": text}. Paths count from the folder of FILE.',
        ),
    ],
    model: Annotated[str, typer.Option(help="Model id; default: every model that the answers may be of.")] = "",
    config: Annotated[Path, typer.Option(help="The application's configuration.")] = DEFAULT_CONFIG,
    level: Annotated[
        list[float] | None, typer.Option(help="A level that is sold; repeat it. Default: every hundredth.")
    ] = None,
    decoys: Annotated[
        int, typer.Option(min=1999, max=100_000, help="Keys to compare with; more tell a p-value near 0.001 apart.")
    ] = 1999,
    as_json: Json = False,
) -> None:
    """Say which level of which model, if any, gave these answers, with a p-value; needs the noise secret.

    Tenants of a level share one noise, so that no trace leads to one tenant. Focus, sampling and changed inputs weaken
    a trace. Answers at level 1.0 are the model's own and leave none.
    """
    from deployments.engines.errors import LoadError
    from deployments.launch.command import read_plan
    from policies.errors import ServiceError

    args = read_plan(config if config.exists() or config != DEFAULT_CONFIG else REPOSITORY / DEFAULT_CONFIG).args
    found: list[dict[str, Any]] = []
    try:
        given = read_given(file)
        specs = _fitting(args, given, model)
        secret = _noise_secret(context, args)
        for spec in specs:
            result = _traced(context, spec, secret, given, sorted(level or []), decoys, len(specs))
            found.append({"model": spec.id, "claimed": result.claimed, **asdict(result)})
            if not as_json:
                typer.echo(f"{spec.id}: {sentence(result)}")
    except ServiceError as error:
        raise failure(error.message) from None
    except (LoadError, OSError, ValueError) as error:
        raise failure(str(error)) from None
    if as_json:
        typer.echo(json.dumps(found, indent=2))


def read_given(file: Path) -> list[Given]:
    """The answers of a file of JSON lines.

    Raises:
        ValueError: it cannot be read, or holds no line; or a line that is none, with its number.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from None
    lines = [(n, line) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise ValueError(f"{file} holds no answers")
    return [_given(file, number, line) for number, line in lines]


def sentence(found: Trace) -> str:
    """What was found, for people."""
    if not found.claimed:
        return (
            f"none: the answers fit this installation no better than chance (p = {found.p:.2g}, {found.decoys} decoys)."
            f" {found.answers - found.changed} of {found.answers} are the clean model's own."
        )
    range_ = f", {found.lowest:g} to {found.highest:g} fit about as well" if found.lowest < found.highest else ""
    return (
        f"level {found.level:g}{range_} (p = {found.p:.2g}, {found.decoys} decoys; {found.deviations:.1f} standard"
        f" deviations above them). {found.own} of {found.answers} answers are this level's, {found.explained} of the"
        f" {found.changed} that are not the clean model's."
    )


def _given(file: Path, number: int, line: str) -> Given:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict) or "answer" not in fields or len({"input", "prompt"} & set(fields)) != 1:
        raise ValueError(f"{file}, line {number}: expected a JSON object with answer, and either input or prompt")
    answer, prompt = fields["answer"], fields.get("prompt")
    if "prompt" in fields:
        if not isinstance(answer, str) or not (isinstance(prompt, str) or _is_conversation(prompt)):
            raise ValueError(f"{file}, line {number}: prompt must be a text or messages, and answer a text")
        return Given(number, prompt, answer, Task.TEXT)
    if not isinstance(answer, str | list) or not isinstance(fields["input"], str):
        raise ValueError(f"{file}, line {number}: input must be a path, and answer a label, a path or the API's answer")
    task = Task.CLASSIFICATION
    if isinstance(answer, str) and answer.lower().endswith((".png", ".json")):
        answer, task = str(file.parent / Path(answer).expanduser()), Task.SEGMENTATION
    elif isinstance(answer, list) and all(isinstance(part, dict) and part.get("mask") for part in answer):
        task = Task.SEGMENTATION
    return Given(number, file.parent / Path(fields["input"]).expanduser(), answer, task)


def _is_conversation(prompt: Any) -> bool:
    parts = prompt if isinstance(prompt, list) else []
    return bool(parts) and all(isinstance(p, Mapping) and isinstance(p.get("content"), str) for p in parts)


def _fitting(args: AppArgs, given: Sequence[Given], model: str) -> list[ModelSpec]:
    """The models that the answers may be of."""
    task, *others = {own.task for own in given}
    if others:
        raise ValueError("the file holds answers of several tasks; trace labels, masks and texts each in a file")
    specs = [spec for spec in args.models if spec.id == model or (not model and spec.task is task)]
    if not specs:
        known = ", ".join(spec.id for spec in args.models)
        raise ValueError(f"no model {model or 'of ' + task} is configured; there are {known}")
    if specs[0].task is not task:
        raise ValueError(f"{specs[0].id} does {specs[0].task}, but the answers are of {task}")
    return specs


def _noise_secret(context: typer.Context, args: AppArgs) -> bytes:
    return run(context, lambda _, store: noise_secret(args.store, store))


def _traced(
    context: typer.Context,
    spec: ModelSpec,
    secret: bytes,
    given: Sequence[Given],
    levels: Sequence[float],
    decoys: int,
    models: int,
) -> Trace:
    """One model's trace; with several models looked at its p-value is that of the best of them (Bonferroni)."""
    from deployments.upkeep.fields import calibration_key
    from policies.calibration.calibration import Calibration
    from policies.provenance.decoys import Decoys
    from policies.provenance.trace import trace

    typer.echo(f"{spec.id}: loading, and asking the clean model {len(given)} times ...", err=True)
    with _loaded(spec) as engine:
        key = calibration_key(engine, secret)
        stored = run(context, lambda _, store: _calibration(store, spec, key))
        answers = _answers(engine, given)
    calibration = Calibration.from_json(json.dumps(stored))
    typer.echo(f"{spec.id}: comparing {len(answers)} answers with those of other keys ...", err=True)
    drawn = Decoys(answers, calibration, count=(decoys + 1) * models - 1)
    found = trace(answers, calibration, secret, decoys=drawn, levels=levels or None)
    return replace(found, p=min(1.0, models * found.p))


async def _calibration(store: TenantStore, spec: ModelSpec, key: str) -> dict[str, Any]:
    stored = await store.load_calibration(key)
    if stored is None:
        raise RecordError(
            f"calibration:{key}",
            "",
            f"{spec.id} has no calibration under this configuration and noise secret, so that it never answered below"
            " level 1.0",
        )
    return stored


@contextmanager
def _loaded(spec: ModelSpec) -> Iterator[CalibratedEngine]:
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if spec.task is Task.TEXT:
        from deployments.engines.text.calibration import calibrating
        from deployments.engines.text.generator import Generator
        from deployments.engines.text.loading.language_models import load_language_model

        # Its engine answers nothing here, so that little memory will do.
        with closing(Generator(calibrating(spec), load_language_model(spec, device))) as generator:
            yield generator
        return
    from deployments.engines.images.classifier import ImageClassifier
    from deployments.engines.images.segmenter import ImageSegmenter

    kind = ImageClassifier if spec.task is Task.CLASSIFICATION else ImageSegmenter
    yield kind.load(spec, device)


def _answers(engine: CalibratedEngine, given: Sequence[Given]) -> Answers:
    from deployments.engines.errors import LoadError
    from deployments.engines.images.engine import VisionEngine
    from deployments.engines.images.traced import traced_picture
    from policies.errors import ServiceError
    from policies.provenance.answers import Answers

    parts = []
    for own in given:
        try:
            if isinstance(engine, VisionEngine):
                parts.append(traced_picture(engine, own.input, own.answer, len(given)))
            else:
                from deployments.engines.text.generator import Generator
                from deployments.engines.text.traced import traced_text

                assert isinstance(engine, Generator)
                parts.append(traced_text(engine, own.input, own.answer))
        except (LoadError, ServiceError) as error:
            raise LoadError(f"line {own.line}: {error}") from None
    return Answers.join(parts)
