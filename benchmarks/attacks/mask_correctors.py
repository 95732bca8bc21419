"""Correctors of masks: softmax regression of a pixel's true class on the answers around it, or on the picture alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.attacks.arithmetic import Corrector
from benchmarks.attacks.mask_features import EDGE, VOID, Scene
from benchmarks.attacks.smoothing import window_means

PIXELS = 6000
WINDOWS = (7, 31, 121)
"""Pixels a side of the neighbourhoods that a corrector sees."""
STRIDE = 3
"""Every third pixel each way is judged: neighbours say nearly the same."""
Seen = Callable[[Tensor, Scene], Tensor]
"""Shares of votes [K, h, w] and their scene to what a corrector sees of each pixel, [F, h, w]."""


def around(shares: Tensor, scene: Scene) -> Tensor:
    """A pixel's own answer and the shares around it."""
    return torch.cat([shares, *(window_means(shares, size) for size in WINDOWS)])


def near(shares: Tensor, scene: Scene) -> Tensor:
    """The shares within 31 pixels alone."""
    return window_means(shares, 31)


def picture(shares: Tensor, scene: Scene) -> Tensor:
    """Place and colour, and no answer: what the attacker's own labels are worth without the model."""
    height, width = scene.truth.shape
    y = torch.linspace(-1, 1, height)[:, None].expand(height, width)
    x = torch.linspace(-1, 1, width)[None].expand(height, width)
    place = torch.stack([y, x, y * y, x * x, x * y, y**3, x.abs(), y * y * x * x, (y > 0).float(), x**3 * y])
    colour = scene.picture.permute(2, 0, 1).float() / 255
    means = [window_means(values, size) for values, size in ((colour, 15), (colour**2, 15), (colour, 61))]
    return torch.cat([place, colour, *means])


def everything(shares: Tensor, scene: Scene) -> Tensor:
    """Answers, place and colour."""
    return torch.cat([around(shares, scene), picture(shares, scene)])


def corrected(
    sees: Seen, known: Sequence[tuple[Tensor, Scene]], judged: Sequence[tuple[Tensor, Scene]], believes: bool
) -> float:
    """Accuracy on judged pictures of a corrector fitted on 6,000 pixels of labelled ones.

    Args:
        known, judged: shares of votes [K, h, w] and their scenes.
        believes: whether it starts from a pixel's own answer, or from nothing.
    """
    generator = torch.Generator().manual_seed(0)
    seen, own, truth = [], [], []
    for shares, scene in known:
        at = torch.nonzero(scene.truth.flatten() != VOID)[:, 0]
        at = at[torch.randperm(len(at), generator=generator)[: PIXELS // len(known)]]
        seen.append(sees(shares, scene).flatten(1).T[at])
        own.append(shares.flatten(1).T[at] * believes)
        truth.append(scene.truth.flatten()[at])
    fitted = Corrector(torch.cat(seen), torch.cat(own), torch.cat(truth))
    right = count = 0
    for shares, scene in judged:
        at = _places(scene)
        scores = fitted(sees(shares, scene).flatten(1).T[at], shares.flatten(1).T[at] * believes)
        right += int((scores.argmax(dim=1) == scene.truth.flatten()[at]).sum())
        count += len(at)
    return right / count


def _places(scene: Scene) -> Tensor:
    """Indices of the pixels that are judged: neither void nor edge, every third each way."""
    chosen = torch.zeros(scene.truth.shape, dtype=torch.bool)
    chosen[EDGE:-EDGE:STRIDE, EDGE:-EDGE:STRIDE] = True
    return torch.nonzero((chosen & (scene.truth != VOID)).flatten())[:, 0]
