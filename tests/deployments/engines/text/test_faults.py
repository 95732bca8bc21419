"""A fault in a step of the text engine is one request's own wherever it strikes; the others' answers stay theirs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch

from deployments.engines.text.draws import DrawTables
from deployments.engines.text.engine import CLEAN, TextEngine
from deployments.engines.text.generator import Generator
from deployments.engines.text.request import Request
from deployments.engines.text.sampling import SamplingParams
from policies.errors import ServiceError, Unavailable
from policies.terms import Share
from tests.deployments.tiny_models import folder, spec

BAD = 666
"""The seed of the request at fault, and the only one with a token of this kind in its prompt."""
MARK = 271
TOKENS = 30
SOUND = [
    SamplingParams(max_tokens=TOKENS, ignore_eos=True, temperature=0.9, seed=1, logprobs=2),
    SamplingParams(
        max_tokens=TOKENS, ignore_eos=True, temperature=0.9, seed=2, presence_penalty=1.5, frequency_penalty=0.5
    ),
    SamplingParams(max_tokens=TOKENS, ignore_eos=True, temperature=0.0, repetition_penalty=1.5),
]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest_asyncio.fixture(scope="module")
async def tiny(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Generator]:
    made = Generator.load(
        spec(folder(tmp_path_factory.mktemp("tiny"))).model_copy(update={"max_batch_size": 8}), torch.device("cpu")
    )
    yield made
    made.close()


async def answer(engine: TextEngine, params: SamplingParams, flow: str = "sound") -> tuple[list[int], list[float]]:
    """Tokens, and their log-probabilities where those were asked for."""
    prompt = [MARK] * 150 if params.seed == BAD else [40 + (params.seed or 0), 41, 42]
    tokens, logprobs = list[int](), list[float]()
    async with aclosing(engine.run(prompt, params, CLEAN, Share(flow=flow))) as steps:
        async for step in steps:
            tokens += step.tokens
            logprobs += [round(float(record.chosen), 4) for record in step.records]
    return tokens, logprobs


def bad(number: int = 0) -> SamplingParams:
    return SamplingParams(max_tokens=TOKENS, ignore_eos=True, temperature=0.9, seed=BAD, top_k=number, logprobs=1)


async def emptied(engine: TextEngine) -> None:
    while engine.running or engine.waiting:
        await asyncio.sleep(0.01)


def _is_bad(number: int, engine: TextEngine) -> bool:
    seat = engine.seats._taken.get(number)
    return seat is not None and seat.params.seed == BAD


def faults(engine: TextEngine, patch: pytest.MonkeyPatch) -> dict[str, Callable[[], None]]:
    """By place in a step: what makes the bad request fail there."""
    seats, scheduler = engine.seats, engine._scheduler

    def raises(owner: Any, name: str, strikes: Callable[..., bool], after: bool = False) -> Callable[[], None]:
        original = getattr(owner, name)

        def stands_in(*args: Any, **kwargs: Any) -> Any:
            out = original(*args, **kwargs) if after else None
            if strikes(*args):
                raise RuntimeError(f"injected at {name}")
            return out if after else original(*args, **kwargs)

        return lambda: patch.setattr(owner, name, stands_in)

    def drawn(*args: Any) -> bool:
        return any(_is_bad(number, engine) for number in seats._row_seats)

    def of_state(state: Any, *_: Any) -> bool:
        return MARK in state.initial_tokens

    def forward(*_: Any) -> bool:
        requests = engine._manager.batch_processor.inputs_and_outputs.requests_in_batch
        return any(of_state(one.state) for one in requests)

    cache, processor = scheduler.cache, engine._manager.batch_processor
    return {
        "parameters": raises(DrawTables, "write", lambda _self, _seat, params, *_: params.seed == BAD),
        "logits processor": raises(seats._draws, "scores", drawn),
        "what is noted of a token": raises(seats, "_record", drawn, after=True),
        "after all is drawn": raises(type(seats), "__call__", drawn, after=True),
        "pages": raises(cache, "can_store_request_tokens", of_state, after=True),
        "telling how much was read": raises(scheduler, "on_read", lambda name, *_: name in bad_ids(engine)),
        "inputs": raises(seats, "prepare_tensor_args", lambda rows: any(of_state(row.state) for row in rows)),
        "forward": raises(processor.model_runner, "compute_batch", forward),
        "results": raises(processor.inputs_and_outputs, "retrieve_device_outputs", forward, after=True),
        "output": raises(cache, "mark_complete_blocks", of_state),
        "handing on": raises(Request, "drew", lambda request, *_: request.params.seed == BAD),
    }


def bad_ids(engine: TextEngine) -> set[str]:
    return {name for name, request in engine._running.items() if request.params.seed == BAD}


PLACES = (
    "parameters", "logits processor", "what is noted of a token", "after all is drawn", "pages",
    "telling how much was read", "inputs", "forward", "results", "output", "handing on",
)  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
async def test_only_the_request_at_fault_fails(tiny: Generator, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    engine = tiny.engine
    wanted = [await answer(engine, params) for params in SOUND]
    before = tiny.audit()[1.0]
    begun = [asyncio.create_task(answer(engine, params)) for params in SOUND]
    await asyncio.sleep(0.01)  # they are under way when it comes
    injected = faults(engine, monkeypatch)
    assert set(injected) == set(PLACES)
    injected[place]()
    with pytest.raises(ServiceError, match="failed on this request") as failed:
        await answer(engine, bad(), "noisy")
    assert not isinstance(failed.value, Unavailable) and failed.value.code == "generation_failed"
    beside = [asyncio.create_task(answer(engine, params)) for params in SOUND]
    assert await asyncio.gather(*begun) == wanted
    assert await asyncio.gather(*beside) == wanted
    await emptied(engine)
    monkeypatch.undo()
    engine.healthy()
    counted = tiny.audit()[1.0][0] - before[0]
    most = TOKENS if place == "handing on" else 1  # what the one at fault has drawn in truth
    assert 0 <= counted - 2 * len(SOUND) * TOKENS <= most, "a step that was taken back is counted"
    assert engine.line.free_seats == 8 * 4 and engine.line.free_pages == engine._scheduler.cache.num_blocks - 1


async def test_a_tenant_whose_every_request_fails_does_not_end_the_engine(
    tiny: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults(tiny.engine, monkeypatch)["logits processor"]()
    outcomes = await asyncio.gather(*(answer(tiny.engine, bad(n), "noisy") for n in range(7)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {ServiceError}
    assert len((await answer(tiny.engine, SOUND[0]))[0]) == TOKENS
    tiny.engine.healthy()


async def test_a_fault_that_is_nobodys_own_ends_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = Generator.load(spec(folder(tmp_path)), torch.device("cpu"))
    try:
        asked: list[Sequence[int]] = []

        def broken(*_: Any, **__: Any) -> Any:
            asked.append(generator.engine.seats._row_seats)
            raise RuntimeError("nothing works any more")

        monkeypatch.setattr(generator.engine._manager.batch_processor.model_runner, "compute_batch", broken)
        for _ in range(4):
            with pytest.raises(ServiceError):
                await answer(generator.engine, SOUND[0])
        while generator.engine._manager.is_running():
            await asyncio.sleep(0.01)
        with pytest.raises(Unavailable, match="stopped"):
            generator.engine.healthy()
        assert "nothing works" in str(generator.engine.fault())
        assert len(asked) == 4, "three sequences and a sound one"
    finally:
        generator.close()


async def test_a_lost_device_ends_the_engine_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = Generator.load(spec(folder(tmp_path)), torch.device("cpu"))
    try:

        def lost(*_: Any, **__: Any) -> Any:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

        monkeypatch.setattr(generator.engine._manager.batch_processor.model_runner, "compute_batch", lost)
        with pytest.raises(Unavailable, match="stopped"):
            await answer(generator.engine, SOUND[0])
    finally:
        generator.close()
