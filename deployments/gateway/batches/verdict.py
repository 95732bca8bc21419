"""Whether a line's answer is its result, or the line is to be asked again, or the whole batch has to end."""

from __future__ import annotations

from dataclasses import dataclass

from deployments.gateway.batches.lines import Answer

_PASSES = frozenset(
    ["levels_pending", "model_starting", "store_unavailable", "store_empty", "queue_full", "too_much_under_way"]
)
"""Codes of a 503 that ends by itself, whatever the line asks."""
_KEY_IS_OUT = frozenset(["invalid_api_key", "tenant_suspended", "entitlements_invalid"])
_TRIES = {408: 3, 500: 2, 502: 3, 503: 8, 504: 3}
"""How often a line is asked that fails by our own doing: one that brings a replica down must not do so for a day."""
_LONGEST_S = 30.0


@dataclass(frozen=True)
class Again:
    """Ask again after so many seconds; `counts` as one of the line's tries."""

    after_s: float
    counts: bool


@dataclass(frozen=True)
class Stop:
    """The batch ends: its key may do nothing any more."""

    code: str
    message: str


def judge(answer: Answer, tries: int) -> Again | Stop | None:
    """What to do after an answer, the line having been tried so often before; None: it is the line's result."""
    if answer.status < 400:
        return None
    code = answer.code
    if answer.status in (401, 403) and code in _KEY_IS_OUT:
        return Stop(str(code), "The API key that asked for this batch may do nothing any more.")
    if answer.status == 429:
        waits = answer.headers.get("x-should-retry") != "false"
        return Again(_asked(answer), False) if waits else None
    if answer.status == 503 and code in _PASSES:
        return Again(_asked(answer), False)
    if tries + 1 < _TRIES.get(answer.status, 0):
        return Again(min(_LONGEST_S, 2.0**tries), True)
    return None


def _asked(answer: Answer) -> float:
    """The pause that an answer asks for."""
    given = answer.headers.get("retry-after", "")
    return min(_LONGEST_S, max(0.5, float(given))) if given.isdigit() else 1.0
