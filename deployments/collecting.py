"""A refit from a folder or a text file, in a process of its own: the replica goes on serving from its own copy.

`python -m deployments.collecting` reads a request from stdin (JSON: spec, secret, stored, path, threads) and writes
lines of JSON to stdout: {"step", "share"} on its way, at last {"calibration"} or {"error"}. While it lasts the machine
holds the model a second time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from deployments.config import REPOSITORY, ModelSpec, Task
from deployments.engines.sample import picture_files
from policies.calibration import Calibration

Progress = Callable[[str, float], None]
_SAY_EVERY_S = 0.2
_LINE_LIMIT = 2**26


class RefitFailed(Exception):
    """Why a refit came to nothing, in one line."""


async def refit_from(
    path: str, spec: ModelSpec, secret: bytes, stored: Calibration, threads: int, progress: Progress
) -> Calibration:
    """Refit on the inputs that a path names. Cancelling it ends the process.

    Raises:
        RefitFailed: no such path, or the process failed.
        LoadError: a folder of too few images.
    """
    await asyncio.to_thread(_check, Path(path), spec)
    request = {
        "spec": spec.model_dump(mode="json"),
        "secret": secret.hex(),
        "stored": stored.to_json(),
        "path": path,
        "threads": threads,
    }
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "deployments.collecting",
        cwd=REPOSITORY, limit=_LINE_LIMIT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(json.dumps(request).encode())
        child.stdin.close()
        async for line in child.stdout:
            told = json.loads(line)
            if "error" in told:
                raise RefitFailed(told["error"])
            if "calibration" in told:
                return Calibration.from_json(told["calibration"])
            progress(told["step"], told["share"])
        raise RefitFailed(f"the process that calibrates ended with status {await child.wait()}, see the replica's log")
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()


def _check(path: Path, spec: ModelSpec) -> None:
    """Mistakes that need no model to be seen."""
    if not path.exists():
        raise RefitFailed(f"{path} does not exist on the machine of {spec.id}")
    if path.is_dir():
        if spec.task is Task.TEXT:
            raise RefitFailed(f"{path} is a folder; {spec.id} is calibrated on a text file of paragraphs")
        picture_files(path, 1)


def main() -> None:
    """The process's side."""
    os.nice(10)
    # What libraries print must not come between the lines.
    out, sys.stdout = sys.stdout, sys.stderr
    request = json.load(sys.stdin)
    try:
        _say(out, calibration=_refit(request, out).to_json())
    except Exception as error:
        _say(out, error=" ".join(str(error).split()) or type(error).__name__)
        raise SystemExit(1) from error


def _refit(request: dict[str, Any], out: TextIO) -> Calibration:
    import torch

    from deployments.calibrating import load_engine

    said = 0.0

    def progress(step: str, share: float) -> None:
        nonlocal said
        if time.monotonic() - said > _SAY_EVERY_S:
            said = time.monotonic()
            _say(out, step=step, share=share)

    _say(out, step="loading the model", share=0.0)
    torch.set_num_threads(request["threads"])
    spec = ModelSpec.model_validate(request["spec"])
    engine = load_engine(spec, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    sample = engine.refit_sample(Path(request["path"]), progress)
    return engine.fit(
        sample,
        bytes.fromhex(request["secret"]),
        stored=Calibration.from_json(request["stored"]),
        progress=lambda share: progress("solving levels", share),
    )


def _say(out: TextIO, **line: Any) -> None:
    print(json.dumps(line), file=out, flush=True)


if __name__ == "__main__":
    main()
