"""A batch of 2,000 lines whose gateway is killed twice, on real processes: complete, and each line once."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai

from deployments.config import REPOSITORY
from tenants.admin import installation
from tenants.admin.admin import TenantAdmin
from tenants.metering.usage import read_days
from tenants.store.embedded import EmbeddedValkey
from tenants.store.store import TenantStore
from tests.tenants.conftest import until

LINES, ENDPOINT = 2000, "/models/labels"
AT_ONCE = 8


@contextmanager
def gateway(url: str, port: int, asked: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process of `batch_gateway`."""
    module = "tests.deployments.gateway.batch_gateway"
    command = [sys.executable, "-W", "ignore", "-m", module, str(port), str(asked)]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(REPOSITORY), "STORE_URL": url})
    try:
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def numbered(line: int) -> bytes:
    picture = base64.b64encode(f"picture-{line}".encode()).decode()
    body = {"inputs": picture}
    return json.dumps({"custom_id": f"line-{line}", "method": "POST", "url": ENDPOINT, "body": body}).encode()


async def test_two_thousand_lines_and_two_kills(tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with EmbeddedValkey(tmp_path / "store") as valkey:
        async with await TenantStore.connect(valkey.url, timeout_s=5.0) as store:
            await installation.create_secrets(store)
            admin = TenantAdmin(store, who="tester")
            await admin.create_tier("gold", {"utility": "1.0"})
            await admin.create_tenant("acme", tier="gold")
            key = (await admin.create_key("acme"))[0]
            client = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0)

            async def now() -> Any:
                try:
                    return await client.batches.retrieve(batch.id)
                except (openai.APIConnectionError, httpx.HTTPError):
                    return None

            async def done(least: int) -> bool:
                found = await now()
                return found is not None and found.request_counts.completed >= least

            with gateway(valkey.url, port, asked):
                await until(lambda: _answers(port), 120.0)
                data = b"\n".join(map(numbered, range(LINES)))
                file = await client.files.create(file=("in.jsonl", data), purpose="batch")
                endpoint: Any = ENDPOINT
                batch = await client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")
                await until(lambda: done(200), 120.0)
            with gateway(valkey.url, port, asked):
                await until(lambda: done(900), 120.0)
            with gateway(valkey.url, port, asked):
                await until(lambda: done(LINES), 120.0)
                await until(lambda: _completed(now), 60.0)
                found = await now()
                text = (await client.files.content(found.output_file_id)).text
                await asyncio.sleep(1.0)  # what is settled goes in rounds
                await client.close()
            used = (await read_days(store, "acme", 1))[0].total
    out = [json.loads(line) for line in text.splitlines()]
    assert [line["custom_id"] for line in out] == [f"line-{at}" for at in range(LINES)]
    assert [line["response"]["body"][0]["label"] for line in out] == [f"picture-{at}" for at in range(LINES)]
    assert (found.request_counts.completed, found.request_counts.failed) == (LINES, 0)
    times = Counter(asked.read_text().split())
    # What was under way at a kill is asked again, and nothing else.
    assert len(times) == LINES and sum(times.values()) <= LINES + 2 * AT_ONCE
    assert LINES - 200 <= used["requests"] <= LINES + 2 * AT_ONCE, "a settlement on its way at a kill may be lost"


async def _completed(now: Any) -> bool:
    found = await now()
    return found is not None and found.status == "completed"


async def _answers(port: int) -> bool:
    async with httpx.AsyncClient() as client:
        try:
            return (await client.get(f"http://127.0.0.1:{port}/healthz")).status_code == 200
        except httpx.HTTPError:
            return False
