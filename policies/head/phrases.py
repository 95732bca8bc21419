"""Who focuses on what: slots' targets as tables on the device, phrases matched against each text's last tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from policies.head.buffers import Tables
from policies.head.focus import Target, apply_focus

MOST_TOKENS = 16
"""Of a phrase."""
_MEMORY = MOST_TOKENS - 1
_ANY, _NOTHING, _NEVER = -1, -2, -3
"""In a pattern whatever token; in a history no token; in a pattern what no token is."""
_CERTAIN = 100.0
"""Logits above the best: the next token at any temperature that is served."""
_NO_FOCUS: dict[Target, float] = {}
_ROUND = 8
"""Tables grow by so many columns from there on, so that few different shapes are compiled or captured."""


class FocusTable(Tables):
    """The focus of S slots and of one more that is nobody's, on T distinct classes or tokens.

    Args:
        slots: S.
        classes: K.
        depth: D.
        contention: how many of the highest logits contend.
    """

    targets: Tensor
    """[T] int64."""
    columns: Tensor
    """[D, T] float32, the focus field's matrix at the targets."""
    delta: Tensor
    """[S + 1, T] float32, signed standard deviations of classes and phrases' first tokens, in logit units."""
    patterns: Tensor
    """[P, 15] int64, the tokens before each later token of a phrase, padded on the left with `_ANY`."""
    places: Tensor
    """[P] int64, which target each of those is."""
    ratio: Tensor
    """[S + 1, P] float32, signed standard deviations of those, in units of the row's own margin."""
    history: Tensor
    """[S + 1, 15] int64, the last tokens of each text."""
    lent: Tensor
    """[S + 1] bool, whether the last of them was one that focus had raised."""

    def __init__(self, slots: int, classes: int, depth: int, contention: int) -> None:
        super().__init__()
        self._slots, self._classes, self._depth, self._contention = slots, classes, depth, contention
        self._focus: dict[int, dict[Target, float]] = {}
        self._laid: list[Target] = []
        self.table("history", torch.full((slots + 1, _MEMORY), _NOTHING, dtype=torch.int64))
        self.table("lent", torch.zeros(slots + 1, dtype=torch.bool))
        # Plain flags: whoever compiles a step looks at what it reads, and would do so anew for each other focus.
        self.phrases = self.in_use = False
        self._raised: tuple[Tensor, Tensor] | None = None
        self._lay_out([], torch.zeros(0, depth))

    def has(self, slot: int) -> bool:
        """Whether a slot has a focus."""
        return slot in self._focus

    def remember(self, slot: int, history: Sequence[int]) -> None:
        """The tokens before a new sequence's answer, in which a phrase may have begun."""
        tail = list(history)[-_MEMORY:]
        row = torch.tensor([_NOTHING] * (_MEMORY - len(tail)) + tail, dtype=torch.int64)
        self.history[slot] = row.to(self.history.device)
        self.lent[slot] = False

    def write(self, first: int, focus: Sequence[dict[Target, float]], columns: Callable[[], Tensor]) -> None:
        """Give slots from `first` on their targets with signed standard deviations; an empty focus is none.

        Args:
            focus: of each, in logit units, or of a target with a prefix in margins.
            columns: gives [K, D] float32 of the focus field, once anybody has a target that is not laid out.
        """
        if all(self._focus.get(slot, _NO_FOCUS) == own for slot, own in enumerate(focus, first)):
            return
        self._focus.update(enumerate(focus, first))
        self._focus = {slot: own for slot, own in self._focus.items() if own}
        self.in_use = bool(self._focus)
        targets = {target for own in self._focus.values() for target in own}
        # The last layout serves again where it has these and is no wider than they need; with none it waits for some.
        if not targets.issubset(self._laid) or 0 < _rounded(len(targets)) < _rounded(len(self._laid)):
            self._lay_out(sorted(targets), columns())
            first, focus = 0, [self._focus.get(slot, _NO_FOCUS) for slot in range(self._slots)]
        self._fill(first, focus)

    def _lay_out(self, targets: list[Target], columns: Tensor) -> None:
        self._laid = targets
        classes = sorted({target.index for target in targets})
        later = [target for target in targets if target.prefix]
        classes += _others(classes, min(self._classes, _rounded(len(classes))) - len(classes))
        self._place, self._nth = {k: i for i, k in enumerate(classes)}, {target: i for i, target in enumerate(later)}
        padding = _rounded(len(later)) - len(later)
        patterns = [[_ANY] * (_MEMORY - len(t.prefix)) + list(t.prefix) for t in later] + [[_NEVER] * _MEMORY] * padding
        device = self.history.device
        index = torch.tensor(classes, dtype=torch.int64).to(device)
        self.table("targets", index)
        self.table("columns", columns[index.to(columns.device)].T.contiguous().to(device))
        self.table("delta", torch.zeros(self._slots + 1, len(classes), device=device))
        self.table("patterns", torch.tensor(patterns, dtype=torch.int64).reshape(-1, _MEMORY).to(device))
        places = [self._place[target.index] for target in later] + [0] * padding
        self.table("places", torch.tensor(places, dtype=torch.int64).to(device))
        self.table("ratio", torch.zeros(self._slots + 1, len(later) + padding, device=device))
        self.phrases = bool(later)

    def _fill(self, first: int, focus: Sequence[dict[Target, float]]) -> None:
        delta = [[0.0] * self.delta.shape[1] for _ in focus]
        ratio = [[0.0] * self.ratio.shape[1] for _ in focus]
        for at, own in enumerate(focus):
            for target, std in own.items():
                if target.prefix:
                    ratio[at][self._nth[target]] = std
                else:
                    delta[at][self._place[target.index]] = std
        slots = slice(first, first + len(focus))
        self.delta[slots] = torch.tensor(delta).to(self.delta.device)
        if self.phrases:
            self.ratio[slots] = torch.tensor(ratio).to(self.ratio.device)

    def on_rows(self, logits: Tensor, phi: Tensor, slots: Tensor) -> Tensor:
        """Logits [N, K] float32 after utility, phi [N, D] and slots [N] to a new [N, K] after focus."""
        xi, delta = phi @ self.columns, self.delta[slots]
        if not self.phrases:
            return apply_focus(logits, self.targets, delta, xi, self._contention)
        matched = ((self.history[slots][:, None, :] == self.patterns) | (self.patterns == _ANY)).all(dim=2)
        later = _strongest(self.ratio[slots] * matched, self.places, xi.shape[1])
        # A phrase that is being completed must not begin again in the middle.
        under_way = (later > 0).any(dim=1, keepdim=True)
        delta = torch.where(under_way & (delta > 0), 0.0, delta)
        out = apply_focus(logits, self.targets, delta, xi, self._contention)
        out = _completed(out, self.targets, later, xi.abs(), self.lent[slots][:, None])
        self._raised = out[:, self.targets] > logits[:, self.targets], self.targets
        return out

    def on_maps(self, logits: Tensor, xi: Tensor, slots: Tensor) -> Tensor:
        """Maps [B, K, h, w] float32 after utility and the focus field at the targets, [B, T, h, w], to new maps."""
        return apply_focus(logits, self.targets, self.delta[slots], xi, self._contention)

    def first(self, rows: int) -> None:
        """Of what `on_rows` was called for only the first rows are answered."""
        if self._raised is not None:
            self._raised = self._raised[0][:rows], self._raised[1]

    def chosen(self, tokens: Tensor, slots: Tensor) -> None:
        """Remember the tokens [N] int64 of the step that `on_rows` was called for."""
        if self._raised is None:
            return
        self.history[slots] = torch.cat([self.history[slots][:, 1:], tokens[:, None]], dim=1)
        raised, targets = self._raised  # the layout may be another by now
        raised = raised.reshape(len(tokens), -1, len(targets))[:, -1]  # of a prompt's places the last one is answered
        self.lent[slots] = (raised & (targets == tokens[:, None])).any(dim=1)
        self._raised = None


