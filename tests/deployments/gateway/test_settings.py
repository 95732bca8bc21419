"""A gateway's settings: changed while it serves, all of them or none, and a mistake keeps the old ones."""

from __future__ import annotations

from typing import Any

import pytest

from deployments.config import DRAIN_S, GatewayArgs, Scaling
from deployments.gateway.settings import Settings
from tests.deployments.gateway_support import Running

PAGE = {"origin": "https://app.example.com"}


@pytest.mark.parametrize(
    ("user_config", "says"),
    [
        ({"deadline_s": 0}, "deadline_s: Input should be greater than 0"),
        ({"deadline_s": DRAIN_S + 1}, f"deadline_s: {DRAIN_S + 1:g} is more than the {DRAIN_S:g} s"),
        ({"dead_line": 3}, "dead_line: Extra inputs are not permitted"),
        ({"cors_origins": "https://a.example"}, "cors_origins: Input should be a valid tuple"),
        ({"max_body_bytes": "many", "max_text_bytes": 1}, "max_body_bytes: "),
        ({"scaling": {"num_replicas": 2}}, "scaling: Extra inputs are not permitted"),
    ],
)
def test_a_mistake_is_refused_in_one_line_and_nothing_changes(
    user_config: dict[str, Any], says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(GatewayArgs(deadline_s=50.0))
    settings.change({"deadline_s": 60.0})
    settings.change({"body_timeout_s": 1.0} | user_config)
    assert settings.now.deadline_s == 60.0 and settings.now.body_timeout_s == 30.0
    assert says in settings.problem
    (line,) = capfd.readouterr().out.splitlines()
    assert says in line and "failed:" not in line  # which would end `make serve`
    settings.change({"deadline_s": 61.0})
    assert (settings.now.deadline_s, settings.problem) == (61.0, "")


def test_a_gateway_does_not_begin_with_a_mistake(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="deadline_s"):
        Settings(GatewayArgs()).change({"deadline_s": -1})
    assert "failed: gateway settings refused: deadline_s" in capfd.readouterr().out


def test_what_is_left_out_is_as_it_was_built() -> None:
    settings = Settings(GatewayArgs(deadline_s=50.0, scaling=Scaling(num_replicas=2)))
    settings.change({"deadline_s": 60.0, "max_text_bytes": 5000})
    settings.change({"max_text_bytes": 6000})
    assert (settings.now.deadline_s, settings.now.max_text_bytes) == (50.0, 6000)
    settings.change(None)
    assert (settings.now.deadline_s, settings.now.max_text_bytes) == (50.0, 2**20)


def test_a_longer_deadline_than_replicas_have_to_end_can_be_built_in() -> None:
    settings = Settings(GatewayArgs(deadline_s=2 * DRAIN_S))
    settings.change({"deadline_s": 1.5 * DRAIN_S})
    assert settings.now.deadline_s == 1.5 * DRAIN_S and not settings.problem


async def test_requests_meet_what_was_set_last(running: Running) -> None:
    body, key = b"x" * 3000, await running.key()

    async def status() -> int:
        return (await running.client.post("/v1/completions", content=body, headers=key)).status_code

    assert await status() != 413
    running.gateway.reconfigure({"max_text_bytes": 2000, "cors_origins": [PAGE["origin"]]})
    assert await status() == 413
    allowed = await running.client.get("/healthz", headers=PAGE)
    assert allowed.headers["access-control-allow-origin"] == PAGE["origin"]
    running.gateway.reconfigure({"max_text_bytes": 20})
    assert await status() == 413  # a mistake: what was set last stands
    said = (await running.client.get("/readyz")).json()
    assert said["status"] == "partial" and "max_text_bytes" in said["reasons"][0]
    running.gateway.reconfigure(None)
    assert await status() != 413
    assert "access-control-allow-origin" not in (await running.client.get("/healthz", headers=PAGE)).headers
    assert (await running.client.get("/readyz")).json() == {"status": "ok", "reasons": []}
