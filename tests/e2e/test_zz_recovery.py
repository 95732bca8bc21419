"""What the application survives: a killed replica, a restart, a client that leaves. Last, since it stops it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import CLASSIFIER, MAKE_SERVE, NOISE_SECRET, SEGMENTER, TEXT, Application
from tests.e2e.test_same_answer import TIERS, ask, same


def replica_pids(model: str) -> list[int]:
    """Processes of a model's replicas: Ray names a worker's process after its actor."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().decode(errors="replace")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if command.startswith("ray::ServeReplica") and model in command:
                found.append(int(entry.name))
    return found


def test_a_client_that_leaves_a_stream_frees_its_slot(app: Application) -> None:
    body = {"model": TEXT, "prompt": "Once upon a time", "max_tokens": 1000, "temperature": 0, "stream": True}
    app.tenants("create", "leaver", "--tier", "gold")
    app.tenants("set", "leaver", "concurrency=1")
    headers = {"Authorization": f"Bearer {app.tenants('key', 'create', 'leaver').strip()}"}
    with httpx.Client(base_url=app.base_url, headers=headers, timeout=60.0) as client:
        for _ in range(3):
            until = time.monotonic() + 30.0
            while True:
                with client.stream("POST", "/v1/completions", json=body) as response:
                    if response.status_code == 200:
                        next(response.iter_lines())
                        break
                # The lease of the stream before is settled a moment after its client has gone.
                assert response.status_code == 429 and time.monotonic() < until
                time.sleep(0.1)


def test_a_killed_replica_comes_back_and_nothing_hangs(app: Application, ship: bytes) -> None:
    pids = replica_pids(CLASSIFIER)
    assert len(pids) == 1
    statuses: list[int] = []

    def traffic(until: float) -> Iterator[int]:
        with app.client("free") as client:
            while time.monotonic() < until:
                yield client.post(f"/models/{CLASSIFIER}", content=ship).status_code

    with ThreadPoolExecutor(4) as pool:
        until = time.monotonic() + 12.0
        running = [pool.submit(lambda: list(traffic(until))) for _ in range(4)]
        time.sleep(2.0)
        os.kill(pids[0], signal.SIGKILL)
        for future in running:
            statuses += future.result()
    assert set(statuses) <= {200, 503}
    deadline = time.monotonic() + 180.0
    with app.client("free") as client:
        while (answer := client.post(f"/models/{CLASSIFIER}", content=ship)).status_code != 200:
            assert answer.status_code == 503 and "retry-after" in answer.headers
            assert time.monotonic() < deadline
            time.sleep(1.0)
    assert replica_pids(CLASSIFIER) != pids


@pytest.fixture
def answers(app: Application, ship: bytes, street: bytes) -> dict[tuple[str, str], Any]:
    pictures = {CLASSIFIER: ship, SEGMENTER: street, TEXT: b""}
    return {(tier, model): ask(app, tier, model, pictures[model]) for tier in TIERS for model in pictures}


def test_a_restart_by_make_serve_changes_no_answer_keeps_every_key_and_says_how_to_call(
    app: Application, answers: dict[tuple[str, str], Any], ship: bytes, street: bytes
) -> None:
    before, shown = dict(app.env), app.output()
    assert not any(app.key(tier) in shown for tier in TIERS)
    app.stop()
    assert app.readiness().get("status") != "ok"
    app.start(MAKE_SERVE)
    deadline = time.monotonic() + 60.0
    while "First calls" not in (said := app.output().removeprefix(shown)):
        assert time.monotonic() < deadline, said
        time.sleep(0.1)
    assert all(f"{tier.upper()}_KEY={app.key(tier)}" in said for tier in TIERS)
    assert all(f"{app.base_url}/{path}" in said for path in ("v1/chat/completions", f"models/{CLASSIFIER}"))
    assert (app.data / "serve.log").stat().st_size
    assert {k: v for k, v in app.env.items() if k.endswith("_KEY")} == {
        k: v for k, v in before.items() if k.endswith("_KEY")
    }
    pictures = {CLASSIFIER: ship, SEGMENTER: street, TEXT: b""}
    for (tier, model), answer in answers.items():
        assert same(ask(app, tier, model, pictures[model]), answer)


def test_no_secret_is_in_any_output(app: Application) -> None:
    secrets = [value for name, value in app.env.items() if name.endswith("_KEY")]
    secrets.append(NOISE_SECRET)
    secrets += [app.env[name].split("@")[0].rpartition(":")[2] for name in ("REDIS_URL", "OWNER_REDIS_URL")]
    secrets += app.created
    assert app.created
    logs = [
        app.data / "serve.log",
        app.console,
        *(app.data / "held").glob("*"),
        *Path("/tmp/ray/session_latest/logs").rglob("*"),
    ]
    for log in logs:
        if log.is_file():
            text = log.read_text(errors="replace")
            # What `make serve` shows a person on the console are the demo keys, and nothing else.
            shown = app.env.values() if log == app.console else ()
            assert not any(secret in text for secret in secrets if secret not in shown), log
    # What the command prints: a key only where it is made.
    for words in (["list"], ["export"], ["audit", "--json"], ["check"], ["key", "list", "demo-gold", "--json"]):
        app.tenants(*words)
    assert not any(secret in text for secret in secrets for text in app.printed)
    for text in refusals(app, secrets):
        assert not any(secret in text for secret in secrets), text
    records = dump(app)
    assert "usage:" in records and "audit" in records
    assert not any(secret in records for secret in secrets if secret != NOISE_SECRET)


def refusals(app: Application, secrets: list[str]) -> list[str]:
    """Bodies and headers of answers to mistakes, sent under real keys."""
    texts = []
    for secret in secrets:
        if not secret.startswith("sk-"):
            continue
        headers = {"Authorization": f"Bearer {secret}"}
        for method, path in (("POST", f"/models/{CLASSIFIER}"), ("POST", "/models/none"), ("GET", "/v1/nowhere")):
            answer = httpx.request(method, app.base_url + path, headers=headers, content=b"x", timeout=60.0)
            assert answer.status_code >= 400
            texts.append(f"{answer.headers}{answer.text}")
        texts.append(str(httpx.get(f"{app.base_url}/v1/entitlements", headers=headers, timeout=60.0).text))
    return texts


def dump(app: Application) -> str:
    """Every key of the store and what it holds."""
    commands = {
        "hash": ("HGETALL",),
        "string": ("GET",),
        "stream": ("XRANGE", "-", "+"),
        "zset": ("ZRANGE", "0", "-1"),
        "list": ("LRANGE", "0", "-1"),
    }
    texts = []
    for key in app.redis("--scan").splitlines():
        kind = app.redis("TYPE", key)
        if kind != "none":  # it has expired meanwhile
            command, *rest = commands[kind]
            texts.append(f"{key} {app.redis(command, key, *rest)}")
    return "\n".join(texts)
