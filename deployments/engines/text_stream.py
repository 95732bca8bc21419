"""A batch of answers written step by step, every step's final-layer row kept: what text levels are judged on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deployments.engines.language_models import LanguageModel
from policies.candidates import Candidates

CANDIDATES = 256
"""Logits kept of a row."""
CROWDED = 0.8
"""Ended answers leave the batch once no more than this share of it goes on: leaving copies the others' cache."""
Choose = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Features [B, H], clean logits [B, V] and answers' numbers [B] of a step to the logits that its tokens are taken from.
"""


@dataclass(frozen=True)
class Rows:
    """Decoding steps.

    Attributes:
        features: [N, H] float32 inputs of the final layer.
        logits: the highest clean logits of each.
        agreed: [N] bool, whether the step took the clean token.
        surprise: [N] float32, -log of the clean model's probability of the token that was taken, in nats.
        stream: [N] int64, which of the batch's answers it is a step of.
    """

    features: Tensor
    logits: Candidates
    agreed: Tensor
    surprise: Tensor
    stream: Tensor

    @staticmethod
    def join(parts: Sequence[Rows]) -> Rows:
        """All rows of several."""
        return Rows(
            torch.cat([p.features for p in parts]),
            Candidates.join([p.logits for p in parts]),
            *(torch.cat([getattr(p, name) for p in parts]) for name in ("agreed", "surprise", "stream")),
        )


@torch.no_grad()
def write(
    model: LanguageModel, prompts: Sequence[list[int]], steps: int, choose: Choose | None = None, copies: int = 1
) -> Rows:
    """Answer a batch of prompts, at temperature 0, and keep the row of every step.

    Args:
        prompts: token ids; the batch is padded on the left.
        steps: most tokens of an answer; it also ends at an end token, which is its last row.
        choose: modulation; None: the model's own logits.
        copies: answers to each prompt, which is read once. Answer c to prompt p has the number p * copies + c.
    """
    seen: list[Tensor] = []
    hook = model.final.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    try:
        return _write(model, prompts, steps, choose or (lambda _features, logits, _numbers: logits), copies, seen)
    finally:
        hook.remove()


def _write(
    model: LanguageModel, prompts: Sequence[list[int]], steps: int, choose: Choose, copies: int, seen: list[Tensor]
) -> Rows:
    device = model.model.device
    longest = max(len(prompt) for prompt in prompts)
    pad = min(model.end_tokens, default=0)
    tokens = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    positions = (mask.cumsum(1) - 1).clamp_(min=0)
    ends = torch.tensor(sorted(model.end_tokens), device=device)
    stream = torch.arange(len(prompts) * copies, device=device)
    alive = torch.ones_like(stream, dtype=torch.bool)
    cache, parts = None, []
    for step in range(steps):
        out = model.model(
            input_ids=tokens, attention_mask=mask, position_ids=positions, cache=cache, use_cache=True,
            logits_to_keep=1,
        )  # fmt: skip
        cache, clean, features = out.cache, out.logits[:, -1], seen.pop()[:, -1]
        if step == 0 and copies > 1:
            cache.batch_repeat_interleave(copies)
            clean, features, mask, positions = (
                part.repeat_interleave(copies, dim=0) for part in (clean, features, mask, positions)
            )
        taken = choose(features, clean, stream).argmax(dim=1)
        parts.append(_rows(features[alive], clean[alive], taken[alive], stream[alive]))
        alive &= ~torch.isin(taken, ends)
        if not alive.any():
            break
        tokens, positions = taken[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, torch.ones_like(taken[:, None])], dim=1)
        if alive.sum() <= CROWDED * len(alive):
            rows = alive.nonzero()[:, 0]
            cache.batch_select_indices(rows)
            tokens, positions, mask, stream, alive = (part[rows] for part in (tokens, positions, mask, stream, alive))
    return Rows.join(parts)


def _rows(features: Tensor, clean: Tensor, taken: Tensor, stream: Tensor) -> Rows:
    surprise = clean.float().logsumexp(dim=1) - clean.gather(1, taken[:, None])[:, 0].float()
    return Rows(features.float(), Candidates.of(clean, CANDIDATES), taken == clean.argmax(dim=1), surprise, stream)
