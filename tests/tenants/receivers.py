"""A server on loopback that keeps what it is sent, for webhooks and billing systems."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass
class Receiver:
    """What it got, headers (names in lower case) and body; `answer` gives the status line and headers."""

    url: str = ""
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    answer: Callable[[], str | Awaitable[str]] = lambda: "204 No Content\r\n"


@asynccontextmanager
async def receiving(path: str = "/hook?token=hidden") -> AsyncIterator[Receiver]:
    """Listen on a free port."""
    receiver = Receiver()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in head[1:-2])}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            receiver.got.append((headers, body))
            receiver.paths.append(head[0].split()[1])
            said = receiver.answer()
            said = await said if inspect.isawaitable(said) else said
            length = "" if "Content-Length" in str(said) else "Content-Length: 0\r\n\r\n"
            writer.write(f"HTTP/1.1 {said}Connection: close\r\n{length}".encode())
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the other side was killed
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    receiver.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}{path}"
    try:
        yield receiver
    finally:
        server.close()
        await server.wait_closed()
