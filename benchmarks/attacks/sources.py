"""Where noise comes from: fresh for every query, a key per tenant, one scaled draw, or the ladder."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from policies.attacks.answers import temperature_for
from policies.calibration.calibration import Calibration
from policies.closed_form import sigma_for

FINGERPRINT = "attacks"


def secret(number: int) -> bytes:
    """The noise secret of a number."""
    return hashlib.sha256(f"attacks {number}".encode()).digest()


@dataclass(frozen=True)
class Sample:
    """What levels are solved on: features [N, H] and clean logits [N, K]."""

    features: Tensor
    logits: Tensor

    def part(self, rows: Tensor | slice) -> Sample:
        """Some of its rows."""
        return Sample(self.features[rows], self.logits[rows])


@dataclass(frozen=True)
class Field:
    """A noise field: length scale in median distances, random features, metric [H, m] or None, class offsets."""

    length_scale: float
    depth: int
    metric: Tensor | None = None
    balance: bool = False

    def fit(
        self, number: int, sample: Sample, stored: Calibration | None = None, tolerance: float = 0.004
    ) -> Calibration:
        """Solve the levels under a secret, or refit those that are stored."""
        return Calibration.fit(
            secret(number),
            FINGERPRINT,
            sample.features,
            sample.logits,
            depth=self.depth,
            relative_length_scale=self.length_scale,
            metric=self.metric,
            balance=self.balance,
            field=stored,
            tolerance=tolerance,
        )


class Source(ABC):
    """Modulated answers."""

    @abstractmethod
    def __call__(self, features: Tensor, logits: Tensor, level: float, account: int = 0) -> Tensor:
        """Features [N, H] and clean logits [N, K] to the logits [N, K] that an account gets at a level."""


class Fresh(Source):
    """The paper's: independent noise for every query, sigma by the closed form."""

    def __init__(self, number: int, sample: Sample) -> None:
        self._generator, self._sample = torch.Generator().manual_seed(number), sample.part(slice(None, None, 4))
        self._sigma: dict[float, float] = {}

    def __call__(self, features: Tensor, logits: Tensor, level: float, account: int = 0) -> Tensor:
        if level not in self._sigma:
            self._sigma[level] = sigma_for(self._sample.logits, level)
        return logits + self._sigma[level] * torch.randn(logits.shape, generator=self._generator)


class Clean(Source):
    """No noise: what rounded scores and a reverse sigmoid (Lee et al., 2019) leave of a label, which is all of it."""

    def __call__(self, features: Tensor, logits: Tensor, level: float, account: int = 0) -> Tensor:
        return logits


class Temperature(Source):
    """Sampling at the temperature whose one answer agrees as often as the level: what a user would think of.

    As logits: over the temperature, with Gumbel noise, whose highest is a sample.
    """

    def __init__(self, number: int, sample: Sample) -> None:
        self._generator, self._logits = torch.Generator().manual_seed(number), sample.logits

    def __call__(self, features: Tensor, logits: Tensor, level: float, account: int = 0) -> Tensor:
        uniform = torch.rand(logits.shape, generator=self._generator).clamp(1e-9, 1.0 - 1e-7)
        return logits / temperature_for(self._logits, level) - (-uniform.log()).log()


class Ladder(Source):
    """The noise ladder: one for all accounts."""

    def __init__(self, number: int, field: Field, sample: Sample, tolerance: float = 0.004) -> None:
        self.field, self.sample, self.number = field, sample, number
        self.calibration = field.fit(number, sample, tolerance=tolerance)
        self.ladder = self.calibration.ladder(
            secret(number), features=sample.features.shape[1], classes=sample.logits.shape[1]
        )

    def __call__(self, features: Tensor, logits: Tensor, level: float, account: int = 0) -> Tensor:
        return self.at(self.ladder.phi(features), logits, self.calibration.position(level))

    def at(self, phi: Tensor, logits: Tensor, position: int) -> Tensor:
        """Answers at a position of the path."""
        return logits + phi @ self.ladder.matrix(position)


class TenantKeys(Source):
    """A ladder of its own for each account."""

    def __init__(self, number: int, field: Field, sample: Sample) -> None:
        self._number, self._field, self._sample = number, field, sample.part(slice(None, None, 4))
        self._ladders: dict[int, Ladder] = {}

    def __call__(self, features: Tensor, logits: Tensor, level: float, account: int = 0) -> Tensor:
        if account not in self._ladders:
            number = 1000 * (self._number + 1) + account
            self._ladders[account] = Ladder(number, self._field, self._sample, tolerance=0.02)
        return self._ladders[account](features, logits, level)


class Scaled(Source):
    """One draw of the field, scaled to each level: not a ladder, but the obvious way to make levels of one noise."""

    def __init__(self, number: int, field: Field, sample: Sample) -> None:
        self._ladder = Ladder(number, field, sample, tolerance=0.02).ladder
        self._draw = self._ladder.focus_matrix()
        self._logits, self._noise = sample.logits, self._ladder.phi(sample.features) @ self._draw

    def __call__(self, features: Tensor, logits: Tensor, level: float, account: int = 0) -> Tensor:
        scale = scale_for(level, self._logits, self._noise)
        return logits + scale * (self._ladder.phi(features) @ self._draw)


def scale_for(level: float, logits: Tensor, noise: Tensor) -> float:
    """The scale of a draw of noise [N, K] at which answers agree with the clean ones as often as a level says."""
    clean, low, high = logits.argmax(dim=1), 1e-2, 1e3
    for _ in range(30):
        middle = (low * high) ** 0.5
        agreed = float(((logits + middle * noise).argmax(dim=1) == clean).float().mean())
        low, high = (middle, high) if agreed > level else (low, middle)
    return low
