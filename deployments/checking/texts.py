"""Checks of text models: loaded as a replica loads them, and compared with transformers' own forward."""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import closing

import torch

from deployments.checking.library import shortfalls
from deployments.checking.report import Report, size, took
from deployments.config import ModelSpec, resolve_path
from deployments.engines.text.calibration import calibrating
from deployments.engines.text.generator import Generator
from deployments.engines.text.loading.sources import located

PROMPT = "Write one sentence about the sea."
TOKENS = 32
"""Of an answer."""
CALIBRATION_STEPS = 15_500
"""About as many steps as a calibration of 100 prompts answers."""
TIE, HALF_TIE = 1e-3, 0.25
"""Logits nearer than this are told apart either way by sums in another order; in half precision, the other."""


def check_text(spec: ModelSpec, report: Report, device: torch.device, prompt: str | None, solve: bool) -> None:
    """Fill a report.

    Args:
        prompt: what to compare on.
        solve: whether to solve the levels, for which the model answers its calibration text.

    Raises:
        LoadError: it cannot be loaded, or answers otherwise than its own `generate`.
    """
    began = time.perf_counter()
    with closing(Generator.load(spec, device)) as generator:
        model = generator.language_model.model
        weights = sum(value.numel() * value.element_size() for value in model.state_dict().values())
        count = sum(value.numel() for value in model.parameters())
        report.facts["vocabulary"] = f"{generator.vocabulary:,} tokens; context of {generator.context:,}"
        report.facts["parameters"] = f"{count:,}, {size(weights)} in {spec.dtype} on {device.type}"
        report.facts["loaded in"] = took(time.perf_counter() - began)
        ids = _encoded(generator, report, prompt or PROMPT)
        answer = asyncio.run(generator.engine.greedy(ids, TOKENS))
        report.facts["answers"] = repr(generator.tokenizer.decode(answer, skip_special_tokens=True))
        each = _speed(spec, generator, report, ids)
        _levels(spec, report, each, None if not solve else generator)
    _compare(spec, report, device, ids, answer)


def _encoded(generator: Generator, report: Report, prompt: str) -> list[int]:
    if getattr(generator.tokenizer, "chat_template", None):
        report.facts["chat"] = "by the tokenizer's own template"
        return generator.encode_chat([{"role": "user", "content": prompt}])
    report.facts["chat"] = "none: the tokenizer has no chat template, so /v1/completions is all that is served"
    return generator.encode(prompt)


def _speed(spec: ModelSpec, generator: Generator, report: Report, ids: list[int]) -> float:
    """Seconds a token, of as many answers at a time as a step holds."""

    async def answers(count: int) -> int:
        told = await asyncio.gather(*(generator.engine.greedy(ids, TOKENS) for _ in range(count)))
        return sum(map(len, told))

    def timed(count: int) -> float:
        began = time.perf_counter()
        tokens = asyncio.run(answers(count))
        return (time.perf_counter() - began) / max(1, tokens)

    alone, together = timed(1), timed(spec.max_batch_size)
    report.facts["speed"] = (
        f"{1 / alone:.3g} tokens/s alone, {1 / together:.3g} of {spec.max_batch_size} answers together"
    )
    return together


def _levels(spec: ModelSpec, report: Report, each: float, generator: Generator | None) -> None:
    path = resolve_path(spec.calibration) if spec.calibration else None
    if path is None:
        report.facts["calibration"] = "none, without which the model is refused"
        report.problems.append(
            "levels below 1.0 need calibration: a text file of paragraphs as your users send them, separated by blank"
            " lines, some 100; put its path in calibration"
        )
        return
    if generator is None:
        told = f"{path.name}; answering it takes some {took(CALIBRATION_STEPS * each)} on this machine, beside traffic"
        report.facts["calibration"] = f"{told}; --levels does it now"
        return
    began = time.perf_counter()
    with closing(Generator.load(calibrating(spec), generator.device)) as other:
        calibration = other.fit(other.calibration_sample(path), secrets.token_bytes(32))
    report.facts["calibration"] = (
        f"{calibration.answers:,} steps of {path.name}; solved in {took(time.perf_counter() - began)}"
    )
    report.facts["floor"] = f"{calibration.floor:.2f}: about the lowest level; another noise secret moves it a little"


def _compare(spec: ModelSpec, report: Report, device: torch.device, ids: list[int], answer: list[int]) -> None:
    """After the engine is closed, so that the model is in memory once."""
    tie = TIE if spec.dtype == "float32" else HALF_TIE
    with located(spec) as source:
        below = shortfalls(spec, source.where, source.gguf_file, device, ids, answer)
    wrong = int((below > tie).sum())
    if wrong:
        first = int((below > tie).nonzero()[0, 0]) + 1
        report.problems.append(
            f"level 1.0 is not transformers' own greedy answer: {wrong} of {len(answer)} tokens, token {first} first"
        )
    told = f"{len(answer)} tokens, none below the highest logit by more than {float(below.max()):.1g}"
    report.facts["level 1.0"] = f"{'differs from' if wrong else 'equals'} transformers' own greedy answer: {told}"
