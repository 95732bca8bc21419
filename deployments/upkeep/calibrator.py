"""The calibrator: a process of its own in which levels are solved, while replicas go on serving.

`python -m deployments.upkeep.calibrator` reads a request from stdin: a line of JSON, then as many bytes of live rows
(safetensors) as it names, which so stay in memory. It writes lines of JSON to stdout: {"step", "share"} on its way, at
last {"calibration"}, of live rows with the rest of a `Refitted`, or {"error"}. It ends when its stdin does, since then
nobody waits for it. While it lasts the machine holds the model a second time.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from deployments.config import REPOSITORY, ModelSpec, Task
from tenants.reports.jobs import LIVE

if TYPE_CHECKING:  # loaded late: the process listens for its parent's end before it loads torch
    from deployments.engines.calibrated import CalibratedEngine
    from deployments.engines.live import Kept
    from deployments.upkeep.refitting import Refitted
    from policies.calibration.calibration import Calibration

Progress = Callable[[str, float], None]
_SAY_EVERY_S = 0.2
_LINE_LIMIT = 2**26


class CalibrationFailed(Exception):
    """Why a calibration came to nothing, in one line."""


@dataclass(frozen=True)
class Calibrator:
    """What starts the process for one model.

    Attributes:
        spec: the model.
        secret: the installation's noise secret.
        threads: CPU threads.
        gpu_share: share of a card's memory that it may take; 0: all that is free.
    """

    spec: ModelSpec
    secret: bytes = field(repr=False)
    threads: int
    gpu_share: float = 0.0

    async def solve(self, source: str, progress: Progress, *, stored: Calibration | None = None) -> Calibration:
        """Solve the levels. Cancelling it ends the process.

        Args:
            source: a path on this machine.
            stored: the calibration whose field is kept: a refit. None: the first.

        Raises:
            CalibrationFailed: it failed; why, in one line.
        """
        from policies.calibration.calibration import Calibration

        told = await self._told({"source": source, "stored": stored and stored.to_json()}, b"", progress)
        return Calibration.from_json(told["calibration"])

    async def refit(
        self, live: bytes, progress: Progress, *, stored: Calibration, levels: Sequence[float], least: int, strict: bool
    ) -> Refitted:
        """Solve the levels on live rows. Cancelling it ends the process.

        Args:
            live: from `pack`.
            stored: the calibration whose field is kept.
            levels, least, strict: as `refitted`.

        Raises:
            CalibrationFailed: it failed; why, in one line.
        """
        from deployments.upkeep.refitting import Refitted
        from policies.calibration.calibration import Calibration

        wanted = {"levels": list(levels), "least": least, "strict": strict}
        request = {"source": LIVE, "stored": stored.to_json(), "wanted": wanted}
        told = await self._told(request, live, progress)
        return Refitted(**told | {"calibration": Calibration.from_json(told["calibration"])})

    async def _told(self, wanted: dict[str, Any], live: bytes, progress: Progress) -> dict[str, Any]:
        """The process's last word."""
        request = wanted | {
            "spec": self.spec.model_dump(mode="json"),
            "secret": self.secret.hex(),
            "live": len(live),
            "threads": self.threads,
            "gpu_share": self.gpu_share,
        }
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "deployments.upkeep.calibrator",
            cwd=REPOSITORY, limit=_LINE_LIMIT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            assert child.stdin is not None and child.stdout is not None
            with contextlib.suppress(ConnectionError):  # one that died is told of below
                child.stdin.write(json.dumps(request).encode() + b"\n" + live)
                await child.stdin.drain()
            async for line in child.stdout:
                told = json.loads(line)
                if "error" in told:
                    raise CalibrationFailed(told["error"])
                if "calibration" in told:
                    return dict(told)
                progress(told["step"], told["share"])
            raise CalibrationFailed(f"its process ended with status {await child.wait()}, see the replica's log")
        finally:
            if child.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    child.kill()
                await child.wait()


def check_source(source: str, spec: ModelSpec) -> None:
    """Mistakes in what a model shall be calibrated on that are seen without the model.

    Raises:
        CalibrationFailed: there is no such path, or it is of another kind than the model needs.
        LoadError: too few images or paragraphs, or a file that holds no sample.
    """
    from deployments.engines.images.sample import picture_files, read_features

    path = Path(source)
    if not path.exists():
        raise CalibrationFailed(f"{path} does not exist on the machine of {spec.id}")
    if spec.task is Task.TEXT:
        from deployments.engines.text.calibration import split_paragraphs

        if path.is_dir():
            raise CalibrationFailed(f"{path} is a folder; {spec.id} is calibrated on a text file of paragraphs")
        split_paragraphs(path)
    elif path.is_dir():
        picture_files(path, 1)
    else:
        read_features(path)


