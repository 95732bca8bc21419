"""A student of masks without any encoder: a small segmenter, from scratch on a level's answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.attacks.mask_attack import MaskAttack
from benchmarks.attacks.mask_features import OTHER, VOID, Scene
from benchmarks.attacks.smoothing import one_hot

PICTURES, FEW = 367, 40
STEPS, MORE_STEPS, BATCH = 350, 60, 8
"""Batches on answers, and on half answers and half labels after that."""
SIDES, CELLS = (120, 160), (60, 80)
"""What the segmenter sees, and what it answers."""
_RATE = 3e-3
Rows = dict[str, Callable[[], float]]


class Segmenter(nn.Module):
    """A feature pyramid of 0.6 million parameters: pictures [B, 3, 120, 160] in 0 to 1, to logits [B, K, 60, 80]."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        widths = (24, 48, 96, 160)
        self.stem = _block(5, widths[0], 2)  # colour, and the place
        self.down = nn.ModuleList(
            nn.Sequential(_block(a, b, 2), _block(b, b, 1)) for a, b in zip(widths, widths[1:], strict=False)
        )
        self.side = nn.ModuleList(nn.Conv2d(width, 48, 1) for width in widths)
        self.smooth = nn.ModuleList(_block(48, 48, 1) for _ in widths[1:-1])
        self.last = nn.Sequential(_block(48, 32, 1), nn.Conv2d(32, classes, 1))

    def forward(self, pictures: Tensor) -> Tensor:
        """One pass."""
        y, x = (torch.linspace(-1, 1, side) for side in pictures.shape[2:])
        place = torch.stack(torch.meshgrid(y, x, indexing="ij")).expand(len(pictures), -1, -1, -1)
        maps = [self.stem(torch.cat([pictures * 4 - 2, place], dim=1))]
        for down in self.down:
            maps.append(down(maps[-1]))
        top = self.side[-1](maps[-1])
        for number in (2, 1):
            top = self.smooth[number - 1](_widened(top, maps[number]) + self.side[number](maps[number]))
        return cast(Tensor, self.last(_widened(top, maps[0]) + self.side[0](maps[0])))


class MaskSegmenters:
    """Segmenters of one source at one level. Attacks return the pixel accuracy reached on the judged pictures.

    Args:
        pictures: the attacker's own, without labels.
    """

    def __init__(self, attack: MaskAttack, pictures: Sequence[Scene]) -> None:
        self._attack, self._pictures = attack, pictures

    def rows(self) -> Rows:
        """Attacks by name."""
        return {
            f"segmenter from scratch: {PICTURES} pictures": self.plain,
            f"segmenter from scratch: the same, 8 labelled, {OTHER}": self.labelled,
            f"segmenter from scratch: {FEW} pictures": self.few,
        }

    def alone(self) -> Rows:
        """What the attacker's labels are worth without any answer."""
        return {f"8 labelled alone, segmenter from scratch, {OTHER}": self.labels_alone}

    def plain(self) -> float:
        """On one answer to each picture."""
        return self._judged(self._student)

    def few(self) -> float:
        """On the first pictures only."""
        x, y = self._answers
        return self._judged(trained(x[:FEW], y[:FEW], STEPS // 2))

    def labelled(self) -> float:
        """On answers, then on as many labelled pictures as answered ones in each batch."""
        (x, y), (more_x, more_y) = self._answers, self._labels
        times = len(x) // len(more_x)
        student = trained(
            torch.cat([x, more_x.repeat(times, 1, 1, 1)]),
            torch.cat([y, more_y.repeat(times, 1, 1, 1)]),
            MORE_STEPS,
            self._student,
        )
        return self._judged(student)

    def labels_alone(self) -> float:
        """On the labelled pictures only."""
        return self._judged(trained(*self._labels, STEPS // 2))

    @cached_property
    def _student(self) -> Segmenter:
        return trained(*self._answers, STEPS)

    @cached_property
    def _answers(self) -> tuple[Tensor, Tensor]:
        return _seen(self._pictures), torch.stack([_shares(self._attack.answer(s)) for s in self._pictures])

    @cached_property
    def _labels(self) -> tuple[Tensor, Tensor]:
        scenes, classes = self._attack.data.foreign, self._attack.data.foreign[0].logits.shape[1]
        truths = [one_hot(scene.truth, VOID + 1)[:classes] for scene in scenes]
        return _seen(scenes), torch.stack([_shares(truth) for truth in truths])

    @torch.inference_mode()
    def _judged(self, student: Segmenter) -> float:
        logits = student(_seen(self._attack.data.judged))
        size = self._attack.data.judged[0].truth.shape
        return self._attack.judge(F.interpolate(logits, size, mode="bilinear", align_corners=False))


def trained(x: Tensor, y: Tensor, steps: int, begin: Segmenter | None = None) -> Segmenter:
    """A segmenter of pictures [N, 3, 120, 160] and the shares of their classes [N, K, 60, 80], mirrored at random.

    Args:
        begin: what to go on from, at a third of the rate; it is left as it is.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        student = Segmenter(y.shape[1]).to(memory_format=torch.channels_last)
        if begin is not None:
            student.load_state_dict(begin.state_dict())
        rate = _RATE if begin is None else _RATE / 3
        optimizer = torch.optim.AdamW(student.parameters(), lr=rate, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
        order = torch.cat([torch.randperm(len(x)) for _ in range(steps * BATCH // len(x) + 1)])
        for part in order[: steps * BATCH].split(BATCH):
            ways = [-1] if torch.rand(()) < 0.5 else []
            pictures, shares = x[part].flip(ways), y[part].flip(ways)
            pictures = pictures * (0.8 + 0.4 * torch.rand(len(part), 1, 1, 1))  # light
            optimizer.zero_grad()
            logits = student(pictures.to(memory_format=torch.channels_last))
            loss = -(shares * logits.log_softmax(dim=1)).sum() / shares.sum()
            loss.backward()
            optimizer.step()
            schedule.step()
    return student.eval()


def _block(inner: int, outer: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU(inplace=True)
    )


def _widened(maps: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(maps, like.shape[2:], mode="bilinear", align_corners=False)


def _seen(scenes: Sequence[Scene]) -> Tensor:
    """Pictures at a third of their sides: [N, 3, 120, 160] in 0 to 1."""
    return torch.cat([F.adaptive_avg_pool2d(s.picture.movedim(-1, 0)[None].float() / 255, SIDES) for s in scenes])


def _shares(masks: Tensor) -> Tensor:
    """Shares [K, h, w] of classes to those of cells [K, 60, 80]."""
    return F.adaptive_avg_pool2d(masks, CELLS)
