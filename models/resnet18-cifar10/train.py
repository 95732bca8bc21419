"""Train torchvision's ResNet-18 from scratch on CIFAR-10 JPEGs resized to 64 x 64.

Every tenth image, drawn with seed 7, is held back and never trained on. The shipped weights are 14 epochs at 2e-3 and
then 11 more at 1.2e-3 (`--epochs 11 --learning-rate 1.2e-3 --start FIRST`), about an hour on two CPU cores.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models import resnet18

SIZE, BATCH, HELD_BACK = 64, 128, 5000
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


def load(root: Path) -> tuple[Tensor, Tensor]:
    """All images [50000, 3, 32, 32] uint8 and labels [50000] int64, by class and file name."""
    folders = sorted((root / "train").iterdir())
    files = [(file, k) for k, folder in enumerate(folders) for file in sorted(folder.glob("*.jpg"))]
    images = np.stack([np.asarray(Image.open(file).convert("RGB")) for file, _ in files])
    return torch.tensor(images).permute(0, 3, 1, 2).contiguous(), torch.tensor([k for _, k in files])


def prepare(images: Tensor) -> Tensor:
    """Images [N, 3, h, w] in 0..255 to normalised inputs [N, 3, 64, 64]."""
    resized = F.interpolate(images.float(), (SIZE, SIZE), mode="bilinear", align_corners=False, antialias=True)
    return ((resized / 255 - MEAN) / STD).contiguous(memory_format=torch.channels_last)


def augment(images: Tensor) -> Tensor:
    """Shift by up to 4 pixels and flip half of them."""
    padded = F.pad(images.float(), (4,) * 4, mode="reflect")
    down, right = torch.randint(0, 9, (2, len(images)))
    shifted = torch.stack(
        [image[:, i : i + 32, j : j + 32] for image, i, j in zip(padded, down.tolist(), right.tolist(), strict=True)]
    )
    flip = torch.rand(len(images)) < 0.5
    shifted[flip] = shifted[flip].flip(3)
    return shifted


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of right answers."""
    model.eval()
    chunks = zip(images.split(500), labels.split(500), strict=True)
    hits = sum(int((model(prepare(x)).argmax(1) == y).sum()) for x, y in chunks)
    model.train()
    return hits / len(images)


def train(model: nn.Module, images: Tensor, labels: Tensor, out: Path, epochs: int, learning_rate: float) -> None:
    """Train on all but the held-back images; float16 weights are written to `out` after each epoch."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(7))
    held_back, rest = order[:HELD_BACK], order[HELD_BACK:]
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.05)
    steps = epochs * (len(rest) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.2)
    started = time.time()
    for epoch in range(epochs):
        shuffled = rest[torch.randperm(len(rest))]
        for batch in shuffled[: len(rest) // BATCH * BATCH].split(BATCH):
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(prepare(augment(images[batch])))
            loss = F.cross_entropy(logits.float(), labels[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        right = accuracy(model, images[held_back], labels[held_back])
        print(f"epoch {epoch}: {time.time() - started:.0f} s, held-back accuracy {right:.4f}", flush=True)
        state = {name: v.half() if v.is_floating_point() else v for name, v in model.state_dict().items()}
        save_file({name: v.contiguous() for name, v in state.items()}, out)


def main() -> None:
    """Read the arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder that holds train/<class>/*.jpg")
    parser.add_argument("out", type=Path, help="the .safetensors file to write")
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--start", type=Path, help="weights (.safetensors) to go on from")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = resnet18(num_classes=10).to(memory_format=torch.channels_last)
    if arguments.start:
        model.load_state_dict(load_file(arguments.start))
    train(model, *load(arguments.data), arguments.out, arguments.epochs, arguments.learning_rate)


if __name__ == "__main__":
    main()
