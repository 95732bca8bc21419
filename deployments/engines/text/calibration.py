"""Calibrating a text model: it answers paragraphs greedily, and every level is solved on the steps of its answers.

The answers are those of the engine that serves: prompts are sent to it as requests are, at positions of the ladder in
place of levels.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from deployments.config import REPOSITORY, ModelSpec
from deployments.engines.errors import LoadError
from deployments.engines.text.loading.language_models import LanguageModel
from policies.calibration.answering import CANDIDATES, LEVELS, MOST_PROMPTS, PILOT, STEPS
from policies.calibration.candidates import Candidates
from policies.calibration.sample import CalibrationSample
from policies.head.slots import Setting

if TYPE_CHECKING:
    from deployments.engines.text.generator import Generator

BUNDLED = REPOSITORY / "models" / "smollm2-135m-instruct" / "calibration.txt"
MIN_PARAGRAPHS = 20
_MAX_PROMPT = 256
SEQUENCES = 32
"""Of a step of the engine that calibrates, which serves nobody: it is as fast again as with eight."""
T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """One answer of the engine.

    Attributes:
        tokens: T of them; the last may be an end token.
        features: [T, H] float32 on the CPU, the final layer's input at each.
    """

    tokens: list[int]
    features: Tensor


def calibrating(spec: ModelSpec) -> ModelSpec:
    """A model as the engine that calibrates it is to run: more answers at a time, none of them long."""
    context = 2 * _MAX_PROMPT
    return spec.model_copy(
        update={
            "max_batch_size": max(SEQUENCES, spec.max_batch_size),
            "max_context": min(context, spec.max_context or context),
        }
    )


def calibration_steps(
    generator: Generator, path: Path | None, progress: Callable[[str, float], None]
) -> CalibrationSample:
    """The model's own decoding steps, answering some paragraphs of a text file at full quality: the pilot.

    Its `answered` has all paragraphs answered near each of some levels, once the pilot shows where those lie.

    Args:
        path: paragraphs separated by blank lines; None: the text written for this project.
        progress: told how far it is.

    Raises:
        LoadError: no such file, or fewer than 20 paragraphs that fit the context.
    """
    chosen, _ = split_paragraphs(path or BUNDLED)
    every = sorted((prompt_of(generator.language_model, paragraph) for paragraph in chosen), key=len)
    prompts = [prompt for prompt in every if len(prompt) + STEPS <= generator.context]
    if len(prompts) < MIN_PARAGRAPHS:
        raise LoadError(
            f"{path or BUNDLED}: {len(prompts)} of {len(every)} paragraphs fit the {generator.context} tokens of"
            f" {generator.model_id}'s context; calibration needs {MIN_PARAGRAPHS}, shorter ones"
        )
    pilot = prompts[:: min(PILOT, len(prompts) // 10)]
    step = f"answering {len(pilot)} calibration prompts at full quality"
    clean = answers(generator, [(prompt, Setting()) for prompt in pilot], lambda share: progress(step, share))
    features = torch.cat([answer.features for answer in clean]).to(generator.device)
    highest = Candidates.of_features(features, generator.clean_logits, CANDIDATES)
    return CalibrationSample(features, highest, answered=lambda tell: near_levels(generator, prompts, tell))


def near_levels(
    generator: Generator, prompts: Sequence[list[int]], progress: Callable[[float], None] = lambda _: None
) -> CalibrationSample:
    """Decoding steps of answers given near `LEVELS`, as far as the calibration installed knows where these lie.

    Args:
        prompts: token ids.
        progress: called with the share done, 0 to 1.
    """
    head = generator.head
    positions = sorted({head.position(Setting(level)) for level in LEVELS})
    asked = [(prompt, Setting(position=position)) for prompt in prompts for position in positions]
    given = answers(generator, asked, progress)
    counts = torch.tensor([len(answer.tokens) for answer in given])
    features = torch.cat([answer.features for answer in given]).to(generator.device)
    at = torch.tensor([setting.position for _, setting in asked]).repeat_interleave(counts)
    return CalibrationSample(
        features,
        Candidates.of_features(features, generator.clean_logits, CANDIDATES),
        at=at.to(features.device),
        answer=torch.arange(len(given)).repeat_interleave(counts).to(features.device),
    )


def answers(
    generator: Generator,
    asked: Sequence[tuple[list[int], Setting]],
    progress: Callable[[float], None] = lambda _: None,
    steps: int = STEPS,
) -> list[Answer]:
    """Greedy answers of at most so many tokens to prompts, each at a setting, in the order asked.

    From any thread, while nobody else runs the engine.
    """
    room = asyncio.Semaphore(2 * generator.spec.max_batch_size)
    done = 0

    async def one(prompt: list[int], setting: Setting) -> Answer:
        nonlocal done
        features: list[Tensor] = []
        async with room:
            tokens = await generator.engine.greedy(prompt, steps, setting, features)
        done += 1
        progress(done / len(asked))
        return Answer(tokens, torch.stack(features[: len(tokens)]))

    async def everything() -> list[Answer]:
        return list(await asyncio.gather(*(one(prompt, setting) for prompt, setting in asked)))

    return _in_a_loop_of_its_own(everything())


def _in_a_loop_of_its_own(work: Coroutine[Any, Any, T]) -> T:
    with ThreadPoolExecutor(1, "calibration") as thread:
        return thread.submit(asyncio.run, work).result()


def split_paragraphs(path: Path) -> tuple[list[str], list[str]]:
    """The paragraphs that calibrate, evenly thinned to `MOST_PROMPTS`, and those left out.

    Raises:
        LoadError: no such file, or fewer than 20 paragraphs.
    """
    paragraphs = _paragraphs(path)
    count = min(MOST_PROMPTS, len(paragraphs))
    chosen = {i * len(paragraphs) // count for i in range(count)}
    return [paragraphs[i] for i in sorted(chosen)], [p for i, p in enumerate(paragraphs) if i not in chosen]


def _paragraphs(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LoadError(f"{path} cannot be read as a text file to calibrate on: {error}") from error
    paragraphs = [paragraph.strip() for paragraph in text.split("\n\n") if paragraph.strip()]
    if len(paragraphs) < MIN_PARAGRAPHS:
        raise LoadError(
            f"{path} holds {len(paragraphs)} paragraphs; calibration needs at least {MIN_PARAGRAPHS}, with blank lines"
            " between them"
        )
    return paragraphs


def prompt_of(model: LanguageModel, paragraph: str) -> list[int]:
    """A chat message, or for a model without a template the first half of the paragraph, to be continued."""
    tokenizer: Any = model.tokenizer
    if not tokenizer.chat_template:
        ids = list(tokenizer.encode(paragraph))
        return ids[: max(1, min(len(ids) // 2, _MAX_PROMPT))]
    # Cut as text: cutting the template would lose the start of the assistant's turn.
    words = " ".join(paragraph.split(" ")[: _MAX_PROMPT // 2])
    return model.encoder.chat.encode([{"role": "user", "content": words}])
