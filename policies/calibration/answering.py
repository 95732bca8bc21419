"""How a text model's levels are solved: on steps of answers that were themselves modulated, given near some levels.

A pilot answers a few prompts at full quality, which shows where on the ladder the levels lie about. Then all prompts
are answered near each of `LEVELS`, and every level is solved on the steps of the answers that were given nearest to it.
"""

from __future__ import annotations

STEPS = 32
"""Tokens of each answer."""
MOST_PROMPTS = 100
"""More are thinned to so many."""
PILOT = 6
"""One prompt in so many is first answered at full quality."""
LEVELS = (0.95, 0.85, 0.7, 0.5, 0.4)
"""Where, by the pilot, the answers that calibrate are given. Modulated answers lead elsewhere than clean ones.

None lower: where the pilot says 0.3 answers run in circles and agree more again, which would blur what 0.5 delivers."""
COARSE = 0.1
"""Agreement between points of the pilot's curve."""
CANDIDATES = 256
"""Logits kept of a step; the others are looked at where their noise could make them win."""
