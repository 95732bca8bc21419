"""The method in one call: `modulate` puts the head on a model of one's own, `Sold` answers at its levels."""

from policies.library.modulating import modulate
from policies.library.sold import Curve, Sold

__all__ = ["Curve", "Sold", "modulate"]
