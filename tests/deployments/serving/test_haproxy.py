"""Serve's HAProxy as our wrapper starts it: Serve's own template and binary, a server of ours behind, without Ray."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
import ray.serve._private.constants as serve_constants
import yaml
from ray._private import ray_constants
from ray.serve._private import haproxy as serve_haproxy
from ray.serve.config import HTTPOptions

from deployments.config import REPOSITORY
from deployments.serving import haproxy
from tests.e2e.conftest import free_port

HOOK = ray_constants.WORKER_PROCESS_SETUP_HOOK_ENV_VAR
BODY = b"x" * 100
HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n"


def variables(name: str) -> dict[str, str]:
    config: dict[str, Any] = yaml.safe_load((REPOSITORY / name).read_text())
    return dict(config["controller_options"]["runtime_env"]["env_vars"])


@dataclass
class Backend:
    """A server in the gateway's place: answers when told to, and sees clients leave."""

    asked: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    left: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            if (await reader.readuntil(b"\r\n\r\n")).startswith(b"POST"):
                await reader.readexactly(len(BODY))
                self.asked.release()
                with contextlib.suppress(ConnectionError):
                    await reader.read(1)
                self.left.release()
            else:
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                await writer.drain()
        writer.close()


@dataclass
class Door:
    port: int
    backend: Backend
    process: psutil.Process
    folder: Path
    admin: tuple[int, int]

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)


@pytest_asyncio.fixture
async def door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Door]:
    admin = (free_port(), free_port())
    for name, value in {
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(admin[0]),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(admin[1]),
        "AIM_HAPROXY_HEADER_TIMEOUT_S": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": "",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("RAY_SERVE_HAPROXY_BINARY_PATH")
    environment = dict(os.environ)
    haproxy.before_serve(environment)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(serve_haproxy, "RAY_SERVE_HAPROXY_BINARY_PATH", environment["RAY_SERVE_HAPROXY_BINARY_PATH"])
    backend, port = Backend(), free_port()
    listening = await asyncio.start_server(backend.serve, "127.0.0.1", 0)
    server = serve_haproxy.ServerConfig("one", "127.0.0.1", listening.sockets[0].getsockname()[1])
    config = serve_haproxy.HAProxyConfig(
        http_options=HTTPOptions(host="127.0.0.1", port=port),
        socket_path=str(tmp_path / "admin.sock"),
        server_state_base=str(tmp_path),
        server_state_file=str(tmp_path / "state"),
        metrics_enabled=False,
        metrics_port=admin[0],
        stats_port=admin[1],
        has_received_routes=True,
        is_head=True,
    )
    api = serve_haproxy.HAProxyApi(
        config,
        {"app": serve_haproxy.BackendConfig("app", "/", servers=[server], app_name="app")},
        str(tmp_path / "haproxy.cfg"),
    )
    await api.start()
    assert api._proc is not None
    try:
        yield Door(port, backend, psutil.Process(api._proc.pid), tmp_path, admin)
    finally:
        await api.stop()
        listening.close()


@pytest.mark.parametrize("apart_s", [0.0, 0.05])
async def test_a_client_that_leaves_a_whole_answer_is_noticed_and_costs_haproxy_nothing(
    door: Door, apart_s: float
) -> None:
    for _ in range(8):
        _, writer = await door.connect()
        writer.write(HEAD)
        if apart_s:
            await writer.drain()
            await asyncio.sleep(apart_s)
        writer.write(BODY)
        await door.backend.asked.acquire()
        writer.close()
    for _ in range(8):  # without the wrapper this never ends: the server is not told
        await door.backend.left.acquire()


async def test_what_only_an_operator_needs_is_for_this_machine_and_user(door: Door) -> None:
    listening = {c.laddr.port: c.laddr.ip for c in door.process.net_connections("inet") if c.status == "LISTEN"}
    assert {listening[port] for port in door.admin} == {"127.0.0.1"}
    assert stat.S_IMODE((door.folder / "admin.sock").stat().st_mode) == 0o600


@pytest.mark.parametrize("sent", [b"", HEAD[:40]], ids=["nothing", "half the headers"])
async def test_who_sends_no_headers_is_not_waited_for(door: Door, sent: bytes) -> None:
    reader, writer = await door.connect()
    writer.write(sent)
    answer = await reader.read()  # without a time limit this takes an hour
    assert answer == b"" or answer.startswith(b"HTTP/1.1 408 ")
    writer.close()


async def test_answers_still_come(door: Door) -> None:
    reader, writer = await door.connect()
    writer.write(b"GET /v1/models HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
    assert (await reader.read()).endswith(b"ok")
    writer.close()


async def test_the_template_still_has_what_the_wrapper_changes(door: Door) -> None:
    text = (door.folder / "haproxy.cfg").read_text()
    assert text.count("timeout http-request 1s") == 1
    assert f"bind 127.0.0.1:{door.admin[0]}" in text and f"bind 127.0.0.1:{door.admin[1]}" in text
    assert "mode 600 level admin" in text


@pytest.mark.parametrize("name", ["serve_config.yaml", "deploy/applications.yaml"])
def test_ray_still_reads_every_variable_of_the_configuration(name: str) -> None:
    """Where Ray renames one, it is ignored in silence: the hook's name is private to it."""
    given, source = variables(name), Path(serve_constants.__file__).read_text()
    assert given.pop(HOOK) == f"{haproxy.__name__}.{haproxy.before_serve.__name__}"
    assert [variable for variable in given if f'"{variable}"' not in source] == []


def test_both_configurations_say_the_same_to_serve() -> None:
    assert variables("serve_config.yaml") == variables("deploy/applications.yaml")


SEEN_BY_SERVE = """
import json, re, sys
from ray.serve._private import constants
print(json.dumps({n: str(v) for n, v in vars(constants).items() if re.search(sys.argv[1], n)}))
"""


def seen_by_serve(given: dict[str, str], names: str) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SEEN_BY_SERVE, names], env=os.environ | given, capture_output=True
    )
    return dict(json.loads(done.stdout))


