"""A first start: level 1.0 is served while the text model's lower levels are still being solved."""

from __future__ import annotations

from tests.e2e.conftest import TEXT, Application


def test_level_1_is_answered_while_lower_levels_are_being_solved(app: Application) -> None:
    status, said = app.met["readiness"]
    assert status == 200 and any(reason.startswith(f"model {TEXT}: levels below 1.0") for reason in said["reasons"])
    assert app.met["gold"] == (200, None)
    assert app.met["free"] == (503, "levels_pending")


def test_once_they_are_solved_they_are_served(app: Application) -> None:
    body = {"model": TEXT, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "temperature": 0}
    with app.client("free") as client:
        answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200 and float(answer.headers["x-utility"]) == 0.7