def _strongest(acting: Tensor, places: Tensor, count: int) -> Tensor:
    """What phrases do to each of T tokens, [N, T] float32: the strongest to favour it and the strongest to avoid it.

    Their sum would take several phrases that end in one token beyond the limit of each.

    Args:
        acting: [N, P] signed standard deviations of phrases, 0 of those that do not act.
        places: [P] int64, which token each is about.
        count: T.
    """
    where, none = places.expand(len(acting), -1), acting.new_zeros(len(acting), count)
    up = none.scatter_reduce(1, where, acting.clamp(min=0.0), "amax")
    return up + none.scatter_reduce(1, where, acting.clamp(max=0.0), "amin")


def _completed(out: Tensor, targets: Tensor, later: Tensor, xi: Tensor, lent: Tensor) -> Tensor:
    """Act on the later tokens of phrases that have begun, in units of the row's own margin.

    So such a token comes, or gives way, with probability |f| whatever the margin; and for certain where it was focus
    that began the phrase.

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


def _rounded(count: int) -> int:
    """Powers of two up to `_ROUND`, then multiples of it."""
    return -(-count // _ROUND) * _ROUND if count > _ROUND else count and 1 << (count - 1).bit_length()


def _others(classes: Sequence[int], count: int) -> list[int]:
    """The lowest classes that are none of these: targets are distinct, those that fill up as well."""
    taken = set(classes)
    return [k for k in range(len(classes) + count) if k not in taken][:count]
