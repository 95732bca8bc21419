"""Answers of a form: whether all that end are valid, by level, and what a grammar costs a step.

Random schemas (our own generator over hypothesis: hypothesis-jsonschema does not run with the hypothesis of today),
those that are refused by name left out, are each answered over the gateway's API at a level, then at the next ones for
as long as there is time, streamed and whole in turn, eight at once by OpenAI's client; what ends with `stop` is judged
by `jsonschema`, what `max_tokens` cuts is counted apart. Then a prompt with and without a grammar, for the cost.

Usage: python -u -m benchmarks.structured [--schemas N] [--tokens N] [--minutes N] [--paragraphs N] [--calibration FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import openai
import torch

from benchmarks.structured_support import Clock, Engine, Watch, client_of, schemas
from benchmarks.text_support import text_spec
from deployments.contracts.grammar import Grammar, GrammarKind
from deployments.engines.text.calibration import BUNDLED, MIN_PARAGRAPHS
from deployments.engines.text.generator import Generator
from policies.calibration.calibration import Calibration
from policies.errors import InvalidRequest
from policies.terms import Share
from tests.deployments.schema_support import Schema, valid

LEVELS = (1.0, 0.9, 0.7)
TOGETHER = 8
SECRET = b"a secret for a benchmark"
VALID, CUT = "valid", "cut by max_tokens"
QUESTION: Any = [{"role": "user", "content": "Answer in JSON, in as few words as you can."}]
FREE = "[a-zA-Z ,.]{200,}"
"""An expression that allows about what a model would say anyhow, for the cost alone."""


async def answered(generator: Generator, count: int) -> tuple[list[Schema], int]:
    """So many random schemas that are followed, and how many were refused by name on the way."""
    kept, refused = list[Schema](), 0
    for schema in schemas(3 * count // 2):
        if len(kept) == count:
            break
        try:
            grammar = Grammar(GrammarKind.SCHEMA, json.dumps(schema), "response_format")
            await generator.grammars.matcher(grammar, Share(flow="benchmark"))
            kept.append(schema)
        except InvalidRequest:
            refused += 1
    return kept, refused


async def said(client: openai.AsyncOpenAI, model: str, streamed: bool, **fields: Any) -> tuple[str, str]:
    """An answer's text, and why it ended."""
    asked: dict[str, Any] = {"model": model, "messages": QUESTION, **fields}
    if not streamed:
        choice = (await client.chat.completions.create(**asked)).choices[0]
        return str(choice.message.content), str(choice.finish_reason)
    async with client.chat.completions.stream(**asked) as stream:
        choices = [event.chunk.choices[0] async for event in stream if event.type == "chunk" and event.chunk.choices]
    return "".join(choice.delta.content or "" for choice in choices), str(choices[-1].finish_reason)


