"""What the levels deliver on a sample of live rows: of all tenants together, and of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from policies.audit import Tally
from policies.calibration.delivered import JudgedRows
from policies.calibration.sample import CalibrationSample
from policies.field.variance import scale_of
from policies.head.head import Head
from policies.head.slots import Setting


@torch.inference_mode()
def expected(sample: CalibrationSample, groups: Tensor, head: Head, levels: Iterable[float]) -> dict[float, Tally]:
    """What levels deliver on a sample, on the noise field in use and at the resolution that the client sees.

    Not the closed form: one field's level scatters around it by 0.02 (docs/decisions/0001), which is the whole margin.
    A level of text is judged on the rows of answers that were given nearest to it.

    Args:
        sample: clean rows.
        groups: [M] int64, the input of each row, or where the sample has a readout of each row that it reads.
    """
    return {
        level: Tally.of_groups(answers.tolist(), agreed.tolist())
        for level, _, answers, agreed in _agreed(sample, groups, head, levels)
    }


@torch.inference_mode()
def by_tenant(
    sample: CalibrationSample, numbers: Tensor, pairs: Tensor, head: Head, levels: Iterable[float]
) -> dict[float, dict[int, Tally]]:
    """As `expected`, by level and tenant.

    Args:
        numbers: [M] int64, for each row or answer which pair it is of.
        pairs: [P, 2] int64, tenant and input of each pair.
    """
    tallies: dict[float, dict[int, Tally]] = {}
    for level, found, answers, agreed in _agreed(sample, numbers, head, levels):
        owners = pairs[found, 0]
        tallies[level] = {
            owner: Tally.of_groups(answers[owners == owner].tolist(), agreed[owners == owner].tolist())
            for owner in owners.unique().tolist()
        }
    return tallies


def _agreed(
    sample: CalibrationSample, groups: Tensor, head: Head, levels: Iterable[float]
) -> Iterator[tuple[float, Tensor, Tensor, Tensor]]:
    """Of each level the groups that are judged, and how many answers of each there are and agree: [G] int64."""
    phi = head.phi(sample.features if sample.field_features is None else sample.field_features)
    near = torch.zeros(1, dtype=torch.int64) if sample.at is None else sample.at.unique().cpu()
    judged: dict[int, tuple[JudgedRows, Tensor, Tensor]] = {}
    for level in levels:
        position = head.position(Setting(level))
        place = int(near[(near - position).abs().argmin()])
        if place not in judged:
            judged[place] = _judged(sample, phi, groups, place)
        rows, found, number = judged[place]
        agreed = rows.same(head.matrix_at(position), scale_of(position)).cpu()
        yield level, found, torch.bincount(number), torch.bincount(number, agreed.double()).long()


def _judged(sample: CalibrationSample, phi: Tensor, groups: Tensor, place: int) -> tuple[JudgedRows, Tensor, Tensor]:
    """The rows of answers given at a place, all where it does not matter; its groups, and the number of each one's."""
    if sample.at is None:
        rows = JudgedRows(phi, sample.logits, sample.readout)
    else:
        chosen = sample.at == place
        rows, groups = JudgedRows(phi[chosen], sample.logits[chosen], sample.readout), groups[chosen.cpu()]
    return rows, *groups.unique(return_inverse=True)
