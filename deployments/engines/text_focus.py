"""Focus of running sequences on words and phrases: entries in tables, matched against the last tokens on the device."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from deployments.engines.words import MAX_TOKENS, FocusEntry
from policies.focus import apply_focus, focus_std
from policies.layer import ModulatedLayer, RowTerms

_ANY = -1
"""In a pattern: whatever token."""
_CERTAIN = 100.0
"""Logits above the best: the next token at any temperature that is served."""
_MEMORY = MAX_TOKENS - 1


@dataclass(frozen=True)
class FocusPlan:
    """The focus of all running sequences, S seats and a row that nobody looks at; T distinct target tokens.

    Attributes:
        targets: [T] int64.
        columns: [D, T] the focus field's matrix at the targets.
        delta: [S + 1, T] signed standard deviations of single words and of phrases' first tokens, in logit units.
        patterns: [P, _MEMORY] int64, the tokens before each later token of a phrase, padded on the left with `_ANY`.
        places: [P] int64, which target each of those is.
        ratio: [S + 1, P] signed standard deviations of those, in units of the row's own margin.
    """

    targets: Tensor
    columns: Tensor
    delta: Tensor
    patterns: Tensor
    places: Tensor
    ratio: Tensor

    @property
    def phrases(self) -> bool:
        """Whether any sequence focuses on more than one token in a row."""
        return len(self.patterns) > 0


def plan_focus(focus: Mapping[int, Mapping[FocusEntry, float]], seats: int, layer: ModulatedLayer) -> FocusPlan:
    """Lay out the focus of sequences, by seat.

    Args:
        focus: entries and signed strengths of each seat that has a focus.
        seats: S.
        layer: prepared for these entries; strengths are in its median margins.
    """
    device = next(layer.final.parameters()).device
    entries = sorted({entry for of_seat in focus.values() for entry in of_seat}, key=lambda e: (e.token, e.prefix))
    tokens = sorted({entry.token for entry in entries})
    later = [entry for entry in entries if entry.prefix]
    place, nth = {token: i for i, token in enumerate(tokens)}, {entry: i for i, entry in enumerate(later)}
    delta, ratio = torch.zeros(seats + 1, len(tokens)), torch.zeros(seats + 1, len(later))
    for seat, of_seat in focus.items():
        first = RowTerms(focus={entry.token: strength for entry, strength in of_seat.items() if not entry.prefix})
        for token, std in layer.deltas(first).items():
            delta[seat, place[token]] = std
        for entry, strength in of_seat.items():
            if entry.prefix:
                ratio[seat, nth[entry]] = math.copysign(focus_std(strength, 1.0), strength)
    padded = [[_ANY] * (_MEMORY - len(e.prefix)) + list(e.prefix) for e in later]
    targets = torch.tensor(tokens, dtype=torch.int64, device=device)
    return FocusPlan(
        targets=targets,
        columns=layer.focus_rows(targets).T,
        delta=delta.to(device),
        patterns=torch.tensor(padded, dtype=torch.int64, device=device).reshape(len(later), _MEMORY),
        places=torch.tensor([place[e.token] for e in later], dtype=torch.int64, device=device),
        ratio=ratio.to(device),
    )


class TextFocus:
    """Applies a `FocusPlan`, step by step; remembers each sequence's last tokens.

    Args:
        seats: S.
        contention: how many of the highest logits contend.
        device: where the logits are.
    """

    def __init__(self, seats: int, contention: int, device: torch.device) -> None:
        self._contention = contention
        self._history = torch.full((seats + 1, _MEMORY), _ANY - 1, dtype=torch.int64, device=device)
        self._lent = torch.zeros(seats + 1, dtype=torch.bool, device=device)
        self._raised: Tensor | None = None

    def write(self, seat: int, prompt: list[int]) -> None:
        """Give a seat to a new sequence; a phrase may have begun in its prompt."""
        tail = prompt[-_MEMORY:]
        self._history[seat] = _ANY - 1
        self._history[seat, _MEMORY - len(tail) :] = torch.tensor(tail, dtype=torch.int64)
        self._lent[seat] = False

    def apply(self, logits: Tensor, phi: Tensor, slots: Tensor, plan: FocusPlan) -> Tensor:
        """Logits [N, V] float32 after utility, phi [N, D] and seats [N] to a new [N, V] after focus."""
        xi, delta = phi @ plan.columns, plan.delta[slots]
        if not plan.phrases:
            return apply_focus(logits, plan.targets, delta, xi, self._contention)
        matched = ((self._history[slots][:, None, :] == plan.patterns) | (plan.patterns == _ANY)).all(dim=2)
        later = torch.zeros_like(xi).index_add_(1, plan.places, plan.ratio[slots] * matched)
        # A phrase that is being completed must not begin again in the middle.
        under_way = (later > 0).any(dim=1, keepdim=True)
        delta = torch.where(under_way & (delta > 0), 0.0, delta)
        out = apply_focus(logits, plan.targets, delta, xi, self._contention)
        out = self._completed(out, plan.targets, later, xi.abs(), self._lent[slots][:, None])
        self._raised = out[:, plan.targets] > logits[:, plan.targets]
        return out

    def chosen(self, tokens: Tensor, slots: Tensor, plan: FocusPlan) -> None:
        """Remember the tokens [N] int64 of the step that `apply` was called for."""
        if self._raised is None:
            return
        self._history[slots] = torch.cat([self._history[slots][:, 1:], tokens[:, None]], dim=1)
        self._lent[slots] = (self._raised & (plan.targets == tokens[:, None])).any(dim=1)
        self._raised = None

    @staticmethod
    def _completed(out: Tensor, targets: Tensor, later: Tensor, xi: Tensor, lent: Tensor) -> Tensor:
        """Act on the later tokens of phrases that have begun, in units of the row's own margin.

        So such a token comes, or gives way, with probability |f| whatever the margin; and for certain where it was
        focus that began the phrase.

        Args:
            later: [N, T] signed standard deviations in margins; 0 where no phrase has come so far.
            xi: [N, T] absolute values of the focus field.
            lent: [N, 1] bool, whether the last token was one that focus had raised.
        """
        here = out[:, targets]
        best = out.amax(dim=1, keepdim=True)
        others = out.index_copy(1, targets, torch.where(later < 0, -torch.inf, here)).amax(dim=1, keepdim=True)
        up = torch.where(lent, best + _CERTAIN, here + (best - here) * later * xi)
        down = here + (here - others).clamp(min=0.0) * later * xi
        return out.index_copy(1, targets, torch.where(later > 0, up, torch.where(later < 0, down, here)))
