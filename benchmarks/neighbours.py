"""A noisy neighbour, against the running application: what one key's answers take alone, and beside a key that floods.

The neighbour sends, all it can, worst bodies within the limits (`benchmarks.intake`), prompts that fill the context,
25-megapixel pictures, uploads that break off, and bodies that trickle; then all of them at once. It runs in a process
of its own at the lowest priority, since its clients are not the server's to serve. The other key asks for labels of a
picture and for short chats, one after the other. Rounds alone and beside each flood take turns; figures are medians
over rounds.

    make serve                      # in another terminal
    python -m benchmarks.neighbours
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import itertools
import os
import re
import signal
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
from PIL import Image

from benchmarks.intake import bodies
from benchmarks.running_support import CLASSIFIER, SEGMENTER, TEXT, picture, running, send_apart
from benchmarks.tenancy_support import REPOSITORY, percentile

JSON, JPEG = "application/json", "image/jpeg"
CHAT, LABELS, MASKS = "/v1/chat/completions", f"/models/{CLASSIFIER}", f"/models/{SEGMENTER}"
Post = Callable[[str, bytes, str], Awaitable[None]]


def bad(post: Post) -> list[AsyncIterator[None]]:
    """Worst bodies within the limits, refused for what they ask."""
    named = [re.sub(rb'"model": ?"m"', f'"model":"{TEXT}"'.encode(), body, count=1) for body in bodies().values()]
    worst = [(CHAT if b'"messages"' in body[:60] else "/v1/completions", body) for body in named[1:]]

    async def client() -> AsyncIterator[None]:
        for path, body in itertools.cycle(worst):
            yield await post(path, body, JSON)

    return [client() for _ in range(8)]


def long(post: Post) -> list[AsyncIterator[None]]:
    """Prompts that nearly fill the context, each another."""

    async def client(own: int) -> AsyncIterator[None]:
        for number in itertools.count():
            words = f"{own} {number} " + "The quick brown fox jumps over the lazy dog. " * 190
            body = f'{{"model":"{TEXT}","max_tokens":4,"messages":[{{"role":"user","content":"{words}"}}]}}'
            yield await post(CHAT, body.encode(), JSON)

    return [client(own) for own in range(8)]


def large(post: Post) -> list[AsyncIterator[None]]:
    """Pictures of 25 megapixels in few bytes."""
    encoded = io.BytesIO()
    Image.effect_noise((625, 625), 80).convert("RGB").resize((5000, 5000)).save(encoded, "JPEG", quality=60)

    async def client(path: str) -> AsyncIterator[None]:
        while True:
            yield await post(path, encoded.getvalue(), JPEG)

    return [client(path) for path in (LABELS, MASKS) for _ in range(4)]


def broken(url: str, key: str) -> list[AsyncIterator[None]]:
    """Uploads that break off halfway."""

    async def client() -> AsyncIterator[None]:
        while True:
            with contextlib.suppress(OSError):
                writer = await send_apart(url, LABELS, key, b"x" * 2**20, JPEG, 0.0, declared=8 * 2**20)
                writer.close()
            yield await asyncio.sleep(0.01)

    return [client() for _ in range(8)]


def slow(url: str, key: str) -> list[AsyncIterator[None]]:
    """Bodies that trickle, a byte every half second."""

    async def client() -> AsyncIterator[None]:
        while True:
            with contextlib.suppress(OSError):
                writer = await send_apart(url, LABELS, key, b"x", JPEG, 0.0, declared=2**20)
                for _ in range(100):
                    writer.write(b"x")
                    await writer.drain()
                    yield await asyncio.sleep(0.5)
                writer.close()
            await asyncio.sleep(0.1)

    return [client() for _ in range(100)]


FLOODS = ("bad bodies", "long prompts", "25 megapixels", "broken uploads", "slow bodies")


async def flood(url: str, key: str, kinds: list[str]) -> None:
    """Send floods until a signal ends it, and print what came of them."""
    headers, came = {"authorization": f"Bearer {key}"}, Counter[str]()
    async with httpx.AsyncClient(
        base_url=url, headers=headers, timeout=150.0, limits=httpx.Limits(max_connections=None)
    ) as client:

        async def post(path: str, body: bytes, content: str) -> None:
            try:
                answer = await client.post(path, content=body, headers={"content-type": content})
            except httpx.HTTPError as error:
                came[type(error).__name__] += 1
                return
            came[str(answer.status_code)] += 1
            if answer.status_code in (429, 503):
                await asyncio.sleep(0.05)  # it is told to wait a second, and waits less

        async def drain(steps: AsyncIterator[None]) -> None:
            async for _ in steps:
                came["steps"] += 1

        made = {
            "bad bodies": lambda: bad(post),
            "long prompts": lambda: long(post),
            "25 megapixels": lambda: large(post),
            "broken uploads": lambda: broken(url, key),
            "slow bodies": lambda: slow(url, key),
        }
        floods = asyncio.gather(*(drain(steps) for kind in kinds for steps in made[kind]()))
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, floods.cancel)
        try:
            await floods
        except asyncio.CancelledError:
            print(", ".join(kinds), dict(came), file=sys.stderr)


async def ask(client: httpx.AsyncClient, seconds: float) -> dict[str, list[float]]:
    """Seconds that labels and short chats took, one after the other, for a while."""
    image, took = picture("ship.jpg"), defaultdict(list)
    chat = {"model": TEXT, "max_tokens": 8, "messages": [{"role": "user", "content": "Hi"}], "temperature": 0}
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for name, request in (("labels", {"url": LABELS, "content": image}), ("chat", {"url": CHAT, "json": chat})):
            began = time.monotonic()
            (await client.post(**request)).raise_for_status()  # type: ignore[arg-type]
            took[name].append(time.monotonic() - began)
    return took


async def beside(
    client: httpx.AsyncClient, url: str, key: str, kinds: list[str], seconds: float
) -> dict[str, list[float]]:
    """The same while the neighbour floods."""
    if not kinds:
        return await ask(client, seconds)
    command = [sys.executable, "-m", "benchmarks.neighbours", "--flood", *kinds]
    environment = os.environ | {"BENCH_URL": url, "BENCH_KEY": key}
    neighbour = await asyncio.create_subprocess_exec("nice", "-n", "19", *command, env=environment, cwd=REPOSITORY)
    try:
        await asyncio.sleep(4.0)  # it has started
        return await ask(client, seconds)
    finally:
        if neighbour.returncode is not None:
            raise RuntimeError(f"the neighbour ended by itself, with status {neighbour.returncode}")
        neighbour.terminate()
        await neighbour.wait()
        await asyncio.sleep(2.0)  # what it has begun is over


async def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", type=Path, default=Path(".data/demo.env"), help="the application's demo.env")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of a round beside one flood")
    parser.add_argument("--flood", nargs="+", choices=FLOODS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.flood:
        return await flood(os.environ["BENCH_URL"], os.environ["BENCH_KEY"], options.flood)
    floods = {"alone": [], **{kind: [kind] for kind in FLOODS}, "all at once": list(FLOODS)}
    figures: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    async with running(options.env) as app:
        _, own = await app.tenant("quiet", {"utility": "1.0"})
        _, noisy = await app.tenant("noisy", {"utility": "1.0"})
        headers = {"authorization": f"Bearer {own}"}
        async with httpx.AsyncClient(base_url=app.base_url, headers=headers, timeout=150.0) as client:
            await ask(client, 3.0)
            for _ in range(options.rounds):
                for name, kinds in floods.items():
                    for what, took in (await beside(client, app.base_url, noisy, kinds, options.seconds)).items():
                        figures[name, what].append((percentile(took, 0.5), percentile(took, 0.95)))
    print("| beside | labels p50 | p95 | p95 : alone | chat p50 | p95 | p95 : alone |\n|---|---|---|---|---|---|---|")
    for name in floods:
        cells = []
        for what in ("labels", "chat"):
            half, most = (statistics.median(values) for values in zip(*figures[name, what], strict=True))
            alone = statistics.median(value for _, value in figures["alone", what])
            cells.append(f"{1000 * half:.0f} ms | {1000 * most:.0f} ms | {most / alone:.2f}")
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    asyncio.run(main())
