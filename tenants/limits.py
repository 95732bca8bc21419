"""Limits in words and numbers: what a refused client is told, what every client's headers say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from policies.errors import LimitExceeded
from tenants.entitlements import Limits

QUOTAS = (
    "quota_requests_day",
    "quota_requests_month",
    "quota_images_day",
    "quota_images_month",
    "quota_tokens_day",
    "quota_tokens_month",
)
"""In the order of `admit.lua`."""
WINDOW_S = 60
_UNLIMITED = -1
_NO_WAIT_HELPS = -1


@dataclass(frozen=True, slots=True)
class Standing:
    """What is used of a tenant's limits; `*_reset_ms` is the time until nothing is."""

    requests_used: int = 0
    requests_reset_ms: int = 0
    tokens_used: int = 0
    tokens_reset_ms: int = 0
    running: int = 0
    quotas_used: tuple[int, ...] = (0,) * len(QUOTAS)


def as_arguments(limits: Limits) -> list[int]:
    """The limits in the order of `admit.lua`."""
    values = [getattr(limits, name) for name in ("rpm", "tpm", "concurrency", *QUOTAS)]
    return [_UNLIMITED if value is None else value for value in values]


def read_answer(answer: Sequence[bytes | int]) -> tuple[str, int, Standing]:
    """`admit.lua`'s answer: the limit that forbids the request or "", milliseconds to wait, and the standing."""
    verdict, numbers = answer[0], [int(value) for value in answer[1:]]
    name = verdict.decode() if isinstance(verdict, bytes) else str(verdict)
    wait_ms, requests, requests_reset, tokens, tokens_reset, running, *quotas = numbers
    return name, wait_ms, Standing(requests, requests_reset, tokens, tokens_reset, running, tuple(quotas))


def exceeded(name: str, limits: Limits, wait_ms: int) -> LimitExceeded:
    """The error for the limit `name`; `wait_ms` is the time until a retry can succeed, -1 if none can."""
    limit = getattr(limits, name)
    hopeless = wait_ms == _NO_WAIT_HELPS
    retry_after = WINDOW_S if hopeless else max(1, math.ceil(wait_ms / 1000))
    advice = "This request alone is beyond it." if hopeless else f"Try again in {retry_after} s."
    match name.split("_"):
        case ["quota", what, period]:
            message = f"Quota used up: {limit} {what} per {period} (UTC). {advice}"
            return LimitExceeded(message, retry_after=retry_after, retry_soon=False, code="quota_exceeded")
        case ["concurrency"]:
            message = f"Concurrency limit reached: {limit} requests at a time. Retry when one has ended."
            code = "concurrency_limit_exceeded"
        case _:
            what = "requests" if name == "rpm" else "tokens"
            message = f"Rate limit reached: {limit} {what} per minute. {advice}"
            code = "rate_limit_exceeded"
    return LimitExceeded(message, retry_after=retry_after, retry_soon=not hopeless, code=code)


def headers(limits: Limits, standing: Standing) -> dict[str, str]:
    """`x-ratelimit-{limit,remaining,reset}-{requests,tokens}`, for those limits that are set."""
    fields: dict[str, str] = {}
    for what, limit, used, reset_ms in (
        ("requests", limits.rpm, standing.requests_used, standing.requests_reset_ms),
        ("tokens", limits.tpm, standing.tokens_used, standing.tokens_reset_ms),
    ):
        if limit is not None:
            fields[f"x-ratelimit-limit-{what}"] = str(limit)
            fields[f"x-ratelimit-remaining-{what}"] = str(max(0, limit - used))
            fields[f"x-ratelimit-reset-{what}"] = duration(reset_ms)
    return fields


def remaining(limits: Limits, standing: Standing) -> dict[str, float]:
    """What is left of each limit that is set, by its name."""
    used = {"rpm": standing.requests_used, "tpm": standing.tokens_used, "concurrency": standing.running}
    used |= dict(zip(QUOTAS, standing.quotas_used, strict=True))
    set_limits = {name: getattr(limits, name) for name in used if getattr(limits, name) is not None}
    return {name: float(max(0, limit - used[name])) for name, limit in set_limits.items()}


def duration(milliseconds: int) -> str:
    """As OpenAI writes it: `12ms`, `17s`, `6m0s`; seconds are rounded up."""
    if milliseconds < 1000:
        return f"{max(0, milliseconds)}ms"
    seconds = math.ceil(milliseconds / 1000)
    return f"{seconds}s" if seconds < 60 else f"{seconds // 60}m{seconds % 60}s"
