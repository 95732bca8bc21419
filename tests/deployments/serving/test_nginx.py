"""deploy/nginx.conf in a real nginx: slow and oversized clients, streams, headers, and a gateway that is away."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from deployments.config import REPOSITORY
from tests.e2e.conftest import free_port
from tests.tenants.tls import make_certificates

CONFIG = REPOSITORY / "deploy" / "nginx.conf"
pytestmark = pytest.mark.skipif(
    shutil.which("nginx") is None or shutil.which("openssl") is None,
    reason="needs nginx (Debian: nginx-light) and openssl",
)


class Upstream:
    """An ASGI application in the gateway's place: keeps what it is asked, and answers as a test says."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.asked = 0
        self.go_on = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One HTTP/1.1 request after another."""
        while True:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                return writer.close()
            line, *fields = head.decode().strip().split("\r\n")
            self.headers = {name.lower(): value for name, _, value in (field.partition(": ") for field in fields)}
            await reader.readexactly(int(self.headers.get("content-length", 0)))
            self.asked += 1
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-type: text/event-stream\r\n\r\n")
            writer.write(b"5\r\nfirst\r\n")
            await writer.drain()
            if "/stream" in line:
                await self.go_on.wait()
            writer.write(b"4\r\nlast\r\n0\r\n\r\n")
            await writer.drain()


@dataclass
class Proxy:
    port: int
    upstream: Upstream
    client: httpx.AsyncClient
    context: ssl.SSLContext
    listening: asyncio.Server

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, ssl=self.context)


def adapted(folder: Path, port: int, upstream: int) -> str:
    """The file with this machine's addresses, paths and shorter times; each must be there."""
    text, user = CONFIG.read_text(), "user root;\n" if os.getuid() == 0 else ""
    for old, new in {
        "/run/nginx-aim.pid": f"{folder}/pid",
        "/var/log/nginx/error.log": f"{folder}/error.log",
        "listen 443": f"listen 127.0.0.1:{port}",
        "/etc/nginx/tls": str(folder),
        "127.0.0.1:8000": f"127.0.0.1:{upstream}",
        "client_header_timeout 10s": "client_header_timeout 1s",
        "client_body_timeout 10s": "client_body_timeout 1s",
        "by_address 200": "by_address 5",
        "events {": f"daemon off;\n{user}error_log {folder}/error.log;\nevents {{",
        "http {": "http {\n"
        + "".join(
            f"    {of}_temp_path {folder}/{of};\n" for of in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        ),
    }.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


@pytest_asyncio.fixture
async def proxy(tmp_path: Path) -> AsyncIterator[Proxy]:
    make_certificates(tmp_path)
    upstream, port = Upstream(), free_port()
    listening = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
    own = listening.sockets[0].getsockname()[1]
    (tmp_path / "nginx.conf").write_text(adapted(tmp_path, port, own))
    command = ["nginx", "-c", str(tmp_path / "nginx.conf"), "-p", str(tmp_path)]
    checked = subprocess.run([*command, "-t"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    process = subprocess.Popen(command)
    context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            break
        except OSError:
            assert process.poll() is None, (tmp_path / "error.log").read_text()
            await asyncio.sleep(0.02)
    async with httpx.AsyncClient(base_url=f"https://127.0.0.1:{port}", verify=context) as client:
        yield Proxy(port, upstream, client, context, listening)
    process.terminate()
    process.wait()
    upstream.go_on.set()
    listening.close()


async def until_closed(reader: asyncio.StreamReader) -> bytes:
    """All that comes until nginx closes the connection."""
    said = b""
    try:
        while part := await reader.read(1000):
            said += part
    except (ConnectionResetError, ssl.SSLError):
        pass
    return said


@pytest.mark.parametrize(
    "half",
    [
        b"",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{",
    ],
    ids=["nothing", "half of the headers", "half of the body"],
)
async def test_who_sends_half_a_request_is_let_go_and_the_gateway_never_hears_of_it(proxy: Proxy, half: bytes) -> None:
    reader, writer = await proxy.connect()
    writer.write(half)
    await writer.drain()
    await until_closed(reader)
    writer.close()
    assert proxy.upstream.asked == 0


async def test_a_stream_comes_as_it_is_made(proxy: Proxy) -> None:
    async with proxy.client.stream("POST", "/stream", content=b"{}") as answer:
        pieces = answer.aiter_raw()
        assert await anext(pieces) == b"first"  # the upstream waits for this before it goes on
        proxy.upstream.go_on.set()
        assert b"".join([piece async for piece in pieces]) == b"last"


def said(answer: httpx.Response) -> tuple[int, Any]:
    return answer.status_code, answer.json()["error"]["code"]


async def test_what_nginx_refuses_looks_like_what_the_gateway_refuses(proxy: Proxy) -> None:
    assert said(await proxy.client.post("/models/m", content=b"x" * (18 * 2**20))) == (413, "body_too_large")
    assert (await proxy.client.post("/models/m", content=b"x" * (16 * 2**20))).status_code == 200
    held = [await proxy.connect() for _ in range(6)]
    for _, writer in held:
        writer.write(b"GET /stream HTTP/1.1\r\nhost: x\r\n\r\n")
    heads = [await reader.readuntil(b"\r\n\r\n") for reader, _ in held]
    assert sum(b" 429 " in head and b"Retry-After: 1" in head for head in heads) == 1
    for _, writer in held:
        writer.close()


async def test_a_gateway_that_is_away_is_a_503(proxy: Proxy) -> None:
    proxy.listening.close()
    await proxy.listening.wait_closed()
    answer = await proxy.client.get("/healthz")
    assert said(answer) == (503, "server_away") and answer.headers["retry-after"] == "5"


async def test_headers_that_clients_must_not_set_are_kept_from_the_gateway(proxy: Proxy) -> None:
    sent = {"authorization": "Bearer k", "x-request-id": "mine-1", "x-request-timeout-seconds": "9999"}
    await proxy.client.get("/v1/models", headers=sent)
    assert proxy.upstream.headers["authorization"] == "Bearer k"
    assert proxy.upstream.headers["x-request-id"] == "mine-1"
    assert proxy.upstream.headers["x-forwarded-proto"] == "https"
    assert "x-request-timeout-seconds" not in proxy.upstream.headers
    await proxy.client.get("/v1/models", headers={"x-request-id": "a b\t<c>"})
    assert "x-request-id" not in proxy.upstream.headers


def test_its_refusals_are_json() -> None:
    bodies = [line.split("'")[1] for line in CONFIG.read_text().splitlines() if "return " in line]
    assert {json.loads(body)["error"]["code"] for body in bodies} == {
        "body_too_large", "too_many_connections", "server_away"
    }  # fmt: skip
