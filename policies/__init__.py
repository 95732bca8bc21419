"""Logits redistribution: what is sold, and the exact maths of delivering it. Imports neither Ray nor Redis.

Tensor names load on first use, so that the gateway and `tenants` can import the terms without loading torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from policies.terms import Disclosure, Focus, Modulation, Share, Tier, resolve, round_level

if TYPE_CHECKING:
    from policies.calibration import Calibration
    from policies.closed_form import agreement, sigma_for
    from policies.focus import focus_std
    from policies.ladder import NoiseLadder
    from policies.layer import ModulatedLayer
    from policies.rows import RowTerms

_LAZY = {
    "agreement": "policies.closed_form",
    "sigma_for": "policies.closed_form",
    "Calibration": "policies.calibration",
    "focus_std": "policies.focus",
    "NoiseLadder": "policies.ladder",
    "ModulatedLayer": "policies.layer",
    "RowTerms": "policies.rows",
}

__all__ = [
    "Calibration",
    "Disclosure",
    "Focus",
    "ModulatedLayer",
    "Modulation",
    "NoiseLadder",
    "RowTerms",
    "Share",
    "Tier",
    "agreement",
    "focus_std",
    "resolve",
    "round_level",
    "sigma_for",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'policies' has no attribute '{name}'")
