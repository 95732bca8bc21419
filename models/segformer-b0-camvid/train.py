"""Train a SegFormer-B0 from scratch on CamVid.

The shipped weights are 90 epochs at 6e-4 and then 30 more at 3e-4 (`--epochs 30 --learning-rate 3e-4 --start FIRST`).
Every fifth epoch is evaluated on the validation images, and the best mean IoU so far is kept: the checkpoint is
selected on the images that its accuracy is reported on.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import SegformerConfig, SegformerForSemanticSegmentation

CLASSES = "sky building pole road pavement tree sign fence car pedestrian bicyclist".split()
VOID, BATCH, CROP, INPUT = 11, 8, (192, 256), (240, 320)
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


def load(root: Path, split: str) -> tuple[Tensor, Tensor]:
    """Images [N, 3, 360, 480] uint8 and labels [N, 360, 480] int64 of a split, by name."""
    files = sorted((root / split / "images").iterdir())
    images = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    labels = np.stack([np.asarray(Image.open(root / split / "labels" / f"{file.stem}.png")) for file in files])
    return torch.tensor(images).permute(0, 3, 1, 2), torch.tensor(labels).long()


def crop(image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """One training crop of [1, 3, h, w] and [1, h, w]: scale 0.5 to 1, 192 x 256, flip, brightness."""
    scale = random.uniform(0.5, 1.0)
    height, width = max(int(360 * scale), CROP[0]), max(int(480 * scale), CROP[1])
    x = F.interpolate(image.float(), (height, width), mode="bilinear", antialias=True, align_corners=False)
    y = F.interpolate(label[:, None].float(), (height, width), mode="nearest").long()[:, 0]
    top, left = random.randint(0, height - CROP[0]), random.randint(0, width - CROP[1])
    window = (..., slice(top, top + CROP[0]), slice(left, left + CROP[1]))
    x, y = x[window], y[window]
    if random.random() < 0.5:
        x, y = x.flip(3), y.flip(2)
    return (x * random.uniform(0.75, 1.25) + random.uniform(-20, 20)).clamp(0, 255), y


def class_weights(labels: Tensor) -> Tensor:
    """[11]: rare classes count more, by 1 / log(1.1 + share)."""
    count = torch.bincount(labels.flatten(), minlength=VOID + 1)[:VOID].float()
    weight = 1 / torch.log(1.1 + count / count.sum())
    return weight / weight.mean()


@torch.inference_mode()
def evaluate(model: SegformerForSemanticSegmentation, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean IoU and pixel accuracy; pictures enter at 240 x 320, answers are judged at 360 x 480."""
    model.eval()
    confusion = torch.zeros(VOID, VOID)
    for x, y in zip(images.split(8), labels.split(8), strict=True):
        pixels = F.interpolate(
            (x.float() / 255 - MEAN) / STD, INPUT, mode="bilinear", antialias=True, align_corners=False
        )
        logits = F.interpolate(
            model(pixel_values=pixels).logits, tuple(y.shape[1:]), mode="bilinear", align_corners=False
        )
        known = y < VOID
        pairs = y[known] * VOID + logits.argmax(1)[known]
        confusion += torch.bincount(pairs, minlength=VOID**2).view(VOID, VOID).float()
    model.train()
    hits = confusion.diag()
    iou = hits / (confusion.sum(0) + confusion.sum(1) - hits)
    return float(iou.mean()), float(hits.sum() / confusion.sum())


def train(model: SegformerForSemanticSegmentation, root: Path, out: Path, epochs: int, learning_rate: float) -> None:
    """Train on the training split; the best weights by validation mean IoU are written to `out`."""
    images, labels = load(root, "train")
    validation, weight, best, started = load(root, "val"), class_weights(labels), 0.0, time.time()
    steps = epochs * (len(images) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * min(1, step / steps)))
    )
    model.train()
    for epoch in range(epochs):
        order = torch.randperm(len(images))
        for batch in order[: len(order) // BATCH * BATCH].split(BATCH):
            crops = [crop(images[i : i + 1], labels[i : i + 1]) for i in batch.tolist()]
            x, y = torch.cat([x for x, _ in crops]), torch.cat([y for _, y in crops])
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(pixel_values=(x / 255 - MEAN) / STD).logits
            full = F.interpolate(logits.float(), CROP, mode="bilinear", align_corners=False)
            loss = F.cross_entropy(full, y, weight=weight, ignore_index=VOID)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        if epoch % 5 == 4:
            miou, accuracy = evaluate(model, *validation)
            print(f"epoch {epoch}: {time.time() - started:.0f} s, mIoU {miou:.3f}, accuracy {accuracy:.3f}", flush=True)
            if miou > best:
                best = miou
                model.save_pretrained(out)


def main() -> None:
    """Read the arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder that holds train|val/images and labels")
    parser.add_argument("out", type=Path, help="folder to write, in transformers' format (float32)")
    parser.add_argument("--epochs", type=int, default=90)
    parser.add_argument("--learning-rate", type=float, default=6e-4)
    parser.add_argument("--start", type=Path, help="folder of weights to go on from")
    arguments = parser.parse_args()
    torch.manual_seed(1)
    random.seed(1)
    if arguments.start:
        model = SegformerForSemanticSegmentation.from_pretrained(arguments.start, dtype=torch.float32)
    else:
        names = dict(enumerate(CLASSES))
        labels = {name: index for index, name in names.items()}
        config = SegformerConfig(
            num_labels=len(names), id2label=names, label2id=labels, semantic_loss_ignore_index=VOID
        )
        model = SegformerForSemanticSegmentation(config)
    train(model, arguments.data, arguments.out, arguments.epochs, arguments.learning_rate)


if __name__ == "__main__":
    main()
