"""Clients that leave, against the running application: what stays behind of 200 of each kind, and what they are billed.

Each sends its body 50 ms after its headers, waits a little, and closes its connection: whole and streamed text, labels,
masks (pictures are answered whole). Then: how long until no lease is left, whether the model has a seat for the next
request at once, tokens billed beside tokens generated (decoding steps, as the audit counts them), and HAProxy's load.

    make serve                      # in another terminal
    python -m benchmarks.leavers
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from pathlib import Path

import httpx
import psutil

from benchmarks.running_support import CLASSIFIER, SEGMENTER, TEXT, Running, metric, picture, running, send_apart

LEVEL = "0.85"
"""One that nobody else is sold, so that its decoding steps are these tenants'."""
APART_S = 0.05
EXPORTED_S = 25.0
"""Replicas export every 5 s, Ray every 10 s."""


def haproxy_seconds() -> float:
    """Processor seconds of every HAProxy that runs."""
    spent = 0.0
    for process in psutil.process_iter(["name", "cpu_times"]):
        if process.info["name"] == "haproxy" and process.info["cpu_times"]:
            spent += process.info["cpu_times"].user + process.info["cpu_times"].system
    return spent


def kinds() -> dict[str, tuple[str, bytes, str, float]]:
    """Path, body, content type, and seconds that a client waits at most, by kind."""
    text = {"model": TEXT, "messages": [{"role": "user", "content": "Write a long story."}], "max_tokens": 400}
    whole, streamed = (json.dumps(text | {"stream": stream}).encode() for stream in (False, True))
    return {
        "text, whole": ("/v1/chat/completions", whole, "application/json", 2.0),
        "text, streamed": ("/v1/chat/completions", streamed, "application/json", 2.0),
        "labels": (f"/models/{CLASSIFIER}", picture("ship.jpg"), "image/jpeg", 0.1),
        "masks": (f"/models/{SEGMENTER}", picture("street.jpg"), "image/jpeg", 0.5),
    }


async def leave(app: Running, kind: str, key: str, rng: random.Random) -> None:
    """One client that comes and leaves."""
    path, body, content, most = kinds()[kind]
    writer = await send_apart(app.base_url, path, key, body, content, APART_S)
    await asyncio.sleep(rng.random() * most)
    writer.close()


async def measure(app: Running, kind: str, count: int, at_once: int, rng: random.Random) -> str:
    """A row of the table."""
    tenant, key = await app.tenant("leavers", {"utility": LEVEL})
    generated = await metric("aim_audit_answers", model=TEXT, level=LEVEL)
    turns, busy, began = asyncio.Semaphore(at_once), haproxy_seconds(), time.monotonic()

    async def one() -> None:
        async with turns:
            await leave(app, kind, key, rng)

    await asyncio.gather(*(one() for _ in range(count)))
    left = time.monotonic()
    while await app.leases(tenant) and time.monotonic() - left < 150.0:
        await asyncio.sleep(0.01)
    gone, leases = time.monotonic() - left, await app.leases(tenant)
    share = (haproxy_seconds() - busy) / (time.monotonic() - began)
    path, body, content, _ = kinds()[kind]
    free = time.monotonic()
    if kind.startswith("text"):
        body = json.dumps(json.loads(body) | {"max_tokens": 1, "stream": False}).encode()
    headers = {"authorization": f"Bearer {key}", "content-type": content}
    async with httpx.AsyncClient(base_url=app.base_url, timeout=150.0) as client:
        answer = await client.post(path, content=body, headers=headers)
    next_s = time.monotonic() - free
    used = await app.usage(tenant)
    steps = "-"
    if kind.startswith("text"):
        await asyncio.sleep(EXPORTED_S)
        steps = f"{await metric('aim_audit_answers', model=TEXT, level=LEVEL) - generated - 1:.0f}"
        used["tokens_out"] -= 1
    return (
        f"| {kind} | {count} | {leases} | {gone:.2f} s | {answer.status_code} in {next_s:.2f} s |"
        f" {used.get('requests', 0) - 1} | {used.get('images', 0)} | {used.get('tokens_out', 0)} | {steps} |"
        f" {100 * share:.1f} % |"
    )


async def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", type=Path, default=Path(".data/demo.env"), help="the application's demo.env")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--at-once", type=int, default=20)
    parser.add_argument("--kinds", nargs="*", default=list(kinds()), choices=list(kinds()))
    options = parser.parse_args()
    print(
        "| kind | left | leases after | none after | next request | requests billed | images billed |"
        " tokens billed | tokens generated | HAProxy, of a core |\n|---|---|---|---|---|---|---|---|---|---|"
    )
    async with running(options.env) as app:
        for kind in options.kinds:
            print(await measure(app, kind, options.count, options.at_once, random.Random(0)), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
