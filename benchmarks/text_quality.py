"""What a level of the text model loses at temperature 0, at which levels are solved, and above, at which clients ask.

*Agreement*: the chance that a token is the clean model's likeliest at the same step. *Overlap*: 1 less the total
variation distance between the modulated and the clean distribution that a token is drawn from. *Perplexity*: what the
clean model, at temperature 1, finds in the answers. *Tasks*: the chance that the answer drawn is the right one to its
end, exactly: the product of its tokens' chances, since noise at the final layer leaves the features of a given text
as they are.

Usage: python benchmarks/text_quality.py [--secrets N] [--solved DIR]
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, closing
from copy import deepcopy
from functools import cache
from itertools import product
from pathlib import Path
from statistics import mean, pstdev
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deployments.config import REPOSITORY
from deployments.engines.text.calibration import Answer
from deployments.engines.text.generator import Generator, SamplingParams
from policies.calibration.calibration import Calibration
from policies.calibration.sample import CalibrationSample
from policies.head.slots import Setting
from policies.terms import Share

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
from levels import SMOLLM2, text_prompts
from text_tasks import Item, tasks

LEVELS = (1.0, 0.9, 0.7)
TEMPERATURES = (0.0, 0.7, 1.0)
PROMPTS, STEPS = 20, 24
ROWS = 16
"""Texts of a forward."""


class Known(NamedTuple):
    """A right answer: the final layer's input [T, H] before each of its tokens, and these [T] int64."""

    features: Tensor
    tokens: Tensor


class Steps(NamedTuple):
    """Of each step of some answers [N]: agreement, overlap, and the clean model's surprise at its token, in nats."""

    agreement: Tensor
    overlap: Tensor
    surprise: Tensor


def distribution(logits: Tensor, temperature: float) -> Tensor:
    """What tokens are drawn from, [N, V]; at 0 all of it is on the highest logit."""
    if temperature:
        return (logits / temperature).softmax(dim=1)
    return torch.zeros_like(logits).scatter_(1, logits.argmax(dim=1, keepdim=True), 1.0)


def modulated(engine: Generator, features: Tensor, clean: Tensor, level: float) -> Tensor:
    """Clean logits [N, V] as a level answers them."""
    if level == 1.0:
        return clean
    return clean + engine.head.phi(features) @ engine.head.matrix_at(engine.head.position(Setting(level)))


def judged(engine: Generator, answer: Answer, level: float, temperature: float) -> Steps:
    """One answer's steps against the clean model at the same steps."""
    clean, tokens = engine.clean_logits(answer.features), torch.tensor(answer.tokens)[:, None]
    given = distribution(modulated(engine, answer.features, clean, level), temperature)
    top = given.gather(1, clean.argmax(dim=1, keepdim=True))[:, 0]
    overlap = torch.minimum(given, distribution(clean, temperature)).sum(dim=1)
    return Steps(top, overlap, -clean.log_softmax(dim=1).gather(1, tokens)[:, 0])


def drawn(engine: Generator, prompts: Sequence[list[int]], asked: Sequence[tuple[float, float]]) -> list[Answer]:
    """The engine's answers to all prompts at each (level, temperature), prompt by prompt; the seed is the prompt's."""
    room = asyncio.Semaphore(2 * engine.spec.max_batch_size)

    async def one(number: int, level: float, temperature: float) -> Answer:
        features: list[Tensor] = []
        params, share = SamplingParams(max_tokens=STEPS, temperature=temperature, seed=number), Share(flow="benchmark")
        tokens: list[int] = []
        run = engine.engine.run(prompts[number], params, Setting(level), share, features=features)
        async with room, aclosing(run) as pieces:
            async for piece in pieces:
                tokens += piece.tokens
        return Answer(tokens, torch.stack(features[: len(tokens)]))

    async def everything() -> list[Answer]:
        return list(await asyncio.gather(*(one(n, *terms) for n in range(len(prompts)) for terms in asked)))

    return asyncio.run(everything())


def measure_answers(engine: Generator, prompts: Sequence[list[int]], levels: Sequence[float]) -> dict[Any, Steps]:
    """By (level, temperature), the steps of the answers to all prompts."""
    asked = list(product(levels, TEMPERATURES))
    found = defaultdict(list)
    for answer, terms in zip(drawn(engine, prompts, asked), asked * len(prompts), strict=True):
        found[terms].append(judged(engine, answer, *terms))
    return {terms: Steps(*map(torch.cat, zip(*some, strict=True))) for terms, some in found.items()}


