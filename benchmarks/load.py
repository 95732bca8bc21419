"""An open load of mixed tenants and models on a running application, and how long its answers took.

Requests arrive by themselves (Poisson), whether or not earlier ones are answered, and each is timed from the moment at
which it was due: a server that stalls is charged for all whom it kept waiting. Latencies are kept in HDR histograms
(3 digits, 0.1 ms to 10 minutes), for each tenant and model, of text the first token's as well.

Usage: python -m benchmarks.load --rate 20 --seconds 60 [--env .data/demo.env] [--tenants gold=1,free=3]
           [--ask pictures:resnet18-cifar10:3] [--ask chat:smollm2-135m-instruct:1:16]
           [--json load.json] [--plot load.png] [--seed 0]

`--tenants` are names of keys in the environment file (GOLD_KEY is gold) and their shares, `--ask` is what is asked, of
which model, its share, and of chat the most tokens of an answer. JSON holds each histogram in HdrHistogram's own
compressed form, which its other tools read.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from hdrh.histogram import HdrHistogram
from PIL import Image

from tenants.admin.seed import read_env

MOST_S = 600.0
PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
PICTURES = 256
"""Different ones."""


@dataclass(frozen=True)
class Ask:
    """One kind of request and its share.

    Attributes:
        kind: `pictures` or `chat`.
        tokens: of chat, most of an answer.
    """

    kind: str
    model: str
    share: float = 1.0
    tokens: int = 16

    @classmethod
    def read(cls, text: str) -> Ask:
        """`kind:model:share[:tokens]`. Raises argparse.ArgumentTypeError."""
        kind, model, *rest = text.split(":")
        if kind not in ("pictures", "chat") or not model:
            raise argparse.ArgumentTypeError(f"ask: '{text}' is not pictures:MODEL:SHARE or chat:MODEL:SHARE:TOKENS")
        return cls(kind, model, float(rest[0]) if rest else 1.0, int(rest[1]) if len(rest) > 1 else 16)


def histogram() -> Any:
    """Of microseconds."""
    return HdrHistogram(100, round(MOST_S * 1e6), 3)


@dataclass
class Cell:
    """One tenant's requests of one model."""

    answers: Any = field(default_factory=histogram)
    first: Any = field(default_factory=histogram)
    statuses: Counter[str] = field(default_factory=Counter)
    tokens: int = 0

    def told(self) -> dict[str, Any]:
        """As JSON has it; milliseconds."""

        def of(kept: Any) -> dict[str, Any]:
            at = {f"p{q:g}": kept.get_value_at_percentile(q) / 1e3 for q in PERCENTILES}
            return at | {"max": kept.get_max_value() / 1e3, "hdr": kept.encode().decode()}

        first = of(self.first) if self.first.get_total_count() else None
        return {"statuses": dict(self.statuses), "tokens": self.tokens, "ms": of(self.answers), "first_token_ms": first}


def schedule(rate: float, seconds: float, seed: int) -> list[float]:
    """Seconds from the start at which requests are due."""
    chance, at, due = random.Random(seed), 0.0, list[float]()
    while (at := at + chance.expovariate(rate)) < seconds:
        due.append(at)
    return due


def pictures(seed: int) -> list[bytes]:
    """Small JPEGs, all different."""
    chance, files = np.random.default_rng(seed), list[bytes]()
    for _ in range(PICTURES):
        pixels = chance.integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file := io.BytesIO(), "JPEG")
        files.append(file.getvalue())
    return files


