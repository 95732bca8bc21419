"""Decoding steps of a text model, clean and under reworded and cut prompts, kept in a cache folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.attacks.text_victim import Clean, Victim, kept
from deployments.engines.text.calibration import BUNDLED

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
STEPS, CLEAN_STEPS = 20, 32
LONGEST = 160
"""Characters of the longest paragraph that is asked."""
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
    """What text is attacked with; prompts of the three sets of rows are different ones.

    Attributes:
        features: [N, Q, H] float32 of the judged steps; query 0 is the prompt as it is, then `REWORDINGS`, `CUTS` and
            prompts with a prefix of the answer.
        untold: [N, Q] bool, False where a prompt's prefix shows the very token that the step is to give.
        index: [N, Q, 256] int64 tokens of the highest clean logits, falling.
        logits: [N, Q, 256] float32.
        judged: the same steps' query 0.
        sample: steps on which levels are solved.
        labelled: steps that an attacker asks, and whose clean tokens it may know.
    """

    features: Tensor
    untold: Tensor
    index: Tensor
    logits: Tensor
    judged: Clean
    sample: Clean
    labelled: Clean


def text_steps(cache: Path, victim: Victim) -> Steps:
    """Compute what the cache does not hold yet."""
    paragraphs = [p for p in BUNDLED.read_text(encoding="utf-8").split("\n\n") if len(p) <= LONGEST]
    judged = [*ATTACKED[::2], *paragraphs[::8]]
    sample = [*SAMPLED[::2], *paragraphs[1::8], *paragraphs[2::8]]
    labelled = [*LABELLED[::3], *(p for n, p in enumerate(paragraphs) if n % 8 > 2)]
    found = [
        kept(cache / f"clean-{name}.pt", lambda prompts=prompts: victim.answered(prompts, CLEAN_STEPS))
        for name, prompts in (("judged", judged), ("sample", sample), ("labelled", labelled))
    ]
    long = [
        (prompt, answer.part(slice(STEPS)))
        for prompt, answer in zip(judged, found[0], strict=True)
        if len(answer) >= STEPS
    ]
    queries = kept(cache / "queries.pt", lambda: [_queries(victim, prompt, answer) for prompt, answer in long])
    features, untold, index, logits = (torch.cat(parts) for parts in zip(*queries, strict=True))
    clean = [Clean.join(answers) for answers in ([answer for _, answer in long], *found[1:])]
    return Steps(features.float(), untold, index.long(), logits.float(), *clean)


def _queries(victim: Victim, prompt: str, clean: Clean) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features [T, Q, H], `untold` [T, Q], contenders and their logits [T, Q, 256] of one prompt's queries."""
    said = [victim.decode(clean.tokens[:t]) for t in range(STEPS + 1)]
    starts = [" ".join(said[-1].split(" ")[: 2 * n]) for n in range(1, WITH_PREFIX + 1)]
    texts = [way(prompt) for way in (*REWORDINGS, *CUTS)]
    untold = [[True] * STEPS for _ in texts] + [[said[t].startswith(start) for t in range(STEPS)] for start in starts]
    texts += [f"{prompt} Start like this: {start}" for start in starts]
    features = victim.after([victim.chat(text) for text in texts], clean.tokens)
    index, logits = victim.contenders(features.flatten(0, 1))
    shape = (len(texts), STEPS, -1)
    parts = (features.half(), torch.tensor(untold), index.reshape(shape), logits.reshape(shape))
    return tuple(part.transpose(0, 1) for part in parts)