@torch.no_grad()
def known(engine: Generator, items: Sequence[Item]) -> Iterator[Known]:
    """Features of the right answers to a task's items, in no order; the examples, which all share, are read once."""
    model: Any = engine.language_model.model
    encode = engine.tokenizer.encode
    seen: list[Tensor] = []
    hook = engine.final.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        start = encode(items[0].shown)
        shown = model(torch.tensor([start]), use_cache=True).past_key_values
        alike: dict[tuple[int, int], list[list[int]]] = defaultdict(list)
        for item in items:
            asked, whole = encode(item.shown + item.asked), encode(item.shown + item.asked + item.answer)
            assert asked[: len(start)] == start and whole[: len(asked)] == asked
            alike[len(asked) - len(start), len(whole) - len(asked)].append(whole[len(start) :])
        for (before, length), texts in alike.items():
            for rows in torch.tensor(texts).split(ROWS):
                own = deepcopy(shown)
                own.batch_repeat_interleave(len(rows))
                model(rows, cache=own)
                features = seen.pop()[:, before - 1 : before - 1 + length].float()
                yield from (Known(f, t) for f, t in zip(features, rows[:, before:], strict=True))
    finally:
        hook.remove()


def right(engine: Generator, answers: Sequence[Known], level: float) -> dict[float, float]:
    """By temperature, the mean chance that the right answer is drawn."""
    chances: dict[float, list[float]] = {temperature: [] for temperature in TEMPERATURES}
    for features, tokens in answers:
        logits = modulated(engine, features, engine.clean_logits(features), level)
        for temperature, some in chances.items():
            some.append(float(distribution(logits, temperature).gather(1, tokens[:, None]).prod()))
    return {temperature: mean(some) for temperature, some in chances.items()}


def install(engine: Generator, sample: Callable[[], CalibrationSample], number: int, solved: Path | None) -> None:
    """Solve the levels under a secret, or take them from where an earlier run left them, and put on the head."""
    secret = hashlib.sha256(f"text quality {number}".encode()).digest()
    path = solved and solved / f"solved_{engine.fingerprint}_{number}.json"
    engine.uninstall()
    calibration = Calibration.load(path) if path and path.exists() else engine.fit(sample(), secret)
    if path:
        calibration.save(path)
    engine.uninstall()
    engine.install(calibration, secret)


def measures(
    engine: Generator, prompts: Sequence[list[int]], answers: dict[str, list[Known]], levels: Sequence[float]
) -> dict[tuple[float, float], list[float]]:
    """By (level, temperature): agreement, overlap, perplexity, and each task's share of right answers."""
    rows = {
        terms: [float(s.agreement.mean()), float(s.overlap.mean()), math.exp(float(s.surprise.mean()))]
        for terms, s in measure_answers(engine, prompts, levels).items()
    }
    for level in levels:
        for own in answers.values():
            for temperature, share in right(engine, own, level).items():
                rows[level, temperature].append(share)
    return rows


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--secrets", type=int, default=3, help="noise secrets to measure under")
    parser.add_argument("--solved", type=Path, help="folder where solved levels are kept and found again")
    arguments = parser.parse_args()
    with closing(Generator.load(SMOLLM2, torch.device("cpu"))) as engine:
        prompts = text_prompts(engine)[0][:PROMPTS]
        answers = {name: list(known(engine, items)) for name, items in tasks().items()}
        runs = [measures(engine, prompts, answers, LEVELS[:1])]
        sample = cache(engine.calibration_sample)
        for number in range(arguments.secrets):
            install(engine, sample, number, arguments.solved)
            runs.append(measures(engine, prompts, answers, LEVELS[1:]))
            print(f"secret {number} measured", flush=True)
    names = ("agreement", "overlap", "perplexity", *(f"{name} ({len(own)})" for name, own in answers.items()))
    print(f"| temperature | level | {' | '.join(names)} |\n|---|---|{'---|' * len(names)}")
    for temperature, level in product(TEMPERATURES, LEVELS):
        found = [run[level, temperature] for run in runs if (level, temperature) in run]
        cells = [_cell(values, 2 if at == 2 else 3) for at, values in enumerate(zip(*found, strict=True))]
        print(f"| {temperature} | {level} | {' | '.join(cells)} |")


def _cell(values: Sequence[float], digits: int) -> str:
    return f"{mean(values):.{digits}f}" + (f" ± {pstdev(values):.{digits}f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