class Load:
    """Sends requests when they are due, and keeps what came of each.

    Args:
        base_url: of the application.
        keys: by tenant.
    """

    def __init__(self, base_url: str, keys: dict[str, str], seed: int) -> None:
        self.cells: dict[tuple[str, str], Cell] = {}
        self.late: Any = histogram()
        self._base, self._keys, self._files = base_url, keys, pictures(seed)

    async def run(self, due: Sequence[float], asks: Sequence[Ask], shares: dict[str, float], seed: int) -> float:
        """Send all; seconds until the last was answered."""
        chance = random.Random(seed + 1)
        connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=MOST_S)
        async with aiohttp.ClientSession(self._base, connector=connector, timeout=timeout) as session:
            began, running = time.perf_counter(), set[asyncio.Task[None]]()
            for number, at in enumerate(due):
                tenant = chance.choices(list(shares), list(shares.values()))[0]
                ask = chance.choices(asks, [one.share for one in asks])[0]
                await asyncio.sleep(max(0.0, began + at - time.perf_counter()))
                # What this tool itself was late by; where that is much, it measures itself.
                self.late.record_value(max(100, round((time.perf_counter() - began - at) * 1e6)))
                task = asyncio.create_task(self._one(session, tenant, ask, number, began + at))
                running.add(task)
                task.add_done_callback(running.discard)
            await asyncio.gather(*running)
            return time.perf_counter() - began

    async def _one(self, session: aiohttp.ClientSession, tenant: str, ask: Ask, number: int, due: float) -> None:
        cell = self.cells.setdefault((tenant, ask.model), Cell())
        headers = {"authorization": f"Bearer {self._keys[tenant]}"}
        try:
            send = self._picture if ask.kind == "pictures" else self._chat
            status = await send(session, ask, number, headers, cell, due)
        except (aiohttp.ClientError, TimeoutError) as error:
            status = type(error).__name__
        cell.statuses[status] += 1
        if status == "200":
            cell.answers.record_value(_since(due))

    async def _picture(
        self, session: aiohttp.ClientSession, ask: Ask, number: int, headers: dict[str, str], cell: Cell, due: float
    ) -> str:
        sent, kind = self._files[number % PICTURES], {"content-type": "image/jpeg"}
        async with session.post(f"/models/{ask.model}", data=sent, headers=headers | kind) as response:
            await response.read()
            return str(response.status)

    async def _chat(
        self, session: aiohttp.ClientSession, ask: Ask, number: int, headers: dict[str, str], cell: Cell, due: float
    ) -> str:
        turn = {"role": "user", "content": f"Tell me of the number {number}."}
        body = {"model": ask.model, "messages": [turn], "max_tokens": ask.tokens, "stream": True}
        options, begun = {"stream_options": {"include_usage": True}}, False
        async with session.post("/v1/chat/completions", json=body | options, headers=headers) as response:
            async for line in response.content:
                if response.status != 200 or not line.startswith(b"data: {"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    return str(event["error"].get("code") or "error")
                if not begun and any(choice["delta"].get("content") for choice in event["choices"]):
                    begun = True
                    cell.first.record_value(_since(due))
                cell.tokens += (event.get("usage") or {}).get("completion_tokens", 0)
            return str(response.status)


def _since(due: float) -> int:
    return max(100, round((time.perf_counter() - due) * 1e6))


def plot(cells: dict[tuple[str, str], Cell], path: Path) -> None:
    """Latency by percentile, one line for each tenant and model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    shares = 1.0 - np.logspace(0, -3, 200)
    for (tenant, model), cell in sorted(cells.items()):
        if cell.answers.get_total_count():
            values = [cell.answers.get_value_at_percentile(100.0 * share) / 1e3 for share in shares]
            axes.plot(1.0 / (1.0 - shares), values, label=f"{tenant}, {model}")
    axes.set(xscale="log", yscale="log", xlabel="percentile", ylabel="ms from when it was due")
    axes.set_xticks([1, 2, 10, 20, 100, 1000], ["0", "50", "90", "95", "99", "99.9"])
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")


def shares_of(text: str) -> dict[str, float]:
    """`gold=1,free=3`. Raises argparse.ArgumentTypeError."""
    try:
        return {name: float(share or 1.0) for name, _, share in (part.partition("=") for part in text.split(","))}
    except ValueError:
        raise argparse.ArgumentTypeError(f"tenants: '{text}' is not NAME=SHARE,...") from None


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", type=Path, default=Path(".data/demo.env"))
    parser.add_argument("--rate", type=float, required=True, help="requests a second, on average")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--tenants", type=shares_of, default="gold=1,silver=1,free=1")
    parser.add_argument("--ask", type=Ask.read, action="append")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    env = read_env(given.env)
    if missing := [name for name in given.tenants if f"{name.upper()}_KEY" not in env]:
        parser.error(f"tenants: {given.env} has no {missing[0].upper()}_KEY")
    load = Load(env["BASE_URL"], {name: env[f"{name.upper()}_KEY"] for name in given.tenants}, given.seed)
    asks = given.ask or [Ask("pictures", "resnet18-cifar10")]
    due = schedule(given.rate, given.seconds, given.seed)
    took = asyncio.run(load.run(due, asks, given.tenants, given.seed))
    late = load.late.get_value_at_percentile(99) / 1e3
    print(f"{len(due)} requests at {given.rate:g} a second, the last answered after {took:.1f} s; sent late by"
          f" {late:.1f} ms at most but for one in a hundred\n")  # fmt: skip
    print(
        "| tenant | model | answered | others | " + " | ".join(f"p{q:g} ms" for q in PERCENTILES) + " | first token |"
    )
    print("|---|" * 1 + "---|" * (len(PERCENTILES) + 4))
    told = {f"{tenant} {model}": cell.told() for (tenant, model), cell in sorted(load.cells.items())}
    for name, one in told.items():
        others = ", ".join(f"{code}: {count}" for code, count in one["statuses"].items() if code != "200")
        tenant, model = name.split(" ", 1)
        cells = " | ".join(f"{one['ms'][f'p{q:g}']:.1f}" for q in PERCENTILES)
        first = f"{one['first_token_ms']['p50']:.1f}" if one["first_token_ms"] else ""
        print(f"| {tenant} | {model} | {one['statuses'].get('200', 0)} | {others} | {cells} | {first} |")
    if given.json:
        setting = {"rate": given.rate, "seconds": given.seconds, "took": took, "sent_late_p99_ms": late}
        given.json.write_text(json.dumps(setting | {"cells": told}, indent=2))
    if given.plot:
        plot(load.cells, given.plot)


if __name__ == "__main__":
    main()
