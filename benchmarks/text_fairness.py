"""Fairness of the text engine between tenants, without HTTP: what a flood does to another tenant, and token shares.

- A tenant keeps 100 prompts queued; another of the same weight asks single prompts, each once the flood has been served
  as much as the one before it took: no more than its share. Its p95 time to the first token is compared with its value
  alone, twice, plus two engine steps.
- Two tenants of weights 3 and 1 keep 100 prompts queued each: the tokens written for each, while both wait.

    python -m benchmarks.text_fairness
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections import Counter
from contextlib import aclosing
from pathlib import Path

import torch

from benchmarks.tenancy_support import percentile
from benchmarks.text_support import PROMPTS, ask_engine, load_engine, spread, text_spec
from deployments.engines.text.generator import Generator, SamplingParams
from policies.terms import Modulation, Share
from tenants.store.embedded import EmbeddedValkey

QUEUED = 100
WEIGHTS = {"heavy": 3.0, "light": 1.0}


class Flood:
    """A tenant that always has so many prompts waiting or running, and what was written for it."""

    def __init__(self, engine: Generator, flow: str, weight: float, tokens: int) -> None:
        self.written: Counter[str] = Counter()
        self.gaps: list[float] = []
        self._engine, self._share, self._tokens = engine, Share(flow=flow, weight=weight), tokens
        self._tasks = [asyncio.create_task(self._client(number)) for number in range(QUEUED)]

    async def _client(self, number: int) -> None:
        while True:
            prompt = self._engine.encode_chat([{"role": "user", "content": PROMPTS[number % len(PROMPTS)]}])
            params, last = SamplingParams(max_tokens=self._tokens, temperature=0.0), 0.0
            async with aclosing(self._engine.generate(prompt, params, Modulation(), self._share)) as deltas:
                async for delta in deltas:
                    if not delta.tokens:  # its prompt is being read
                        continue
                    now = time.perf_counter()
                    self.written["prompt"] += delta.prompt_tokens if delta.completion_tokens == delta.tokens else 0
                    self.written["answer"] += delta.tokens
                    if last:
                        self.gaps.append(now - last)
                    last = now

    async def stop(self) -> None:
        """Cancel what waits and runs."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def singles(engine: Generator, count: int, tokens: int, weight: float, flood: Flood | None = None) -> list[float]:
    """Seconds to the first token of prompts asked one after the other, and of half the tokens at most."""
    ask = ask_engine(engine, (1.0,), flow="single", weight=weight)
    first: list[float] = []
    for number in range(count):
        before = flood.written.total() if flood else 0
        answer = await ask(0, PROMPTS[number % len(PROMPTS)], tokens)
        first.append(answer.first)
        while flood and (flood.written.total() - before) * weight < answer.prompt_tokens + answer.tokens:
            await asyncio.sleep(0.01)
    return first


async def delay(engine: Generator, options: argparse.Namespace) -> None:
    """What a flood of one tenant does to another's first token, parts with and without it next to each other."""
    alone: list[float] = []
    beside: list[float] = []
    gaps: list[float] = []
    for _ in range(options.parts):
        alone += await singles(engine, options.singles // options.parts, 4, 1.0)
        flood = Flood(engine, "flood", 1.0, options.tokens)
        while flood.written["answer"] < 2 * options.seats:
            await asyncio.sleep(0.01)
        flood.gaps.clear()
        beside += await singles(engine, options.singles // options.parts, 4, options.weight, flood)
        gaps += flood.gaps
        await flood.stop()
    step = statistics.median(gaps)
    bound = 2 * percentile(alone, 0.95) + 2 * step
    print(f"first token, ms (median / p95): alone {spread(alone)}, beside {QUEUED} queued prompts {spread(beside)}")
    print(f"a step of the flood, ms (median / p95): {spread(gaps)}")
    print(f"p95 beside the flood: {percentile(beside, 0.95) / bound:.2f} of twice its value alone plus two steps")


async def shares(engine: Generator, options: argparse.Namespace) -> None:
    """Tokens written for two tenants of weights 3 and 1 while both have prompts waiting."""
    floods = {flow: Flood(engine, flow, weight, options.tokens) for flow, weight in WEIGHTS.items()}
    target = options.shared_tokens
    while sum(flood.written["answer"] for flood in floods.values()) < target // 4:
        await asyncio.sleep(0.05)
    before = {flow: flood.written.copy() for flow, flood in floods.items()}
    while sum(flood.written["answer"] for flood in floods.values()) < target // 4 + target:
        await asyncio.sleep(0.05)
    done = {flow: flood.written - before[flow] for flow, flood in floods.items()}
    for flood in floods.values():
        await flood.stop()
    for kind in ("answer", "prompt"):
        counts = {flow: tokens[kind] for flow, tokens in done.items()}
        share = counts["heavy"] / sum(counts.values())
        entitled = WEIGHTS["heavy"] / sum(WEIGHTS.values())
        print(
            f"{kind} tokens, weights 3 and 1: {counts['heavy']} and {counts['light']}; share of the first {share:.3f}"
            f" of {entitled:.3f} ({share / entitled - 1:+.1%}), of the second ({(1 - share) / (1 - entitled) - 1:+.1%})"
        )


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--singles", type=int, default=30, help="single prompts, alone and beside the flood")
    parser.add_argument("--parts", type=int, default=3, help="how often the flood starts and ends")
    parser.add_argument("--weight", type=float, default=1.0, help="of the tenant with single prompts; the flood's is 1")
    parser.add_argument("--tokens", type=int, default=24, help="most tokens of a flooding answer")
    parser.add_argument(
        "--shared-tokens", type=int, default=1600, help="tokens of the answers that shares are taken of"
    )
    parser.add_argument("--seats", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="keeps the calibration between runs")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as temporary:
        valkey = await asyncio.to_thread(EmbeddedValkey, (options.folder or Path(temporary)) / "store")
        engine = await load_engine(text_spec(max_batch_size=options.seats), valkey.url)
        valkey.stop()
        try:
            await singles(engine, 2, 4, 1.0)
            await delay(engine, options)
            await shares(engine, options)
        finally:
            engine.close()


if __name__ == "__main__":
    asyncio.run(main())
