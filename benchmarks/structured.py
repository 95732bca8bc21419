"""Answers of a form: whether all that end are valid, by level, and what a grammar costs a token.

Random schemas, some of them refused by name; each of the others is answered at every level, eight requests at once,
and what ends with `stop` is judged by `jsonschema`. Then the same prompts with and without a grammar, for the cost.

Usage: python -m benchmarks.structured [--schemas N] [--tokens N] [--uncalibrated]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
import yaml
from hypothesis import HealthCheck, Phase, given, settings

from deployments.config import REPOSITORY, AppArgs, Task
from deployments.contracts.grammar import Grammar, GrammarKind
from deployments.engines.text.choices import answer
from deployments.engines.text.generator import Generator
from policies.errors import InvalidRequest
from policies.terms import Disclosure, Modulation, Share
from tests.deployments.schema_support import Schema, random_schemas, valid

LEVELS = (1.0, 0.9, 0.7)
TOGETHER = 8
SECRET = b"a secret for a benchmark"
QUESTION = [{"role": "user", "content": "Answer in JSON, in as few words as you can."}]
FREE = "[a-zA-Z ,.]{200,}"
"""An expression that allows about what a model would say anyhow, for the cost alone."""


def schemas(count: int) -> list[Schema]:
    """Different ones, the same each time."""
    found: dict[str, Schema] = {}

    @settings(
        max_examples=count * 20,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(random_schemas())
    def collect(schema: Schema) -> None:
        if len(found) < count:
            found.setdefault(json.dumps(schema), schema)

    collect()
    return list(found.values())


async def asked(generator: Generator, level: float, grammar: Grammar | None, **params: Any) -> tuple[str, str, int]:
    """An answer's text, why it ended, and its tokens."""
    prompts = generator.language_model.encoder.prompts(QUESTION)[1]
    terms = Modulation(utility=level, disclosure=Disclosure(logprobs=True))
    given_params = params | ({} if grammar is None else {"grammar": grammar})
    pieces = [piece async for piece in answer(generator, prompts, given_params, terms, Share(flow="benchmark"))]
    return "".join(piece.text for piece in pieces), str(pieces[-1].finish_reason), pieces[-1].completion_tokens


async def validity(generator: Generator, levels: Sequence[float], count: int, tokens: int) -> None:
    """Print, by level, how many schemas were refused and answered, and what became of the answers."""
    own, free = schemas(count), asyncio.Semaphore(TOGETHER)

    async def one(level: float, at: int, schema: Schema) -> str:
        async with free:
            try:
                grammar = Grammar(GrammarKind.SCHEMA, json.dumps(schema), "response_format")
                drawn = {"temperature": at % 2 * 1.0, "seed": at, "max_tokens": tokens}
                text, reason, _ = await asked(generator, level, grammar, **drawn)
            except InvalidRequest as error:
                return "refused" if error.message.startswith("Invalid schema") else "not followed"
        if reason != "stop":
            return "cut"
        try:
            return "valid" if valid(schema, json.loads(text)) else f"INVALID {json.dumps(schema)} {text!r}"
        except ValueError:
            return f"NO JSON {json.dumps(schema)} {text!r}"

    for level in levels:
        came = Counter(await asyncio.gather(*(one(level, at, schema) for at, schema in enumerate(own))))
        print(f"level {level}: {len(own)} schemas:", ", ".join(f"{n} {what}" for what, n in came.most_common()))
    generator.healthy()
    for level, (steps, agreed) in generator.audit().items():
        print(f"level {level}: {agreed / steps:.3f} of {steps} steps agree with the clean model, before the grammar")


async def cost(generator: Generator, tokens: int) -> None:
    """Print milliseconds a step of eight answers, with and without a grammar."""
    for what, grammar in (
        ("no grammar", None),
        ("an expression", Grammar(GrammarKind.REGEX, FREE, "guided_regex")),
        ("any object", Grammar(GrammarKind.SCHEMA, '{"type": "object"}', "response_format")),
    ):
        for _ in range(2):  # the first warms up
            began = time.perf_counter()
            drawn = {"temperature": 0.0, "max_tokens": tokens}
            told = await asyncio.gather(*(asked(generator, 1.0, grammar, **drawn) for _ in range(TOGETHER)))
            seconds = time.perf_counter() - began
        steps = max(count for _, _, count in told)
        print(f"{what}: {seconds / steps * 1000:.1f} ms a step of {TOGETHER} answers, {steps} steps")


def main() -> None:
    """Load the served text model, calibrate it, and run both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schemas", type=int, default=500)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--uncalibrated", action="store_true", help="level 1.0 alone")
    options = parser.parse_args()
    args = yaml.safe_load((REPOSITORY / "serve_config.yaml").read_text())["applications"][0]["args"]
    spec = next(model for model in AppArgs.model_validate(args).models if model.task is Task.TEXT)
    generator = Generator.load(spec, torch.device("cpu"))
    levels = (1.0,) if options.uncalibrated else LEVELS
    try:
        if not options.uncalibrated:
            generator.install(generator.fit(generator.calibration_sample(), SECRET), SECRET)
        asyncio.run(_both(generator, levels, options.schemas, options.tokens))
    finally:
        generator.close()


async def _both(generator: Generator, levels: Sequence[float], count: int, tokens: int) -> None:
    await cost(generator, tokens)
    await validity(generator, levels, count, tokens)


if __name__ == "__main__":
    main()
