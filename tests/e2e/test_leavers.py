"""Clients that leave, their bodies apart from their headers as over any network: nothing stays, and it is billed."""

from __future__ import annotations

import json
import socket
import time
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from tests.e2e.conftest import CLASSIFIER, SEGMENTER, TEXT, Application

MOST = 1000
"""Tokens that a client asks for: more than are made before it is found to have left."""
LEAVERS = 4


def leave(app: Application, path: str, key: str, body: bytes, content: str, after_s: float) -> None:
    """Headers, a little later the body, and after a while the end of the connection, whatever came."""
    address = urlsplit(app.base_url)
    assert address.hostname and address.port
    with socket.create_connection((address.hostname, address.port)) as connection:
        head = f"POST {path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\ncontent-type: {content}\r\n"
        connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode())
        time.sleep(0.05)
        connection.sendall(body)
        time.sleep(after_s)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_text_whose_client_left_is_billed_as_far_as_it_went_and_frees_its_place(app: Application, stream: bool) -> None:
    tenant = f"leaver-{'streamed' if stream else 'whole'}"
    app.tenants("create", tenant, "--tier", "gold")
    app.tenants("set", tenant, "concurrency=1")
    key = app.tenants("key", "create", tenant).strip()
    body = {"model": TEXT, "prompt": "Once upon a time", "max_tokens": MOST, "temperature": 0, "stream": stream}
    headers = {"Authorization": f"Bearer {key}"}
    with app.client("gold") as client:
        for _ in range(LEAVERS):
            leave(app, "/v1/completions", key, json.dumps(body).encode(), "application/json", 0.6)
            # With one request at a time, the next is admitted only once the one before has let go.
            while client.post(
                "/v1/completions", json=body | {"max_tokens": 1, "stream": False}, headers=headers
            ).is_error:
                time.sleep(0.05)
    while (today := settled(app, tenant))["requests"] < 2 * LEAVERS:
        time.sleep(0.1)
    assert LEAVERS <= today["tokens_out"] < LEAVERS * MOST / 2
    assert today["tokens_in"] > 0


@pytest.mark.parametrize("model", [CLASSIFIER, SEGMENTER])
def test_pictures_whose_clients_left_keep_no_place(app: Application, model: str, street: bytes) -> None:
    tenant = f"leaver-{model}"
    app.tenants("create", tenant, "--tier", "gold")
    app.tenants("set", tenant, "concurrency=1")
    key = app.tenants("key", "create", tenant).strip()
    headers = {"Authorization": f"Bearer {key}"}
    with app.client("gold") as client:
        for _ in range(LEAVERS):
            leave(app, f"/models/{model}", key, street, "image/jpeg", 0.0)
            while client.post(f"/models/{model}", content=street, headers=headers).is_error:
                time.sleep(0.05)


def test_haproxy_is_started_by_our_wrapper_and_its_statistics_are_this_machines(app: Application) -> None:
    port = urlsplit(app.base_url).port
    found = [
        process
        for process in psutil.process_iter(["name"])
        if process.info["name"] == "haproxy"
        and any(c.laddr.port == port for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN)
    ]
    assert found
    for process in found:
        assert "-dS" in process.cmdline()
        assert {c.laddr.ip for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN} == {"127.0.0.1"}


def settled(app: Application, tenant: str) -> dict[str, Any]:
    """Today's usage of a tenant."""
    return dict(json.loads(app.tenants("usage", tenant, "--days", "1", "--json"))[0]["total"])