def pack(engine: CalibratedEngine) -> bytes:
    """The live rows that an engine can be refitted on, for the process.

    Raises:
        LoadError: too few of them.
    """
    from safetensors.torch import save
    from torch import tensor

    kept = engine.live_rows()
    parts = {"rows": kept.rows, "groups": kept.groups, "at": kept.at, "owners": kept.owners}
    return save({**parts, "scale": tensor(kept.scale)})


def _unpack(packed: bytes) -> Kept:
    from safetensors.torch import load

    from deployments.engines.live import Kept

    tensors = load(packed)
    scale = int(tensors.pop("scale"))
    return Kept(**tensors, scale=scale)


def load_engine(spec: ModelSpec, device: Any) -> CalibratedEngine:
    """The engine of a model's task, loaded on a torch device to calibrate.

    Raises:
        LoadError: it cannot be loaded or modulated; the message says what to change.
    """
    match spec.task:
        case Task.CLASSIFICATION:
            from deployments.engines.images.classifier import ImageClassifier

            return ImageClassifier.load(spec, device)
        case Task.SEGMENTATION:
            from deployments.engines.images.segmenter import ImageSegmenter

            return ImageSegmenter.load(spec, device)
        case Task.TEXT:
            from deployments.engines.text.calibration import calibrating
            from deployments.engines.text.generator import Generator

            return Generator.load(calibrating(spec), device)
        case Task.EMBEDDING:
            raise CalibrationFailed(f"{spec.id} makes embeddings, which have no levels to solve")


def main() -> None:
    """The process's side."""
    os.nice(10)
    # What libraries print must not come between the lines.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    request = json.loads(sys.stdin.buffer.readline())
    live = sys.stdin.buffer.read(request["live"])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _say(out, **_solve(request, live, _Teller(out)))
    except Exception as error:
        if not isinstance(error, ValueError):  # which tells what to change
            traceback.print_exc()
        _say(out, error=" ".join(str(error).split()) or type(error).__name__)
    os._exit(0)  # an engine's own threads would be waited for


def _end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)


def _solve(request: dict[str, Any], live: bytes, tell: Progress) -> dict[str, Any]:
    import torch

    from deployments.upkeep.refitting import refitted
    from policies.calibration.calibration import Calibration

    torch.set_num_threads(request["threads"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        tell("waiting for another calibration on this card", 0.0)
        _wait_for_turn()
        if request["gpu_share"]:
            torch.cuda.set_per_process_memory_fraction(request["gpu_share"])
    tell("loading the model", 0.0)
    engine = load_engine(ModelSpec.model_validate(request["spec"]), device)
    stored = request["stored"] and Calibration.from_json(request["stored"])
    secret = bytes.fromhex(request["secret"])

    def solving(share: float) -> None:
        tell("solving levels", share)

    if request["source"] == LIVE:
        refit = refitted(engine, _unpack(live), secret, stored, **request["wanted"], progress=solving)
        return vars(refit) | {"calibration": refit.calibration.to_json()}
    sample = engine.calibration_sample(Path(request["source"]), tell, refit=bool(stored))
    return {"calibration": engine.fit(sample, secret, stored=stored, progress=solving).to_json()}


def _wait_for_turn() -> None:
    """Wait until no other calibrator of this machine uses a card, which has room for one; held until this one ends."""
    file = os.open(__file__, os.O_RDONLY)
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(file, fcntl.LOCK_EX)


class _Teller:
    """Tells each step as it begins, and of its progress no more than every 0.2 s."""

    def __init__(self, out: TextIO) -> None:
        self._out, self._step, self._said = out, "", 0.0

    def __call__(self, step: str, share: float) -> None:
        if step != self._step or time.monotonic() - self._said > _SAY_EVERY_S:
            self._step, self._said = step, time.monotonic()
            _say(self._out, step=step, share=share)


def _say(out: TextIO, **line: Any) -> None:
    try:
        print(json.dumps(line), file=out, flush=True)
    except BrokenPipeError:  # nobody waits for it
        os._exit(1)


if __name__ == "__main__":
    main()
