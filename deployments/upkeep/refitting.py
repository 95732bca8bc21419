"""A refit on live rows: solved on a sample in which no tenant has more than a fifth, and moved by none too far."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from deployments.engines.calibrated import CalibratedEngine
from deployments.engines.errors import LoadError
from deployments.engines.judging import by_tenant
from deployments.engines.live import SHARE, Kept
from policies.audit import Tally
from policies.calibration.calibration import Calibration
from policies.calibration.influence import Influence, worst


@dataclass(frozen=True)
class Refitted:
    """What a refit on live rows gave.

    Attributes:
        calibration: the refit.
        tenants: on how many tenants' rows it was solved.
        left_out: how many were left out, since they moved a level for the others too far.
        capped: whether no tenant had more than a fifth, so that what one moves is bounded.
    """

    calibration: Calibration
    tenants: int
    left_out: int = 0
    capped: bool = True


def refitted(
    engine: CalibratedEngine,
    kept: Kept,
    secret: bytes,
    stored: Calibration,
    levels: Sequence[float],
    *,
    least: int,
    strict: bool,
    progress: Callable[[float], None] | None = None,
) -> Refitted:
    """Solve the levels anew on live rows, on the field of `stored`.

    One tenant that moves a level in use further than it may is left out, and the levels are solved once more.

    Args:
        engine: of the model, serving nobody; it has no head afterwards.
        kept: from `CalibratedEngine.live_rows`.
        levels: those in use, below 1.0.
        least: inputs that there must be, of which no tenant has more than a fifth.
        strict: whether to refuse rows of too few tenants to cap, and to leave focus as it is: levels alone move. Else
            all rows are taken then, and what one tenant moves has no bound.
        progress: called with the share done, 0 to 1.

    Raises:
        LoadError: rows of too few tenants, or one tenant too many that moves a level too far; the message says why.
    """
    rows, capped = _sample(engine, kept, least, strict)
    solved = _solved(engine, rows, secret, stored, progress)
    left_out = 0
    if capped and (first := _beyond(engine, rows, secret, solved, levels)):
        left_out = 1
        rows, _ = _sample(engine, kept.without(first.tenant), least, strict=True, besides=first)
        solved = _solved(engine, rows, secret, stored, progress)
        if second := _beyond(engine, rows, secret, solved, levels):
            raise LoadError(
                f"two tenants' live inputs each move a level of {engine.model_id} for the others further than they may:"
                f" {_told(first)}, and without that one {_told(second)}; calibrate it on inputs that you picked"
            )
    if strict:
        solved = replace(solved, favour_gap=stored.favour_gap, avoid_gap=stored.avoid_gap)
    return Refitted(solved, rows.tenants, left_out, capped)


def _sample(
    engine: CalibratedEngine, kept: Kept, least: int, strict: bool, besides: Influence | None = None
) -> tuple[Kept, bool]:
    """The rows to solve on, and whether no tenant has more than a fifth of them."""
    rows = kept.capped()
    if rows.inputs >= least:
        return rows, True
    if not strict:
        return kept, False
    why = f" besides one that moves a level for the others too far ({_told(besides)})" if besides else ""
    raise LoadError(
        f"{engine.model_id} has live rows of {kept.tenants} tenants to solve on{why}, of which {rows.inputs} inputs are"
        f" left where none has more than a fifth; it needs {least}, of at least {SHARE} tenants"
    )


def _solved(
    engine: CalibratedEngine,
    rows: Kept,
    secret: bytes,
    stored: Calibration,
    progress: Callable[[float], None] | None,
) -> Calibration:
    return engine.fit(engine.sample_of(rows)[0], secret, stored=stored, progress=progress)


def _beyond(
    engine: CalibratedEngine, rows: Kept, secret: bytes, solved: Calibration, levels: Sequence[float]
) -> Influence | None:
    """The tenant that moves a level furthest beyond what it may; None where none does."""
    return worst(delivered_by_tenant(engine, rows, secret, solved, levels))


def delivered_by_tenant(
    engine: CalibratedEngine, rows: Kept, secret: bytes, calibration: Calibration, levels: Sequence[float]
) -> dict[float, dict[int, Tally]]:
    """By level and tenant, what a calibration delivers on rows. The engine has no head before and after."""
    pairs, numbers = torch.stack([rows.owners, rows.groups], dim=1).unique(dim=0, return_inverse=True)
    engine.install(calibration, secret)
    try:
        sample, judged = engine.sample_of(replace(rows, groups=numbers))
        return by_tenant(sample, judged, pairs, engine.head, levels)
    finally:
        engine.uninstall()


def _told(influence: Influence) -> str:
    return f"{influence.level:g} by {influence.moved:+.3f}, where {influence.bound:.3f} is allowed"
