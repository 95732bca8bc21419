"""Pieces of answers on their way to a gateway, several in one message: each message costs it a millisecond."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress
from dataclasses import replace

from deployments.contracts.catalog import TextDelta

PACE_S = 0.025
"""Pieces that come so soon after a message go with the next: nobody reads faster."""
WHOLE = math.inf
"""Of what is not streamed: one piece an answer, at its end."""


async def paced(deltas: AsyncGenerator[TextDelta], pace_s: float = PACE_S) -> AsyncGenerator[TextDelta]:
    """The pieces, those of one answer that come within `pace_s` seconds of the last message as one.

    An answer's first tokens and its end go at once, as does all that came before an error. Who closes it closes
    `deltas` as well.
    """
    held, coming = _Held(), None
    clock, due = asyncio.get_running_loop().time, -math.inf
    try:
        while True:
            if coming is None and not held:
                delta = await anext(deltas, None)
            else:
                coming = coming or asyncio.ensure_future(anext(deltas, None))
                await asyncio.wait([coming], timeout=max(0.0, due - clock()) if held and pace_s != WHOLE else None)
                ended, coming = (coming, None) if coming.done() else (None, coming)
                if ended is None or ended.exception() is not None:
                    for one in held.taken():
                        yield one
                    due = clock() + pace_s
                if ended is None:
                    continue
                delta = ended.result()
            hurry = delta is not None and held.add(delta)
            if delta is not None and (pace_s == WHOLE or not (hurry or clock() >= due)):
                continue
            for one in held.taken():
                yield one
            if delta is None:
                return
            due = clock() + pace_s
    finally:
        if coming is not None:
            coming.cancel()
            with suppress(BaseException):
                await coming


class _Held:
    """What waits for the next message, by answer; the one that came last stands last, since its totals are of all."""

    def __init__(self) -> None:
        self._held: dict[int, TextDelta] = {}
        self._begun: set[int] = set()

    def __len__(self) -> int:
        return len(self._held)

    def add(self, delta: TextDelta) -> bool:
        """Hold a piece; whether it is not to wait."""
        before = self._held.pop(delta.index, None)
        self._held[delta.index] = delta if before is None else _joined(before, delta)
        first = delta.tokens > 0 and delta.index not in self._begun
        if first:
            self._begun.add(delta.index)
        return first or delta.finish_reason is not None

    def taken(self) -> Iterator[TextDelta]:
        """All that is held, which is then nobody's."""
        held, self._held = self._held, {}
        return iter(held.values())


def _joined(before: TextDelta, after: TextDelta) -> TextDelta:
    """Two pieces of one answer as one; what counts from the beginning is as the later says."""
    text, logprobs = before.text + after.text, before.logprobs + after.logprobs
    return replace(after, text=text, tokens=before.tokens + after.tokens, logprobs=logprobs)
