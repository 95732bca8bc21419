"""Calibration: which position of the noise ladder delivers which level, solved on the installation's own field."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from policies.calibration.balancer import Balancer
from policies.calibration.candidates import Candidates
from policies.calibration.delivered import Delivered, Readout
from policies.field.balance import Balance
from policies.field.ladder import NoiseLadder

__all__ = ["Calibration", "Readout"]

MIN_DISTANCE = 1e-5
"""Of the largest feature: what is nearer than that differs by rounding."""
MIN_ROWS_PER_CLASS = 20
KNOWN = 0.005
"""Agreement by which two measured points may differ for a level between them to be given at the nearer one."""


@dataclass(frozen=True)
class Calibration:
    """What a model needs to be sold by level; a refit moves levels along the same path and draws no new noise.

    Attributes:
        fingerprint: the model's, whose levels these are.
        length_scale: ell of the noise field, in the units of the features. Pinned: another ell is another field.
        depth: D of the noise field. Pinned likewise.
        metric: [H, m] float32 projection in whose space distances count, or None. Pinned likewise.
        block: side of the squares of a map that share their noise, in logits; 1 without a map. Pinned likewise.
        curve: (ladder position, lowest measured agreement up to there), by rising position from (0, 1.0): where it
            first fell to a value and, if it rose again, the last place before it fell further.
        favour_gap: per class, median margin of the rows where it is the runner-up, in logit units.
        avoid_gap: per class, median margin of the rows where it is first. One value stands for all classes of a model
            whose vocabulary is too large to be seen class by class.
        answers: how many were judged.
        balance: class offsets that belong to the field, or None. Pinned likewise.
        field_name: with the secret the key of the noise; "": the fingerprint. Models that share the name and what is
            pinned, such as one final layer's copies, have one noise.
    """

    fingerprint: str
    length_scale: float
    depth: int
    curve: tuple[tuple[int, float], ...]
    favour_gap: tuple[float, ...]
    avoid_gap: tuple[float, ...]
    answers: int
    metric: Tensor | None = field(default=None, compare=False)
    block: int = 1
    balance: Balance | None = field(default=None, compare=False)
    field_name: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "field_name", self.field_name or self.fingerprint)

    @property
    def floor(self) -> float:
        """The lowest level the field delivers, a multiple of 0.01."""
        lowest = min(value for _, value in self.curve)
        return min(1.0, max(1, math.ceil(lowest * 100 - 1e-6)) / 100)

    def position(self, level: float) -> int:
        """The first position at which agreement falls to `level`. Falls as the level rises.

        Between two measured points that both lie near the level, the nearer: a rough path rises again between them, by
        0.03 among ten classes, and only where it was measured is it known. Elsewhere the logarithm of 1 - agreement is
        taken as linear within a cell: few answers change where noise is small, in proportion to its scale, and
        positions are the scale's logarithm.

        Raises:
            ValueError: a level out of (0, 1] or below the floor.
        """
        if not self.floor <= level <= 1.0:
            raise ValueError(f"level must lie in [{self.floor}, 1], not {level}")
        if level == 1.0:
            return 0
        crossed = next((i for i, (_, value) in enumerate(self.curve) if value <= level), len(self.curve) - 1)
        (low, value_low), (high, value_high) = self.curve[crossed - 1], self.curve[crossed]
        if value_low < 1.0 and value_low - value_high <= KNOWN:
            return min(self.curve, key=lambda point: (abs(point[1] - level), point[1]))[0]
        return min(high, max(1, low + round(_share_of_cell(level, value_low, value_high) * (high - low))))

    def same_field(self, other: Calibration) -> bool:
        """Whether another calibration is of this one's noise field: a refit of it, or another model's on it."""
        one, two = (
            (c.field_name, c.length_scale, c.depth, c.block, c.metric is None, c.balance) for c in (self, other)
        )
        if one != two:
            return False
        return self.metric is None or other.metric is None or torch.equal(self.metric.cpu(), other.metric.cpu())

    @classmethod
    def fit(
        cls,
        secret: bytes,
        fingerprint: str,
        features: Tensor,
        logits: Tensor | Candidates,
        *,
        depth: int,
        at: Tensor | None = None,
        relative_length_scale: float = 0.8,
        metric: Tensor | None = None,
        block: int = 1,
        balance: bool = False,
        field: Calibration | None = None,
        field_name: str = "",
        field_features: Tensor | None = None,
        readout: Readout | None = None,
        contention: int = 2,
        tolerance: float = 0.004,
        progress: Callable[[float], None] | None = None,
    ) -> Calibration:
        """Solve every level on the actual field over a sample of unlabelled inputs.

        Args:
            features: [N, H] inputs of the final layer, rows that the model was not trained on; thousands of them.
            logits: [N, K] the final layer's clean answers to them; for a large vocabulary the highest of each row.
            at: [N] int64, for answers that lead to the next input, as a text's tokens do: the ladder position at which
                each row's answer was being given. A level is solved on the rows given nearest to it.
            relative_length_scale: ell in median distances between features of one predicted class.
            metric: [H, m] from `duplicate_metric`, or None.
            block: for masks, side of the squares that share their noise, in logits.
            balance: whether to solve class offsets with which a level answers each class as often as the clean model
                does, on all K logits.
            field: the calibration whose noise field is kept, for a refit or for another model of that field: name,
                depth, length scale, metric, block and balance are then its own.
            field_name: of a new field; "": the fingerprint.
            field_features: [N, H] what the field sees of each row where that is not its features: a block's mean.
            readout: for masks, interpolation to the client's resolution.
            contention: how many of the highest logits contend for focus.
            tolerance: agreement between neighbouring points of the curve, below which it is taken as linear.
            progress: called with the share done, 0 to 1.

        Raises:
            ValueError: too few rows, shapes that do not match, or offsets to solve on less than all logits.
        """
        if features.shape[0] != len(logits) or features.shape[0] < 100:
            raise ValueError(f"calibration needs at least 100 rows of features and logits, not {features.shape[0]}")
        seen = features if field_features is None else field_features
        highest = logits if isinstance(logits, Candidates) else Candidates.of(logits, max(contention, 2))
        favour, avoid = _focus_gaps(highest if at is None else highest[at == at.min()], contention)
        if field is None:
            space = seen if metric is None else seen.float() @ metric.to(seen.device)
            ell = _round(relative_length_scale * _median_distance(space, highest.index[:, 0]))
            if not ell > MIN_DISTANCE * float(space.abs().max()):
                raise ValueError(
                    "the model sees no difference between the calibration inputs: its last features are all alike; is"
                    " it trained, and are the inputs of the kind that it was trained on?"
                )
            unsolved = cls(fingerprint, ell, depth, ((0, 1.0),), favour, avoid, 0, metric, block, None, field_name)
        else:
            balance, unsolved = False, replace(field, fingerprint=fingerprint, favour_gap=favour, avoid_gap=avoid)
        ladder = unsolved.ladder(secret, features=features.shape[1], classes=highest.classes)
        phi = ladder.phi(seen)
        measure = Balancer(phi, logits, readout) if balance else Delivered(phi, logits, readout, at)
        curve = _falling(ladder.explore(measure, tolerance, progress))
        found = measure.balance() if isinstance(measure, Balancer) else unsolved.balance
        return replace(unsolved, curve=curve, answers=measure.answers, balance=found)

    def ladder(self, secret: bytes, *, features: int, classes: int) -> NoiseLadder:
        """The field that this calibration was solved on."""
        return NoiseLadder(
            secret,
            self.field_name,
            features=features,
            classes=classes,
            length_scale=self.length_scale,
            depth=self.depth,
            metric=self.metric,
            balance=self.balance,
        )

    def to_json(self) -> str:
        """One line of JSON."""
        metric = None if self.metric is None else _encoded(self.metric)
        balance = self.balance and {"positions": self.balance.positions, "offsets": _encoded(self.balance.offsets)}
        return json.dumps(asdict(replace(self, metric=None, balance=None)) | {"metric": metric, "balance": balance})

    @classmethod
    def from_json(cls, text: str) -> Calibration:
        """Parse what `to_json` wrote.

        Raises:
            ValueError: not a calibration.
        """
        try:
            fields = json.loads(text)
            return cls(
                fingerprint=str(fields["fingerprint"]),
                length_scale=float(fields["length_scale"]),
                depth=int(fields["depth"]),
                curve=tuple((int(p), float(a)) for p, a in fields["curve"]),
                favour_gap=tuple(map(float, fields["favour_gap"])),
                avoid_gap=tuple(map(float, fields["avoid_gap"])),
                answers=int(fields["answers"] if "answers" in fields else fields["rows"]),
                metric=None if fields["metric"] is None else _decoded(fields["metric"]),
                block=int(fields["block"]),
                balance=_balance(fields.get("balance")),
                field_name=str(fields.get("field_name", "")),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a stored calibration: {error!r}") from None

    def save(self, path: Path) -> None:
        """Write to a JSON file."""
        path.write_text(self.to_json() + "\n")

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read what `save` wrote."""
        return cls.from_json(path.read_text())


