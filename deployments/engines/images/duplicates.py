"""Near-duplicates of a picture: what a client can send in its place, in the hope of other noise."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor

MOST_STEPS = 2


@dataclass(frozen=True)
class Duplicate:
    """One way to send nearly the same picture again: mirrored, shifted, jittered, re-encoded.

    Attributes:
        right, down: shift in steps, -2 to 2.
        jitter: largest change of a pixel, in 1/255.
        quality: of a JPEG re-encoding; None: none.
        seed: of the jitter.
    """

    mirrored: bool
    right: int
    down: int
    jitter: int
    quality: int | None
    seed: int

    @classmethod
    def draw(cls, number: int) -> Duplicate:
        """The way of a number, the same everywhere; 0 is the picture itself."""
        if number == 0:
            return cls(False, 0, 0, 0, None, 0)
        rng = np.random.default_rng(number)
        right, down = (int(v) for v in rng.integers(-MOST_STEPS, MOST_STEPS + 1, 2))
        jitter, quality = int(rng.choice([0, 1, 2, 4, 8])), int(rng.choice([0, 95, 85, 70]))
        return cls(bool(rng.random() < 0.5), right, down, jitter, quality or None, number)

    def apply(self, image: Image.Image, step: int) -> Image.Image:
        """The picture sent in its place, of the same size; a shift is `step` pixels, what it uncovers is mirrored."""
        pixels = np.asarray(image)
        if self.mirrored:
            pixels = pixels[:, ::-1]
        margin = MOST_STEPS * step
        wide = np.pad(pixels, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
        top, left = margin + self.down * step, margin + self.right * step
        pixels = wide[top : top + image.height, left : left + image.width]
        if self.jitter:
            noise = np.random.default_rng(self.seed).integers(-self.jitter, self.jitter + 1, pixels.shape)
            pixels = np.clip(pixels.astype(np.int16) + noise, 0, 255).astype(np.uint8)
        changed = Image.fromarray(np.ascontiguousarray(pixels))
        if self.quality:
            file = io.BytesIO()
            changed.save(file, "JPEG", quality=self.quality)
            changed = Image.open(file).convert("RGB")
        return changed

    def undo(self, answer: Tensor) -> Tensor:
        """A map [..., h, w] answered to the duplicate, where a step is one cell, in the picture's own frame.

        Cells within two of the edge are not the picture's.
        """
        straight = answer.roll((self.down, self.right), (-2, -1))
        return straight.flip(-1) if self.mirrored else straight
