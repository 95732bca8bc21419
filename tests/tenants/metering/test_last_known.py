"""What is known of limits without asking the store."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tenants.metering import last_known, limits
from tenants.metering.last_known import LastKnown
from tenants.metering.limits import Judgement, Reading
from tenants.metering.meters import limits_of
from tests.tenants.requests import tenant


def test_what_was_told_ages_and_an_edit_makes_it_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("tenants.metering.last_known.time.monotonic", lambda: now)
    own, known = tenant(rpm=10, tpm=100), LastKnown()
    assert known.now(own) is None
    rpm, tpm = limits_of(own)
    known.tell(own, Judgement(None, 0, (Reading(rpm, 4, 30_000), Reading(tpm, 70, 50_000))))
    for later, left, reset in ((0.0, ("6", "30"), "30s"), (20.0, ("6", "30"), "10s"), (40.0, ("10", "30"), "0ms")):
        now = 1000.0 + later
        judgement = known.now(own)
        assert judgement is not None
        fields = limits.headers(judgement)
        assert (fields["x-ratelimit-remaining-requests"], fields["x-ratelimit-remaining-tokens"]) == left
        assert fields["x-ratelimit-reset-requests"] == reset
    assert known.now(replace(own, version="edited")) is None


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(last_known, "MOST", 3)
    own, known = tenant(rpm=10), LastKnown()
    keys = [replace(own, key_id=f"{number}") for number in range(5)]
    for key in keys:
        known.tell(key, Judgement())
    assert [known.now(key) is not None for key in keys] == [False, False, True, True, True]
