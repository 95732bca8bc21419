"""The paper's utility noise on a text model: the part of benchmarks/paper_curves.py behind --text."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from deployments.config import REPOSITORY
from deployments.engines.text.generator import Generator
from policies.calibration.answering import CANDIDATES
from policies.calibration.calibration import Calibration
from policies.closed_form import agreement
from policies.reference import independent_utility

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
from levels import SMOLLM2, text_prompts
from paper_support import NOISES, SECRET, finish, position_of

TEXT_SIGMAS = (0.1, 0.25, 0.5, 0.8, 1.2, 1.7, 2.4)
TEXT_PROMPTS, TEXT_STEPS = 16, 32


class TextPoint(NamedTuple):
    """What one noise at one sigma did to a text, and its agreement in closed form on the same steps."""

    agreed: float
    perplexity: float
    line: float


def text(out: Path) -> None:
    """Sigma against token agreement and the clean model's perplexity on what was generated."""
    engine = Generator.load(SMOLLM2, torch.device("cpu"))
    prompts = text_prompts(engine)[0][:TEXT_PROMPTS]
    points = text_sweep(engine, prompts)
    clean = [written(engine, prompt, 1, lambda _features, logits: logits) for prompt in prompts]
    engine.close()
    base = math.exp(float(torch.cat([steps.surprise for steps in clean]).mean()))
    print(
        f"clean perplexity {base:.3f}\n| sigma | noise | agreement | closed form on the same steps | perplexity |\n"
        "|---|---|---|---|---|"
    )
    for name, _ in NOISES:
        for sigma, (agreed, perplexity, line) in zip(TEXT_SIGMAS, points[name], strict=True):
            print(f"| {sigma} | {name} | {agreed:.3f} | {line:.3f} | {perplexity:.2f} |", flush=True)
    figure, axes = plt.subplots(1, 2, figsize=(9.0, 3.6))
    for (name, mark), style in zip(NOISES, ("-", "--"), strict=True):
        axes[0].plot(
            TEXT_SIGMAS, [p.line for p in points[name]], style, color="grey", label=f"closed form, {name}'s steps"
        )
        axes[0].plot(TEXT_SIGMAS, [p.agreed for p in points[name]], mark, label=f"{name} noise")
        axes[1].plot(TEXT_SIGMAS, [p.perplexity for p in points[name]], mark, label=f"{name} noise")
    axes[0].set(xscale="log", xlabel="sigma (logit units)", ylim=(0.0, 1.0), title="token agreement")
    axes[1].axhline(base, color="grey", linewidth=0.8)
    axes[1].set(xscale="log", yscale="log", xlabel="sigma (logit units)", title="perplexity to the clean model")
    finish(figure, axes[0], out / "paper_text.png", f"{engine.model_id}, greedy, {TEXT_PROMPTS} prompts")


class Steps(NamedTuple):
    """Steps of several answers to one prompt: highest clean logits [N, 256] float32, whether each token is the clean
    one [N], the clean model's surprise at it [N] in nats, and the answer that it is a step of [N]."""

    logits: Tensor
    agreed: Tensor
    surprise: Tensor
    answer: Tensor


Noise = Callable[[Tensor, Tensor], Tensor]
"""Features [B, H] and clean logits [B, V] float32 of a step's answers to the logits that tokens are taken from."""


@torch.no_grad()
def written(engine: Generator, prompt: list[int], copies: int, noise: Noise) -> Steps:
    """Greedy answers of the model's own `generate` to copies of a prompt, with noise at its final layer."""
    clean: list[Tensor] = []

    def add_noise(_module: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        clean.append(output[:, -1].float())
        return noise(inputs[0][:, -1], clean[-1])[:, None]

    ids = torch.tensor([prompt] * copies)
    ends = sorted(engine.language_model.end_tokens)
    hook = engine.final.register_forward_hook(add_noise)
    try:
        out = engine.language_model.model.generate(  # type: ignore[operator]
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=TEXT_STEPS, eos_token_id=ends
        )
    finally:
        hook.remove()
    tokens = out[:, len(prompt) :]
    ended = torch.isin(tokens, torch.tensor(ends)).cumsum(dim=1)
    going = torch.cat([torch.ones_like(ended[:, :1]), ended[:, :-1] == 0], dim=1).bool()
    logits, taken = torch.stack(clean, dim=1)[going], tokens[going]
    surprise = logits.logsumexp(dim=1) - logits.gather(1, taken[:, None])[:, 0]
    highest = logits.topk(CANDIDATES, dim=1).values
    return Steps(highest, taken == logits.argmax(dim=1), surprise, going.nonzero()[:, 0])


def text_sweep(engine: Generator, prompts: Sequence[list[int]]) -> dict[str, list[TextPoint]]:
    """By noise, a point at each of `TEXT_SIGMAS`: every prompt is answered under every noise at every sigma."""
    points: dict[str, list[TextPoint]] = {}
    for name, noise in text_noises(engine).items():
        found: list[list[Any]] = [[] for _ in TEXT_SIGMAS]
        for prompt in prompts:
            steps = written(engine, prompt, len(TEXT_SIGMAS), noise)
            for i, sigma in enumerate(TEXT_SIGMAS):
                mine = steps.answer == i
                found[i].append((steps.agreed[mine], steps.surprise[mine], agreement(steps.logits[mine], sigma)))
        joined = [[torch.cat(part).double() for part in zip(*some, strict=True)] for some in found]
        points[name] = [
            TextPoint(float(same.mean()), math.exp(float(nats.mean())), float(line.mean()))
            for same, nats, line in joined
        ]
    return points


def text_noises(engine: Generator) -> dict[str, Noise]:
    """By name, the noise of answers of which the i-th is given at `TEXT_SIGMAS[i]`."""
    pilot = engine.calibration_sample()
    field = Calibration.fit(SECRET, engine.fingerprint, pilot.features, pilot.logits, depth=engine.depth, tolerance=0.3)
    ladder = field.ladder(SECRET, features=engine.features, classes=engine.vocabulary)
    matrices = torch.stack([ladder.matrix(position_of(sigma)) for sigma in TEXT_SIGMAS])
    sigmas, generator = torch.tensor(TEXT_SIGMAS)[:, None], torch.Generator().manual_seed(0)
    return {
        "independent": lambda _features, logits: independent_utility(logits / sigmas, 1.0, generator) * sigmas,
        "ladder": lambda features, logits: logits + (ladder.phi(features)[:, None] @ matrices)[:, 0],
    }
