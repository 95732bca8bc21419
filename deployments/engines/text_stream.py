"""A batch of answers written step by step, every step's final-layer row kept: what text levels are judged on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deployments.engines.language_models import LanguageModel

Choose = Callable[[Tensor, Tensor], Tensor]
"""Features [B, H] and clean logits [B, V] of a step to the logits that its tokens are taken from."""


@dataclass(frozen=True)
class Rows:
    """Decoding steps.

    Attributes:
        features: [N, H] float32 inputs of the final layer.
        logits: [N, V] clean logits, in the model's dtype.
        agreed: [N] bool, whether the step took the clean token.
    """

    features: Tensor
    logits: Tensor
    agreed: Tensor

    def thinned(self, most: int) -> Rows:
        """At most so many of the rows, evenly spread."""
        count = len(self.agreed)
        index = torch.linspace(0, count - 1, min(most, count), device=self.agreed.device).long()
        return Rows(self.features[index], self.logits[index], self.agreed[index])

    @staticmethod
    def join(parts: Sequence[Rows]) -> Rows:
        """All rows of several."""
        return Rows(*(torch.cat([getattr(p, name) for p in parts]) for name in ("features", "logits", "agreed")))


@torch.no_grad()
def write(model: LanguageModel, prompts: Sequence[list[int]], steps: int, choose: Choose | None = None) -> Rows:
    """Answer a batch of prompts, at temperature 0, and keep the row of every step.

    Args:
        prompts: token ids; the batch is padded on the left.
        steps: most tokens of an answer; it also ends at an end token.
        choose: modulation; None: the model's own logits.
    """
    seen: list[Tensor] = []
    hook = model.final.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    try:
        return _write(model, prompts, steps, choose or (lambda _features, logits: logits), seen)
    finally:
        hook.remove()


def _write(model: LanguageModel, prompts: Sequence[list[int]], steps: int, choose: Choose, seen: list[Tensor]) -> Rows:
    device = model.model.device
    longest = max(len(prompt) for prompt in prompts)
    pad = min(model.end_tokens, default=0)
    tokens = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    positions = (mask.cumsum(1) - 1).clamp_(min=0)
    ends = torch.tensor(sorted(model.end_tokens), device=device)
    alive = torch.ones(len(prompts), dtype=torch.bool, device=device)
    cache, parts = None, []
    for _ in range(steps):
        out = model.model(
            input_ids=tokens, attention_mask=mask, position_ids=positions, cache=cache, use_cache=True,
            logits_to_keep=1,
        )  # fmt: skip
        cache, clean, features = out.cache, out.logits[:, -1], seen.pop()[:, -1]
        taken = choose(features, clean).argmax(dim=1)
        parts.append(Rows(features[alive].float(), clean[alive], (taken == clean.argmax(dim=1))[alive]))
        alive &= ~torch.isin(taken, ends)
        if not alive.any():
            break
        tokens, positions = taken[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, torch.ones_like(taken[:, None])], dim=1)
    return Rows.join(parts)
