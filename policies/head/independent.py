"""The paper's own modulation as a head: fresh noise in every call (AIM, arXiv 2603.12755). For experiments.

It does not hold against repeats: 30 and a vote win a level's gap back (docs/decisions/0001). Nothing is served so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor

from policies.answers import highest
from policies.calibration.calibration import Calibration
from policies.calibration.candidates import Candidates
from policies.closed_form import agreement
from policies.field.variance import scale_of
from policies.head.focus import Target, apply_focus
from policies.head.head import Head
from policies.head.modulated import Modulated
from policies.head.slots import Setting

_CLOSED_ROWS = 2048
_SIMULATED_ROWS = 512
_DRAWN = 64
"""Rows of a vocabulary that are drawn at a time."""


class IndependentHead(Head):
    """z + sigma * eps with fresh eps ~ N(0, I_K), and fresh half-normal focus where a class contends.

    The levels are those of `independent_calibration`; draws come from torch's global generator.
    """

    scale: Tensor
    """[S + 1] float32, sigma of each slot in logit units."""

    def _make_slots(self, slots: int) -> None:
        super()._make_slots(slots)
        self.table("scale", torch.zeros(slots + 1))

    def _lay_out(self, first: int, settings: Sequence[Setting]) -> None:
        super()._lay_out(first, settings)
        scales = torch.tensor([scale_of(self.position(setting)) for setting in settings])
        with torch.inference_mode(False):
            self.scale[first : first + len(settings)] = scales.to(self.scale.device)

    def _deltas(self, setting: Setting) -> dict[Target, float]:
        if any(isinstance(target, Target) and target.prefix for target in setting.focus):
            raise ValueError("with independent noise focus takes classes and words of one token, no phrases")
        return super()._deltas(setting)

    def forward(self, features: Tensor, logits: Tensor, slots: Tensor) -> Modulated:
        """As `Head.forward`, with noise that no feature decides."""
        if not self.modulates:
            return Modulated(logits, logits, logits)
        utility = logits
        if self.levels.in_use:
            scale = self.scale[slots].reshape(-1, *(1,) * (logits.ndim - 1))
            utility = logits.float() + scale * torch.randn(logits.shape, device=logits.device)
        if not self.focus.in_use:
            return Modulated(utility, logits, utility)
        targets, delta = self.focus.targets, self.focus.delta[slots]
        xi = torch.randn(len(logits), len(targets), *logits.shape[2:], device=logits.device)
        return Modulated(apply_focus(utility.float(), targets, delta, xi, self._contention), logits, utility)


def independent_calibration(
    secret: bytes,
    fingerprint: str,
    features: Tensor,
    logits: Tensor | Candidates,
    *,
    contention: int = 2,
    tolerance: float = 0.03,
) -> Calibration:
    """Where fresh noise delivers each level: by the closed form, or for a vocabulary of candidates by simulation.

    Args:
        features: [N, H] inputs of the final layer.
        logits: [N, K] its clean answers.
        tolerance: agreement between neighbouring points of the curve.

    Raises:
        ValueError: fewer than 100 rows.
    """
    # For the gaps of focus alone: its field, of one wave, is never used.
    plain = Calibration.fit(secret, fingerprint, features, logits, depth=1, contention=contention, tolerance=1.0)
    classes = logits.classes if isinstance(logits, Candidates) else logits.shape[1]
    delivered = _simulated(logits) if isinstance(logits, Candidates) else _closed_form(logits)
    ladder = plain.ladder(secret, features=features.shape[1], classes=classes)
    measured = ladder.explore(lambda _matrix, at: delivered(scale_of(at)), tolerance)
    curve = [measured[0]]
    curve += [point for point, lowest in zip(measured[1:], _lowest(measured), strict=False) if point[1] < lowest]
    return replace(plain, curve=tuple(curve))


def _closed_form(logits: Tensor) -> Callable[[float], float]:
    rows = logits[:: -(-len(logits) // _CLOSED_ROWS)].float()
    return lambda scale: float(agreement(rows, scale).mean())


def _simulated(logits: Candidates) -> Callable[[float], float]:
    """The closed form takes minutes at a vocabulary; one draw a row, the same at every scale, takes a second."""
    rows = torch.arange(0, len(logits), -(-len(logits) // _SIMULATED_ROWS), device=logits.logits.device)
    whole = logits.whole
    if whole is None:
        raise ValueError("independent noise needs all logits of a row, not its highest alone")

    def survives(scale: float) -> float:
        generator, same = torch.Generator().manual_seed(0), 0
        for some in torch.split(rows, _DRAWN):
            noise = torch.randn(len(some), logits.classes, generator=generator).to(some.device)
            same += int((highest(whole(some) + scale * noise) == logits.index[some, 0]).sum())
        return same / len(rows)

    return survives


def _lowest(measured: Sequence[tuple[int, float]]) -> list[float]:
    return list(accumulate((value for _, value in measured), min))
