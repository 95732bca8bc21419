"""A batch's lines as requests of this very API, so that each meets what any other request does."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Scope

from deployments.gateway.batches.lines import BATCH_LINE, Answer, Ask, Caller, Line


def asker(app: ASGIApp) -> Ask:
    """What makes a line's request of an API, without a network between."""

    async def ask(line: Line, caller: Caller, request_id: str) -> Answer:
        sent: list[Message] = []
        unread: list[Message] = [{"type": "http.request", "body": line.body, "more_body": False}]

        async def receive() -> Message:
            if unread:
                return unread.pop()
            # Nobody hangs up: an application that listens for it waits until it has answered.
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: Message) -> None:
            sent.append(message)

        await app(_scope(line, caller, request_id), receive, send)
        head, body = sent[0], b"".join(message.get("body", b"") for message in sent[1:])
        return Answer(head["status"], {name.decode().lower(): value.decode() for name, value in head["headers"]}, body)

    return ask


def _scope(line: Line, caller: Caller, request_id: str) -> Scope:
    headers = {"content-type": "application/json", "content-length": str(len(line.body)), "x-request-id": request_id}
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": line.url,
        "raw_path": line.url.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": None,
        "server": None,
        BATCH_LINE: caller,
    }
