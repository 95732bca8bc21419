"""A store, the shipped classifier, and keepers of it without Ray: shared by the tests of the calibrator and keeper."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from typer.testing import Result

from deployments.config import REPOSITORY, Task
from deployments.engines.images.classifier import ImageClassifier
from deployments.upkeep import keeper as keeping
from deployments.upkeep.fields import calibration_key
from deployments.upkeep.keeper import Keeper
from policies.calibration.calibration import Calibration
from tenants.store.store import TenantStore
from tests.deployments.vision_support import SECRET, at, scenes, shipped

Run = Callable[..., Any]
MODEL = "resnet18-cifar10"
SAMPLE = REPOSITORY / "models" / MODEL / "calibration.safetensors"
SPEC = shipped(MODEL, Task.CLASSIFICATION).model_copy(update={"calibration": str(SAMPLE)})


@dataclass
class Access:
    """As `StoreAccess`, without Ray."""

    url: str

    async def connect(self) -> TenantStore:
        return await TenantStore.connect(self.url, timeout_s=5.0)

    async def noise_secret(self, _store: TenantStore) -> bytes:
        return SECRET


async def keep(engine: ImageClassifier, url: str, replica: str, **changes: Any) -> Keeper:
    """A replica's keeper, started."""
    access: Any = Access(url)
    return await Keeper.start(engine, SPEC.model_copy(update=changes), access, replica=replica, threads=1)


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keepers that look and report often."""
    for name, seconds in (("POLL_S", 0.05), ("REPORT_S", 0.2), ("JUDGE_S", 0.2), ("LEVELS_S", 0.2)):
        monkeypatch.setattr(keeping, name, seconds)


def count_processes(monkeypatch: pytest.MonkeyPatch) -> list[asyncio.subprocess.Process]:
    """The calibrators started from now on."""
    start, started = asyncio.create_subprocess_exec, []

    async def counted(*words: Any, **named: Any) -> asyncio.subprocess.Process:
        started.append(await start(*words, **named))
        return started[-1]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", counted)
    return started


def calibrators(pid: int) -> list[int]:
    """The calibrators that a process runs."""
    started = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in started if b"upkeep.calibrator" in Path(f"/proc/{child}/cmdline").read_bytes()]


def is_alive(pid: int) -> bool:
    """Whether a process runs: one that is dead but not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def until(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    """Wait for what must come."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


def solve(rows: int) -> Calibration:
    """The classifier's levels on some rows of its sample."""
    engine = ImageClassifier.load(SPEC)
    sample = engine.calibration_sample(SAMPLE)
    assert isinstance(sample.logits, Tensor)
    return engine.fit(replace(sample, features=sample.features[:rows], logits=sample.logits[:rows]), SECRET)


def serve(engine: ImageClassifier, images: int, tenants: int = 1) -> None:
    """Answer so many different pictures at 0.7, of some tenants in turn."""
    pictures, terms = scenes(images, 32, 32), at(0.7)
    for start in range(0, images, 64):
        batch = [engine.preprocess(picture) for picture in pictures[start : start + 64]]
        flows = [f"tenant-{number % tenants}" for number in range(len(batch))]
        for item in engine.forward(batch, [terms] * len(batch), flows):
            engine.answer(item, terms)


def key_of(engine: ImageClassifier) -> str:
    """Where its calibration stands, below `calibration:`."""
    return calibration_key(engine, SECRET)


async def said(result: Result) -> str:
    """The one line of a command that failed."""
    assert result.exit_code == 1 and result.stdout == ""
    assert len(result.stderr.splitlines()) == 1, result.stderr
    return result.stderr
