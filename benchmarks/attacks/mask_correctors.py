"""Correctors of masks: softmax regression of a pixel's true class on the answers around it, or on the picture alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from benchmarks.attacks.mask_features import EDGE, VOID, Scene
from benchmarks.attacks.smoothing import window_means
from policies.attacks.corrector import Corrector
from policies.attacks.learners import Learner, linear

PIXELS = 6000
WINDOWS = (7, 31, 121)
"""Pixels a side of the neighbourhoods that a corrector sees."""
STRIDE = 3
"""Every third pixel each way is judged: neighbours say nearly the same."""


@dataclass(frozen=True)
class Pixels:
    """Some pixels of masks and pictures.

    Attributes:
        own: [N, K] shares of votes at the pixel.
        around: [N, 3, K] means of the shares over windows of 7, 31 and 121 pixels.
        picture: [N, F] place and colour.
        truth: [N] int64.
    """

    own: Tensor
    around: Tensor
    picture: Tensor
    truth: Tensor


Seen = Callable[[Pixels], Tensor]
"""Pixels to what a corrector sees of each, [N, F]."""


def own(pixels: Pixels) -> Tensor:
    """A pixel's own answer alone: what an answer is worth without a smoother."""
    return pixels.own


def near(pixels: Pixels) -> Tensor:
    """The answers within 31 pixels alone."""
    return pixels.around[:, 1]


def answers(pixels: Pixels) -> Tensor:
    """A pixel's own answer and all those around it."""
    return torch.cat([pixels.own, pixels.around.flatten(1)], dim=1)


def picture(pixels: Pixels) -> Tensor:
    """Place and colour, and no answer: what the attacker's own labels are worth without the model."""
    return pixels.picture


def everything(pixels: Pixels) -> Tensor:
    """Answers, place and colour."""
    return torch.cat([answers(pixels), pixels.picture], dim=1)


def labelled(given: Sequence[tuple[Tensor, Scene]]) -> Pixels:
    """6,000 random pixels of labelled scenes and the shares of votes [K, h, w] that they got."""
    generator, parts = torch.Generator().manual_seed(0), []
    for shares, scene in given:
        at = torch.nonzero(scene.truth.flatten() != VOID)[:, 0]
        parts.append(_pixels(shares, scene, at[torch.randperm(len(at), generator=generator)[: PIXELS // len(given)]]))
    return _joined(parts)


def judging(given: Sequence[tuple[Tensor, Scene]]) -> Pixels:
    """The pixels that judge: neither void nor edge, every third each way."""
    parts = []
    for shares, scene in given:
        chosen = torch.zeros(scene.truth.shape, dtype=torch.bool)
        chosen[EDGE:-EDGE:STRIDE, EDGE:-EDGE:STRIDE] = True
        parts.append(_pixels(shares, scene, torch.nonzero((chosen & (scene.truth != VOID)).flatten())[:, 0]))
    return _joined(parts)


def corrected(sees: Seen, known: Pixels, judged: Pixels, learner: Learner = linear) -> float:
    """Accuracy on judged pixels of a corrector fitted on known ones.

    It starts from a pixel's own answer where it sees that, else from nothing.
    """
    believes = float(sees in (own, answers, everything))
    fitted = Corrector(sees(known), known.own * believes, known.truth, learner)
    return float((fitted(sees(judged), judged.own * believes).argmax(dim=1) == judged.truth).float().mean())


def _pixels(shares: Tensor, scene: Scene, at: Tensor) -> Pixels:
    around = torch.stack([window_means(shares, size).flatten(1)[:, at] for size in WINDOWS])
    return Pixels(
        own=shares.flatten(1).T[at],
        around=around.permute(2, 0, 1),
        picture=place_and_colour(scene.picture).flatten(1).T[at],
        truth=scene.truth.flatten()[at],
    )


def place_and_colour(picture: Tensor) -> Tensor:
    """[h, w, 3] uint8 to [22, h, w]: a curve in the place, the colour, its means and spread over 15 and 61 pixels."""
    height, width = picture.shape[:2]
    y = torch.linspace(-1, 1, height)[:, None].expand(height, width)
    x = torch.linspace(-1, 1, width)[None].expand(height, width)
    place = torch.stack([y, x, y * y, x * x, x * y, y**3, x.abs(), y * y * x * x, (y > 0).float(), x**3 * y])
    colour = picture.permute(2, 0, 1).float() / 255
    means = [window_means(values, size) for values, size in ((colour, 15), (colour**2, 15), (colour, 61))]
    return torch.cat([place, colour, *means])


def _joined(parts: Sequence[Pixels]) -> Pixels:
    return Pixels(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Pixels)))
