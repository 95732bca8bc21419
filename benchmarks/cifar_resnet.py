"""A CIFAR-10 ResNet of others' training, for comparison alone: He et al., CVPR 2016, section 4.2, of depth 6 n + 2."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

WIDTHS = (16, 32, 64)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What the checkpoints of github.com/akamaster/pytorch_resnet_cifar10 were trained with."""
_BATCH = 250


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters: every other place, new channels 0."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self._stride, self._added = stride, (width - before) // 2

    def forward(self, x: Tensor) -> Tensor:
        """[B, before, h, w] to [B, width, h / stride, w / stride]."""
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + F.pad(x[:, :, :: self._stride, :: self._stride], (0, 0, 0, 0, self._added, self._added)))


class CifarResNet(nn.Module):
    """Three stages of as many blocks each."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, WIDTHS[0], 3, 1, 1, bias=False), nn.BatchNorm2d(WIDTHS[0])
        before = WIDTHS[0]
        for stage, width in enumerate(WIDTHS, start=1):
            first = Block(before, width, 1 if stage == 1 else 2)
            self.add_module(f"layer{stage}", nn.Sequential(first, *(Block(width, width, 1) for _ in range(blocks - 1))))
            before = width
        self.linear = nn.Linear(before, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, 32, 32] to logits [B, 10]."""
        for stage in (nn.Sequential(self.conv1, self.bn1, nn.ReLU()), *(getattr(self, f"layer{i}") for i in (1, 2, 3))):
            x = stage(x)
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits


def load(path: Path) -> CifarResNet:
    """A checkpoint of that repository, of any depth."""
    saved = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    state = {name.removeprefix("module."): value for name, value in saved.items()}
    model = CifarResNet(sum(name.startswith("layer1.") and name.endswith("conv1.weight") for name in state))
    model.load_state_dict(state)
    return model.eval()


@torch.inference_mode()
def logits_of(model: CifarResNet, files: Sequence[Path]) -> Tensor:
    """[N, 10] float32 of 32x32 pictures."""
    parts = []
    for start in range(0, len(files), _BATCH):
        pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files[start : start + _BATCH]])
        x = torch.from_numpy(pixels).movedim(-1, 1) / 255.0
        parts.append(model((x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]))
    return torch.cat(parts)
