"""Logits redistribution: what is sold, and the exact maths of delivering it. Imports neither Ray nor Redis.

Tensor names load on first use, so that the gateway and `tenants` can import the terms without loading torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from policies.terms import Disclosure, Focus, Modulation, Share, Tier, resolve, round_level

if TYPE_CHECKING:
    from policies.calibration.calibration import Calibration
    from policies.closed_form import agreement, sigma_for
    from policies.field.ladder import NoiseLadder
    from policies.head.attachment import attach, detach
    from policies.head.final import NoFinalLayer
    from policies.head.focus import focus_std
    from policies.head.head import Head
    from policies.head.slots import Setting
    from policies.library.modulating import modulate
    from policies.library.sold import Sold

_LAZY = {
    "agreement": "policies.closed_form",
    "sigma_for": "policies.closed_form",
    "Calibration": "policies.calibration.calibration",
    "focus_std": "policies.head.focus",
    "NoiseLadder": "policies.field.ladder",
    "Head": "policies.head.head",
    "Setting": "policies.head.slots",
    "NoFinalLayer": "policies.head.final",
    "modulate": "policies.library.modulating",
    "Sold": "policies.library.sold",
    "attach": "policies.head.attachment",
    "detach": "policies.head.attachment",
}

__all__ = [
    "Calibration",
    "Disclosure",
    "Focus",
    "Head",
    "Modulation",
    "NoFinalLayer",
    "NoiseLadder",
    "Setting",
    "Share",
    "Sold",
    "Tier",
    "agreement",
    "attach",
    "detach",
    "focus_std",
    "modulate",
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
