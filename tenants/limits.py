"""Limits in words and numbers: what a refused client is told, what every client's headers say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from policies.errors import LimitExceeded
from tenants.entitlements import Entitlements
from tenants.records import LimitFields

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
    """What is used of a tenant's limits, or of a key's own; `*_reset_ms` is the time until nothing is."""

    requests_used: int = 0
    requests_reset_ms: int = 0
    tokens_used: int = 0
    tokens_reset_ms: int = 0
    running: int = 0
    quotas_used: tuple[int, ...] = (0,) * len(QUOTAS)


@dataclass(frozen=True, slots=True)
class Judgement:
    """Whether a request may run: the limit that forbids it or "", and what is used.

    `wait_ms` is the time until a retry can succeed, -1 if none can. `of_key`: the limit is the API key's own.
    """

    verdict: str
    of_key: bool
    wait_ms: int
    tenant: Standing
    key: Standing | None


def scopes(entitlements: Entitlements) -> list[tuple[str, LimitFields]]:
    """Whose limits a request counts against: its tenant's (""), and its key's (by id) where that has any."""
    own = entitlements.key_limits
    return [("", entitlements.limits), *([(entitlements.key_id, own)] if own is not None else [])]


def as_arguments(limits: LimitFields) -> list[int]:
    """The limits in the order of `admit.lua`."""
    values = [getattr(limits, name) for name in ("rpm", "tpm", "concurrency", *QUOTAS)]
    return [_UNLIMITED if value is None else value for value in values]


def read_answer(answer: Sequence[bytes | int]) -> Judgement:
    """`admit.lua`'s answer."""
    verdict, numbers = answer[0], [int(value) for value in answer[1:]]
    whose, wait_ms, *rest = numbers
    size = 5 + len(QUOTAS)
    standings = [_standing(rest[i : i + size]) for i in range(0, len(rest), size)]
    name = verdict.decode() if isinstance(verdict, bytes) else str(verdict)
    return Judgement(name, whose == 2, wait_ms, standings[0], standings[1] if len(standings) > 1 else None)


def _standing(numbers: list[int]) -> Standing:
    requests, requests_reset, tokens, tokens_reset, running, *quotas = numbers
    return Standing(requests, requests_reset, tokens, tokens_reset, running, tuple(quotas))


def exceeded(entitlements: Entitlements, judgement: Judgement) -> LimitExceeded:
    """The error that a judgement's verdict means."""
    name, wait_ms = judgement.verdict, judgement.wait_ms
    _, limits = scopes(entitlements)[judgement.of_key]
    limit = f"{getattr(limits, name)}"
    of_key = " for this API key" if judgement.of_key else ""
    hopeless = wait_ms == _NO_WAIT_HELPS
    retry_after = WINDOW_S if hopeless else max(1, math.ceil(wait_ms / 1000))
    advice = "This request alone is beyond it." if hopeless else f"Try again in {retry_after} s."
    match name.split("_"):
        case ["quota", what, period]:
            message = f"Quota used up: {limit} {what} per {period} (UTC){of_key}. {advice}"
            return LimitExceeded(message, retry_after=retry_after, retry_soon=False, code="quota_exceeded")
        case ["concurrency"]:
            message = f"Concurrency limit reached: {limit} requests at a time{of_key}. Retry when one has ended."
            code = "concurrency_limit_exceeded"
        case _:
            what = "requests" if name == "rpm" else "tokens"
            message = f"Rate limit reached: {limit} {what} per minute{of_key}. {advice}"
            code = "rate_limit_exceeded"
    return LimitExceeded(message, retry_after=retry_after, retry_soon=not hopeless, code=code)


def headers(entitlements: Entitlements, judgement: Judgement) -> dict[str, str]:
    """`x-ratelimit-{limit,remaining,reset}-{requests,tokens}`, for those limits that are set.

    Where a tenant and its key both have one, the one with less left speaks.
    """
    fields: dict[str, str] = {}
    pairs = _pairs(entitlements, judgement)
    for what, name, used, reset in (
        ("requests", "rpm", "requests_used", "requests_reset_ms"),
        ("tokens", "tpm", "tokens_used", "tokens_reset_ms"),
    ):
        known = [
            (max(0, limit - getattr(standing, used)), limit, getattr(standing, reset))
            for limits, standing in pairs
            if (limit := getattr(limits, name)) is not None
        ]
        if known:
            left, limit, reset_ms = min(known)
            fields[f"x-ratelimit-limit-{what}"] = str(limit)
            fields[f"x-ratelimit-remaining-{what}"] = str(left)
            fields[f"x-ratelimit-reset-{what}"] = duration(reset_ms)
    return fields


def remaining(entitlements: Entitlements, judgement: Judgement) -> dict[str, float]:
    """What is left of each limit that is set, by its name: the lesser of what tenant and key have left."""
    left: dict[str, float] = {}
    for limits, standing in _pairs(entitlements, judgement):
        used = {"rpm": standing.requests_used, "tpm": standing.tokens_used, "concurrency": standing.running}
        used |= dict(zip(QUOTAS, standing.quotas_used, strict=True))
        for name, count in used.items():
            limit = getattr(limits, name)
            if limit is not None:
                left[name] = min(left.get(name, math.inf), float(max(0, limit - count)))
    return left


def _pairs(entitlements: Entitlements, judgement: Judgement) -> list[tuple[LimitFields, Standing]]:
    standings = [judgement.tenant, *([judgement.key] if judgement.key is not None else [])]
    return [(limits, standing) for (_, limits), standing in zip(scopes(entitlements), standings, strict=True)]


def duration(milliseconds: int) -> str:
    """As OpenAI writes it: `12ms`, `17s`, `6m0s`; seconds are rounded up."""
    if milliseconds < 1000:
        return f"{max(0, milliseconds)}ms"
    seconds = math.ceil(milliseconds / 1000)
    return f"{seconds}s" if seconds < 60 else f"{seconds // 60}m{seconds % 60}s"