def _balance(stored: dict[str, Any] | None) -> Balance | None:
    return None if stored is None else Balance(tuple(map(int, stored["positions"])), _decoded(stored["offsets"]))


def _encoded(values: Tensor) -> dict[str, object]:
    data = values.cpu().float().contiguous().numpy().astype("<f4").tobytes()
    return {"shape": list(values.shape), "float32": base64.b64encode(data).decode()}


def _decoded(stored: dict[str, Any]) -> Tensor:
    values = np.frombuffer(base64.b64decode(stored["float32"]), dtype="<f4").copy()
    return torch.from_numpy(values).reshape(stored["shape"])


def _share_of_cell(level: float, low: float, high: float) -> float:
    """How far into a cell that leads from agreement `low` down to `high` a level is met, 0 to 1."""
    if low <= level:
        return 0.0
    if low == 1.0:
        return (low - level) / (low - high)
    return math.log((1.0 - level) / (1.0 - low)) / math.log((1.0 - high) / (1.0 - low))


def _median_distance(features: Tensor, labels: Tensor, sample: int = 2000) -> float:
    """Median distance between features [N, H] of one class, over a strided sample; of all where too few share one."""
    stride = max(1, features.shape[0] // sample)
    x, y = features[::stride].float(), labels[::stride]
    x = x - x.mean(dim=0)  # what all have in common would cost the distances' small digits
    distances = torch.cdist(x, x)
    upper = torch.ones_like(distances, dtype=torch.bool).triu(diagonal=1)
    same = upper & (y[:, None] == y[None, :])
    chosen = distances[same] if int(same.sum()) >= 1000 else distances[upper]
    return float(chosen.median())


def _round(value: float) -> float:
    """Two significant digits: rounding differences between machines must not select another field."""
    return float(f"{value:.2g}")


def _falling(curve: list[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    """The running minimum: a level is delivered where it is first crossed, so levels stay monotone."""
    kept = [curve[0]]
    for (before, _), (position, value) in zip(curve, curve[1:], strict=False):
        lowest = kept[-1][1]
        if value < lowest:
            if before > kept[-1][0]:
                kept.append((before, lowest))
            kept.append((position, value))
    return tuple(kept)


def _focus_gaps(highest: Candidates, contention: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Median margins for favouring and avoiding, per class, or one for all where most classes are never seen."""
    top, index = highest.logits[:, :contention], highest.index[:, :contention]
    margins = top[:, :1] - top[:, 1:]
    favour_all, avoid_all = float(margins.median()), float(margins[:, 0].median())
    classes = highest.classes
    if contention > 2 or classes > 1000:
        return (favour_all,), (avoid_all,)
    favour, avoid = [], []
    for k in range(classes):
        second, first = margins[index[:, 1:] == k], margins[index[:, 0] == k, 0]
        favour.append(float(second.median()) if len(second) >= MIN_ROWS_PER_CLASS else favour_all)
        avoid.append(float(first.median()) if len(first) >= MIN_ROWS_PER_CLASS else avoid_all)
    return tuple(favour), tuple(avoid)
