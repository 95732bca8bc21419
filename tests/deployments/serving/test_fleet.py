"""Which models a gateway knows: slow ones stay, dead ones are not ready, applications come and go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import pytest
import pytest_asyncio

from deployments.config import Task
from deployments.contracts.catalog import ModelInfo
from deployments.serving.fleet import Fleet, Found
from tests.tenants.conftest import until


class Handle:
    """A model's, which answers as a test says; `info.remote()` is what a gateway calls."""

    def __init__(self, model_id: str) -> None:
        self.state, self.info, self.asked = "well", self, 0
        self._info = ModelInfo(id=model_id, task=Task.TEXT, classes=None, floor=0.1, context=100, created=1)

    async def remote(self) -> ModelInfo:
        self.asked += 1
        if self.state == "slow":
            await asyncio.sleep(60)
        if self.state == "gone":
            raise RuntimeError("the replica died")
        return self._info


class Serve:
    """What applications there are."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}
        self.away = False

    def __call__(self) -> dict[str, Any]:
        if self.away:
            raise RuntimeError("no controller")
        return dict(self.found)


Make = Callable[..., Awaitable[Fleet]]


@pytest_asyncio.fixture
async def make(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Make]:
    for name in ("TIMEOUT_S", "PERIOD_S", "PENDING_PERIOD_S", "STARTING_PERIOD_S"):
        monkeypatch.setattr(f"deployments.serving.fleet.{name}", 0.01)
    made: list[Fleet] = []

    async def build(serve: Serve, **bound: Any) -> Fleet:
        made.append(Fleet(bound, serve))
        await made[-1].start()
        return made[-1]

    yield build
    for fleet in made:
        await fleet.aclose()


async def test_a_model_that_is_slow_to_say_what_it_serves_is_served_and_one_that_is_gone_is_not(make: Make) -> None:
    handle = Handle("m")
    fleet = await make(Serve(), m=handle)
    await until(lambda: "m" in fleet.infos)
    for state, known in (("slow", True), ("well", True), ("gone", False), ("slow", False), ("well", True)):
        handle.state, asked = state, handle.asked
        await until(lambda seen=asked: handle.asked > seen + 2)
        assert ("m" in fleet.infos) is known, state
        assert fleet.starting(own=True) == ([] if known else ["m"])


async def test_models_come_and_go_as_applications_and_the_gateways_own_stay(make: Make) -> None:
    serve, own, other = Serve(), Handle("own"), Handle("other")
    fleet = await make(serve, own=own)
    await until(lambda: "own" in fleet.infos)
    handle: Any = other
    serve.found = {"default": {"own": Found(None)}, "model-other": {"other": Found(handle)}}
    await until(lambda: "other" in fleet.infos)
    assert fleet.handles == {"own": own, "other": other}
    for serve.away, serve.found in ((True, {}), (False, {"model-other": {}})):  # no controller; a new version is built
        await asyncio.sleep(0.1)
        assert "other" in fleet.infos
    serve.found = {}
    await until(lambda: "other" not in fleet.handles)
    asked = other.asked
    assert set(fleet.infos) == {"own"} and fleet.starting(own=True) == []
    await asyncio.sleep(0.05)
    assert other.asked == asked


async def test_a_model_that_dies_is_asked_until_it_is_back(make: Make) -> None:
    handle = Handle("m")
    handle.state = "gone"
    fleet = await make(Serve(), m=handle)
    await until(lambda: handle.asked > 2)
    assert fleet.starting(own=True) == ["m"]
    handle.state = "well"
    await until(lambda: not fleet.starting(own=True))


async def test_a_model_of_another_application_that_starts_leaves_the_gateway_ready(make: Make) -> None:
    serve, other = Serve(), Handle("other")
    other.state, handle = "gone", cast(Any, other)
    fleet = await make(serve)
    serve.found = {"model-other": {"other": Found(handle)}}
    await until(lambda: "other" in fleet.handles)
    assert fleet.starting(own=True) == [] and fleet.starting(own=False) == ["other"]
    other.state = "well"
    await until(lambda: not fleet.starting(own=False))


async def test_a_model_that_sleeps_is_asked_only_after_it_was_used_and_stays_ready(make: Make) -> None:
    serve, handle = Serve(), Handle("m")
    fleet = await make(serve, m=handle)
    serve.found = {"default": {"m": Found(None, sleeps=True)}}
    await until(lambda: "m" in fleet.infos and "m" in fleet._sleeps)
    await asyncio.sleep(0.05)
    for used in (0, 1, 0):
        asked, handle.state = handle.asked, "slow" if not used else "well"  # asleep it would answer only once it woke
        if used:
            fleet.model("m")
            await until(lambda seen=asked: handle.asked > seen)
        await asyncio.sleep(0.1)
        assert handle.asked == asked + used
        assert fleet.starting(own=True) == []


async def test_a_gateway_begins_once_it_knows_the_models_that_are_up_and_waits_for_no_other(make: Make) -> None:
    serve, own, loading, other = Serve(), Handle("own"), Handle("loading"), Handle("other")
    loading.state, handle = "slow", cast(Any, other)
    serve.found = {
        "default": {"own": Found(None, up=True), "loading": Found(None), "TenantGateway": Found(None, up=True)},
        "model-other": {"other": Found(handle, up=True)},
    }
    fleet = await make(serve, own=own, loading=loading)
    assert set(fleet.infos) == {"own", "other"}
    serve.away = True
    assert (await make(serve, own=own)).handles == {"own": own}


async def test_a_gateway_that_begins_while_a_model_is_built_anew_waits_for_it(make: Make) -> None:
    serve, other = Serve(), cast(Any, Handle("other"))
    serve.found = {"model-other": {}}
    begins = asyncio.create_task(make(serve))
    await asyncio.sleep(0.05)
    assert not begins.done()
    serve.found = {"model-other": {"other": Found(other, up=True)}}
    assert set((await begins).infos) == {"other"}
