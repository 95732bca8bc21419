"""One call, many answers: several prompts, `n` answers of each, as one stream of pieces that say whose they are."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from deployments.config import ModelSpec
from deployments.contracts.catalog import TextDelta
from deployments.contracts.spending import Meter
from deployments.engines.text.generator import Generator, SamplingParams
from policies.errors import InvalidRequest
from policies.terms import Modulation, Share


async def answer(
    generator: Generator,
    prompts: Sequence[list[int]],
    params: Mapping[str, Any],
    modulation: Modulation,
    share: Share,
    *,
    param: str,
    meter: Meter | None = None,
) -> AsyncGenerator[TextDelta]:
    """Answer each of several prompts `n` times. Closing it cancels all that is not finished.

    Args:
        prompts: token ids of each.
        params: `SamplingParams` by name and `n`; None is the default: of `max_tokens`, which never goes beyond it, all
            that the context has room for; of how tokens are drawn the model's own.
        param: the field that a refusal of a prompt names.
        meter: told what is used.

    Raises:
        InvalidRequest, NotEntitled, Unavailable: as `Generator.generate`; before anything is generated where a request
            cannot be answered as a whole.
    """
    for ids in prompts:
        generator.language_model.encoder.checked(ids, param)
    given = {name: value for name, value in params.items() if value is not None}
    n, most = given.pop("n", 1), given.pop("max_tokens", None)
    _check_count(generator.spec, len(prompts), n)
    fields = {**generator.language_model.sampling, **given}
    asked = [SamplingParams(**fields, max_tokens=_most(generator, ids, most)) for ids in prompts]
    for ids, own in zip(prompts, asked, strict=True):
        generator.check(ids, own, modulation, param=param)
    read = [(0, 0)] * len(prompts)
    streams = [
        _numbered(
            generator.generate(ids, own, modulation, share, param=param, choice=choice, meter=meter),
            at,
            at * n + choice,
            read,
        )
        for at, (ids, own) in enumerate(zip(prompts, asked, strict=True))
        for choice in range(n)
    ]
    async with aclosing(_merged(streams)) as deltas:
        async for delta in deltas:
            yield delta


def _check_count(spec: ModelSpec, prompts: int, n: int) -> None:
    """Refuse more answers than a tenant may have seated and waiting together: to try again would never help."""
    most = spec.max_queue_per_tenant + spec.max_batch_size
    if prompts * n > most:
        asked = f"n is {n}" if prompts == 1 else f"{prompts} prompts with n of {n}"
        raise InvalidRequest(
            f"{asked}, but {spec.id} takes at most {most} answers of one tenant at a time"
            f" ({spec.max_batch_size} at work, {spec.max_queue_per_tenant} waiting); ask for fewer.",
            param="n",
            code="too_many_answers",
        )


def _most(generator: Generator, prompt: list[int], asked: int | None) -> int:
    room = max(1, generator.context - len(prompt))
    return room if asked is None else min(asked, room)


async def _numbered(
    deltas: AsyncGenerator[TextDelta], at: int, index: int, read: list[tuple[int, int]]
) -> AsyncGenerator[TextDelta]:
    """The pieces of answer `index`, to prompt `at`; `read` is how much of each prompt any answer to it has read, and
    how much of that was in the cache before any had."""
    async with aclosing(deltas):
        async for delta in deltas:
            before, cached = read[at]
            # Of several answers to a prompt the first to begin reads it for the others.
            read[at] = max(before, delta.prompt_tokens), cached if before else delta.cached_tokens
            whole, in_cache = map(sum, zip(*read, strict=True))
            yield dataclasses.replace(delta, index=index, prompt_tokens=whole, cached_tokens=in_cache)


async def _merged(streams: Sequence[AsyncGenerator[TextDelta]]) -> AsyncGenerator[TextDelta]:
    """The pieces of all streams as they come; the first error ends all of them."""
    if len(streams) == 1:
        async with aclosing(streams[0]) as only:
            async for delta in only:
                yield delta
        return
    pieces: asyncio.Queue[TextDelta | BaseException | None] = asyncio.Queue()

    async def pump(stream: AsyncGenerator[TextDelta]) -> None:
        try:
            async with aclosing(stream):
                async for delta in stream:
                    pieces.put_nowait(delta)
            pieces.put_nowait(None)
        except Exception as error:
            pieces.put_nowait(error)

    tasks = [asyncio.create_task(pump(stream)) for stream in streams]
    try:
        running = len(tasks)
        while running:
            piece = await pieces.get()
            if isinstance(piece, BaseException):
                raise piece
            if piece is None:
                running -= 1
            else:
                yield piece
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