def test_a_second_installation_has_no_port_or_path_of_the_first() -> None:
    """As docs/operations.md has it, and as Serve itself reads it; a port that Serve adds later makes this fail."""
    documented = (REPOSITORY / "docs" / "operations.md").read_text().partition("**Two installations")[2]
    second = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", documented, re.DOTALL)[0])
    names = r"^RAY_SERVE_(HAPROXY|FALLBACK|DIRECT_INGRESS)\w*_(PORT|PATH|LOC|BASE|FILE)$"
    own = seen_by_serve(variables("serve_config.yaml"), names)
    others = seen_by_serve(variables("serve_config.yaml") | second, names)
    shared = {name: value for name, value in own.items() if others[name] == value}
    assert shared == {"RAY_SERVE_HAPROXY_BINARY_PATH": ""}
    first_range, second_range = (
        range(int(seen["RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT"]), int(seen["RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT"]))
        for seen in (own, others)
    )
    assert not set(first_range) & set(second_range)
    assert set(own) - {"RAY_SERVE_HAPROXY_BINARY_PATH"} == set(second)


def test_a_binary_that_an_operator_names_is_wrapped_too(tmp_path: Path) -> None:
    own = tmp_path / "haproxy"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    environment = {"RAY_SERVE_HAPROXY_BINARY_PATH": str(own), "RAY_SERVE_HAPROXY_STATS_PORT": "9999"}
    haproxy.before_serve(environment)
    assert environment["AIM_HAPROXY"] == str(own)
    assert environment["RAY_SERVE_HAPROXY_BINARY_PATH"] == str(haproxy.WRAPPER)
    assert environment["RAY_SERVE_HAPROXY_STATS_PORT"] == "9999"
    again = dict(environment)
    haproxy.before_serve(again)
    assert again == environment


def test_a_binary_that_is_not_there_is_left_for_serve_to_complain_of(tmp_path: Path) -> None:
    environment = {"RAY_SERVE_HAPROXY_BINARY_PATH": str(tmp_path / "nowhere")}
    haproxy.before_serve(environment)
    assert environment == {"RAY_SERVE_HAPROXY_BINARY_PATH": str(tmp_path / "nowhere")}
