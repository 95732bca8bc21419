"""Health of a replica: a device that fails for good or hangs has it replaced, bad inputs never do."""

from __future__ import annotations

import asyncio
import threading
import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch

from deployments.config import Task
from deployments.contracts.spending import Spending
from deployments.serving.cores import Threads
from policies.errors import InvalidRequest, Unavailable
from policies.terms import Modulation, Share
from tests.deployments import tiny_models
from tests.deployments.vision_support import shipped

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's own, at import
    from deployments.serving import replicas
    from deployments.serving.store import StoreAccess

SHIP = (Path(__file__).parents[3] / "examples" / "ship.jpg").read_bytes()
MOST = 25_000_000


class Picture(replicas.VisionReplica):
    """A replica without what needs Ray: calibration, metrics."""

    async def start(self, *_: Any, **__: Any) -> None:
        self._spending = Spending()

    def check_and_export(self) -> None: ...

    async def ask(self, data: bytes = SHIP) -> Any:
        """Ask for an answer: it, or the error."""
        asked = self.predict(data, None, "masks", MOST, Modulation(), Share(flow="tenant"))
        return (await asyncio.gather(asked, return_exceptions=True))[0]


class Text(replicas.TextReplica):
    """As `Picture`."""

    async def start(self, *_: Any, **__: Any) -> None: ...

    def check_and_export(self) -> None: ...


@pytest_asyncio.fixture
async def replica() -> AsyncIterator[Picture]:
    spec = shipped("resnet18-cifar10", Task.CLASSIFICATION).model_copy(update={"max_step_s": 0.2})
    made = Picture.__new__(Picture)
    await Picture.__init__(made, spec, StoreAccess(None, None), Threads(1, 1))  # type: ignore[misc, arg-type]
    yield made
    await made._pictures.aclose()


async def test_a_device_that_fails_on_everything_makes_its_replica_unhealthy(replica: Picture) -> None:
    assert isinstance(await replica.ask(), list)
    broken = replica.engine.model.register_forward_pre_hook(_fail)
    for _ in range(3):
        assert "illegal memory access" in str(await replica.ask())
    for _ in range(2):  # until Serve has counted enough of it
        with pytest.raises(RuntimeError, match="illegal memory access"):
            await replica.check_health()
    broken.remove()  # as a device that was short of memory for a while
    await replica.check_health()
    assert isinstance(await replica.ask(), list)


async def test_an_answer_that_cannot_be_read_back_counts_as_a_failure(
    replica: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica.engine, "readout", _fail)
    monkeypatch.setattr(replica._vitals, "_trial", _fail)
    for _ in range(3):
        await replica.ask()
    with pytest.raises(RuntimeError, match="illegal memory access"):
        await replica.check_health()


async def test_bad_inputs_however_many_leave_their_replica_healthy(
    replica: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = replica.engine.forward
    monkeypatch.setattr(replica.engine, "forward", _fail)
    for _ in range(20):
        assert isinstance(await replica.ask(), RuntimeError)
    monkeypatch.setattr(replica.engine, "forward", forward)
    for _ in range(20):
        assert isinstance(await replica.ask(b"no picture"), InvalidRequest)
    await replica.check_health()
    assert isinstance(await replica.ask(), list)


async def test_a_forward_that_hangs_makes_its_replica_unhealthy_and_a_slow_one_does_not(replica: Picture) -> None:
    gate, entered = threading.Event(), threading.Event()

    def wait(*_: Any) -> None:
        entered.set()
        gate.wait()

    hook = replica.engine.model.register_forward_pre_hook(wait)
    asked = asyncio.create_task(replica.ask())
    await asyncio.to_thread(entered.wait)
    replica._most_s = 60.0
    await replica.check_health()
    replica._most_s = 0.0
    with pytest.raises(RuntimeError, match="has not ended"):
        await replica.check_health()
    gate.set()
    hook.remove()
    assert isinstance(await asked, list)
    await replica.check_health()


async def test_a_text_engine_whose_step_hangs_makes_its_replica_unhealthy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replicas, "_gpu_share", lambda: 0.0)
    spec = tiny_models.spec(tiny_models.folder(tmp_path / "tiny"), max_context=64)
    replica = Text.__new__(Text)
    await Text.__init__(replica, spec, StoreAccess(None, None), Threads(1, 1))  # type: ignore[misc, arg-type]
    try:
        await replica.check_health()
        gate, entered = threading.Event(), threading.Event()

        def wait(*_: Any) -> None:
            entered.set()
            gate.wait()

        hook = replica.engine.language_model.model.register_forward_pre_hook(wait)
        asked = asyncio.create_task(replica.engine.engine.greedy(tiny_models.PROMPT, 4))
        await asyncio.to_thread(entered.wait)
        await replica.check_health()
        replica._most_s = 0.05
        await asyncio.sleep(0.1)
        with pytest.raises(Unavailable):
            await replica.check_health()
        replica._most_s = 60.0
        gate.set()
        hook.remove()
        assert len(await asked) == 4
        replica._most_s = 5.0
        await asyncio.sleep(0.3)  # idle, its loop comes by all the same
        await replica.check_health()
    finally:
        replica.engine.close()


def _fail(*_: Any) -> torch.Tensor:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")
