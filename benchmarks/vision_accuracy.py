"""How accurate the two shipped vision models are at level 1.0, measured with the engines that serve them.

Usage: python benchmarks/vision_accuracy.py --cifar DIR --camvid DIR
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from deployments.config import REPOSITORY
from deployments.engines.images.classifier import ImageClassifier
from deployments.engines.images.decoding import decode_image
from deployments.engines.images.engine import VisionEngine
from deployments.engines.images.segmenter import ImageSegmenter
from policies.terms import Modulation

sys.path.insert(0, str(REPOSITORY / "models"))
from make_calibration_sample import (
    camvid_validation,
    cifar_held_back,
    load_classifier,
    load_segmenter,
)

SECRET = b"the noise secret of benchmarks/vision_accuracy.py"
VOID = 11


def _install(engine: VisionEngine) -> None:
    """No engine answers uncalibrated."""
    sample = engine.calibration_sample(Path(str(engine.spec.calibration)))
    engine.install(engine.fit(sample, SECRET), SECRET)


def _batches(items: Sequence[Path], size: int) -> Iterator[list[Image.Image]]:
    for start in range(0, len(items), size):
        yield [decode_image(file.read_bytes()) for file in items[start : start + size]]


def classifier_accuracy(engine: ImageClassifier, held_back: Sequence[tuple[Path, int]]) -> float:
    """Share of images whose first label is right."""
    right, at = 0, 0
    for images in _batches([file for file, _ in held_back], 100):
        for answer in engine.predict(images, [Modulation()] * len(images), [1] * len(images)):
            right += answer[0].label == engine.classes[held_back[at][1]]
            at += 1
    return right / len(held_back)


def segmenter_accuracy(engine: ImageSegmenter, files: Sequence[Path]) -> tuple[float, float, Tensor]:
    """Mean IoU, pixel accuracy and IoU per class on the images' own resolution; void pixels do not count."""
    classes = len(engine.classes)
    confusion = torch.zeros(classes, classes, dtype=torch.float64)
    for file in files:
        image = decode_image(file.read_bytes())
        truth = torch.from_numpy(np.array(Image.open(file.parents[1] / "labels" / f"{file.stem}.png"))).long()
        (item,) = engine.forward([engine.preprocess(image)], [Modulation()])
        labels, _ = engine.read(item.logits, (image.height, image.width))
        known = truth < VOID
        pairs = truth[known] * classes + labels[known].long()
        confusion += torch.bincount(pairs, minlength=classes**2).view(classes, classes)
    hits = confusion.diag()
    iou = hits / (confusion.sum(0) + confusion.sum(1) - hits)
    return float(iou.mean()), float(hits.sum() / confusion.sum()), iou


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, help="folder that holds train/<class>/*.jpg")
    parser.add_argument("--camvid", type=Path, help="folder that holds val/images and val/labels")
    arguments = parser.parse_args()
    if arguments.cifar:
        classifier, held_back = load_classifier(), cifar_held_back(arguments.cifar)
        _install(classifier)
        accuracy = classifier_accuracy(classifier, held_back)
        print(f"{classifier.model_id}: accuracy {accuracy:.4f} on {len(held_back)} images")
    if arguments.camvid:
        segmenter, (calibrating, judging) = load_segmenter(), camvid_validation(arguments.camvid)
        files = [*calibrating, *judging]
        _install(segmenter)
        miou, accuracy, iou = segmenter_accuracy(segmenter, files)
        print(f"{segmenter.model_id}: mean IoU {miou:.4f}, pixel accuracy {accuracy:.4f} on {len(files)} images")
        print("  IoU " + ", ".join(f"{name} {v:.3f}" for name, v in zip(segmenter.classes, iou.tolist(), strict=True)))


if __name__ == "__main__":
    main()
