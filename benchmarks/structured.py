"""Answers of a form: whether all that end are valid, by level, and what a grammar costs a step.

Random schemas, those that are refused by name left out, are answered over the gateway's API at every level, streamed
and whole in turn, eight at once by OpenAI's client; what ends with `stop` is judged by `jsonschema`, what `max_tokens`
cuts is counted apart. Then the same prompts with and without a grammar, for the cost.

Usage: python -u -m benchmarks.structured [--schemas N] [--tokens N] [--paragraphs N]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import openai
import torch
import yaml

from benchmarks.structured_support import Engine, client_of, schemas
from deployments.config import REPOSITORY, AppArgs, Task
from deployments.contracts.grammar import Grammar, GrammarKind
from deployments.engines.text.calibration import BUNDLED, MIN_PARAGRAPHS
from deployments.engines.text.generator import Generator
from deployments.engines.text.grammars.matcher import Matcher
from policies.errors import InvalidRequest
from policies.terms import Share
from tests.deployments.schema_support import Schema, valid

LEVELS = (1.0, 0.9, 0.7)
TOGETHER = 8
SECRET = b"a secret for a benchmark"
QUESTION: Any = [{"role": "user", "content": "Answer in JSON, in as few words as you can."}]
FREE = "[a-zA-Z ,.]{200,}"
"""An expression that allows about what a model would say anyhow, for the cost alone."""


class Clock:
    """Processor seconds of each mask, and of each token taken, of all answers from now on."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        Matcher.fill = self._timed(Matcher.fill)  # type: ignore[method-assign]

    def _timed(self, call: Callable[..., None]) -> Callable[..., None]:
        def timed(*args: Any) -> None:
            began = time.thread_time()
            call(*args)
            self.seconds.append(time.thread_time() - began)

        return timed

    def told(self) -> str:
        """Their number, mean, 99th percentile and most, in milliseconds."""
        each = sorted(self.seconds) or [0.0]
        mean, late = sum(each) / len(each), each[int(0.99 * (len(each) - 1))]
        return (
            f"{len(each)} masks: mean {mean * 1000:.2f} ms, p99 {late * 1000:.2f} ms, most {each[-1] * 1000:.1f} ms"
            " of a processor"
        )


async def answered(generator: Generator, count: int) -> tuple[list[Schema], int]:
    """So many random schemas that are followed, and how many were refused by name on the way."""
    kept, refused = list[Schema](), 0
    for schema in schemas(2 * count):
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


async def validity(generator: Generator, engine: Engine, own: list[Schema], tokens: int) -> None:
    """Print, by level, what became of the answers."""
    free = asyncio.Semaphore(TOGETHER)

    async def one(client: openai.AsyncOpenAI, at: int, schema: Schema) -> str:
        form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
        drawn = {"temperature": at % 4 // 2 * 1.0, "seed": at, "max_tokens": tokens, "response_format": form}
        async with free:
            try:
                text, reason = await said(client, engine.model.id, bool(at % 2), **drawn)
            except openai.APIError as error:
                return f"not followed: {error}"
        if reason != "stop":
            return "cut by max_tokens"
        try:
            return "valid" if valid(schema, json.loads(text)) else f"INVALID {json.dumps(schema)} {text!r}"
        except ValueError:
            return f"NO JSON {json.dumps(schema)} {text!r}"

    for level in LEVELS:
        async with client_of(engine, level) as client:
            came = Counter(await asyncio.gather(*(one(client, at, schema) for at, schema in enumerate(own))))
        print(f"level {level}: {len(own)} schemas:", ", ".join(f"{n} {what}" for what, n in came.most_common()))
        generator.healthy()
    for level, (steps, agreed) in generator.audit().items():
        print(f"level {level}: {agreed / steps:.3f} of {steps} steps agree with the clean model, before the grammar")


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
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--paragraphs", type=int, default=MIN_PARAGRAPHS, help="of the bundled text, to calibrate on")
    options = parser.parse_args()
    args = yaml.safe_load((REPOSITORY / "serve_config.yaml").read_text())["applications"][0]["args"]
    spec = next(model for model in AppArgs.model_validate(args).models if model.task is Task.TEXT)
    generator = Generator.load(spec, torch.device("cpu"))
    try:
        with tempfile.TemporaryDirectory() as folder:
            text = Path(folder, "text.txt")
            text.write_text("\n\n".join(BUNDLED.read_text().split("\n\n")[: options.paragraphs]))
            generator.install(generator.fit(generator.calibration_sample(text), SECRET), SECRET)
        asyncio.run(_both(generator, options.schemas, options.tokens))
    finally:
        generator.close()


async def _both(generator: Generator, count: int, tokens: int) -> None:
    engine = Engine(generator)
    own, refused = await answered(generator, count)
    print(f"{len(own)} schemas to follow; {refused} others were refused by name")
    clock = Clock()
    await validity(generator, engine, own, tokens)
    print(clock.told())
    await cost(engine, tokens)


if __name__ == "__main__":
    main()