async def validity(engine: Engine, own: list[Schema], tokens: int, minutes: float) -> None:
    """Answer each schema once, at the levels in turn, then each at the next one, and so on; print what became of them.

    Args:
        minutes: after which no answer is begun.
    """
    free, began = asyncio.Semaphore(TOGETHER), time.monotonic()
    clients = {level: client_of(engine, level) for level in LEVELS}
    came = {(level, streamed): Counter[str]() for level in LEVELS for streamed in (False, True)}

    async def one(at: int, schema: Schema, level: float, streamed: bool) -> None:
        form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
        drawn = {"temperature": at % 4 // 2 * 1.0, "seed": at, "max_tokens": tokens, "response_format": form}
        async with free:
            if time.monotonic() - began > 60 * minutes:
                return
            try:
                what = judged(schema, *await said(clients[level], engine.model.id, streamed, **drawn))
            except openai.APIError as error:
                what = f"not followed: {error}"
        came[level, streamed][what] += 1
        if what not in (VALID, CUT):
            print(level, "streamed" if streamed else "whole", what, json.dumps(schema), flush=True)

    for turn in range(len(LEVELS)):
        turned = [(LEVELS[(at + turn) % 3], bool((at // 3 + turn) % 2)) for at in range(len(own))]
        await asyncio.gather(*(one(at, schema, *turned[at]) for at, schema in enumerate(own)))
        print(f"{sum(map(Counter.total, came.values()))} answers in {time.monotonic() - began:.0f} s:", flush=True)
        for (level, streamed), each in came.items():
            kinds = ", ".join(f"{n} {what}" for what, n in each.most_common())
            print(f"  level {level}, {'streamed' if streamed else 'whole'}: {kinds}", flush=True)
    for client in clients.values():
        await client.close()


def judged(schema: Schema, text: str, reason: str) -> str:
    """What became of an answer."""
    if reason != "stop":
        return CUT
    try:
        return VALID if valid(schema, json.loads(text)) else f"INVALID {text!r}"
    except ValueError:
        return f"NO JSON {text!r}"


async def cost(engine: Engine, tokens: int) -> None:
    """Print processor milliseconds a step of eight answers, with and without a grammar, measured in turn."""
    ways: dict[str, dict[str, Any]] = {
        "no grammar": {},
        "an expression": {"extra_body": {"guided_regex": FREE}},
        "any object": {"response_format": {"type": "json_object"}},
    }

    async def eight(client: openai.AsyncOpenAI, fields: dict[str, Any]) -> float:
        async def ask() -> int:
            asked: dict[str, Any] = {"model": engine.model.id, "messages": QUESTION, "max_tokens": tokens, **fields}
            answer = await client.chat.completions.create(temperature=0, **asked)
            return int(answer.usage.completion_tokens)

        began = time.process_time()
        asked: list[Awaitable[int]] = [ask() for _ in range(TOGETHER)]
        steps = max(await asyncio.gather(*asked))
        return (time.process_time() - began) / steps

    async with client_of(engine, 1.0) as client:
        rounds = [{what: await eight(client, fields) for what, fields in ways.items()} for _ in range(4)][1:]
    for what in ways:
        each = [one[what] for one in rounds]
        print(f"{what}: {min(each) * 1000:.1f} ms of processors a step of {TOGETHER} answers, least of {len(each)}")


def main() -> None:
    """Load the served text model, calibrate it, and run both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schemas", type=int, default=500)
    parser.add_argument("--tokens", type=int, default=48, help="most of an answer")
    parser.add_argument("--minutes", type=float, default=6.0, help="for the answers, of which none begins later")
    parser.add_argument("--paragraphs", type=int, default=MIN_PARAGRAPHS, help="of the bundled text, to calibrate on")
    parser.add_argument("--calibration", type=Path, help="a file to keep the calibration in, and to take it from")
    options = parser.parse_args()
    generator = Generator.load(text_spec(), torch.device("cpu"))
    try:
        calibrate(generator, options.paragraphs, options.calibration)
        asyncio.run(_both(generator, options))
    finally:
        generator.close()


def calibrate(generator: Generator, paragraphs: int, kept: Path | None) -> None:
    """Give the engine its levels, solved on some paragraphs, or as they are kept in a file."""
    if kept is not None and kept.exists():
        generator.install(Calibration.from_json(kept.read_text()), SECRET)
        return
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text.txt")
        text.write_text("\n\n".join(BUNDLED.read_text().split("\n\n")[:paragraphs]))
        solved = generator.fit(generator.calibration_sample(text), SECRET)
    print(f"calibrated on {paragraphs} paragraphs in {time.perf_counter() - began:.0f} s", flush=True)
    if kept is not None:
        kept.write_text(solved.to_json())
    generator.install(solved, SECRET)


async def _both(generator: Generator, options: argparse.Namespace) -> None:
    engine = Engine(generator)
    began = time.perf_counter()
    own, refused = await answered(generator, options.schemas)
    took = time.perf_counter() - began
    print(f"{len(own)} schemas to follow, found in {took:.0f} s; {refused} others were refused by name", flush=True)
    clock, watch = Clock(), Watch()
    await validity(engine, own, options.tokens, options.minutes)
    generator.healthy()
    print(clock.told())
    for line in watch.told():
        print(line)
    for level, (steps, agreed) in generator.audit().items():
        print(f"level {level}: {agreed / steps:.3f} of {steps} steps agree with the clean model, before the grammar")
    await cost(engine, options.tokens)


if __name__ == "__main__":
    main()
