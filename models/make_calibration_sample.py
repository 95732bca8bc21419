"""Make the calibration samples that ship with the two vision models: features of held-back inputs, not pictures.

Usage: python models/make_calibration_sample.py --cifar DIR --camvid DIR
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from deployments.config import REPOSITORY, ModelSpec, Task
from deployments.engines.images.classifier import ImageClassifier
from deployments.engines.images.decoding import decode_image
from deployments.engines.images.engine import VisionEngine
from deployments.engines.images.features import sample_features
from deployments.engines.images.sample import write_features
from deployments.engines.images.segmenter import ImageSegmenter
from policies.calibration.schemes import LABELS, MASKS

CIFAR_HELD_BACK, CIFAR_SAMPLE = 5000, 4000
CIFAR_FIRST = 1000
"""A field's metric is fitted on near-duplicates of a sample's first pictures. Those before this number come last, so
that benchmarks/attacks can attack with labelled pictures that the metric was not fitted on."""
METRICS = {Task.CLASSIFICATION: replace(LABELS, directions=16, duplicated=800), Task.SEGMENTATION: MASKS}
"""Labels' field has no metric; the frontier of benchmarks/attacks compares it with fields that have this one."""


def cifar_held_back(root: Path) -> list[tuple[Path, int]]:
    """The 5,000 held-back files and their classes, in the order of the permutation that held them back."""
    classes = sorted(path.name for path in (root / "train").iterdir())
    files = [(file, k) for k, name in enumerate(classes) for file in sorted((root / "train" / name).glob("*.jpg"))]
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(7))[:CIFAR_HELD_BACK]
    return [files[i] for i in order.tolist()]


def camvid_validation(root: Path) -> tuple[list[Path], list[Path]]:
    """The validation images that calibrate, 51, and those that judge, 50: every other one by name."""
    files = sorted((root / "val" / "images").iterdir())
    return files[0::2], files[1::2]


def shipped(model: str, task: Task) -> ModelSpec:
    """One of the two models that ship with the project."""
    folder = REPOSITORY / "models" / model
    return ModelSpec(id=model, task=task, source=str(folder), calibration=str(folder / "calibration.safetensors"))


def load_classifier() -> ImageClassifier:
    """The shipped ResNet-18, on the CPU."""
    return ImageClassifier.load(shipped("resnet18-cifar10", Task.CLASSIFICATION))


def load_segmenter() -> ImageSegmenter:
    """The shipped SegFormer-B0, on the CPU."""
    return ImageSegmenter.load(shipped("segformer-b0-camvid", Task.SEGMENTATION))


def _decoded(files: Sequence[Path]) -> Iterator[Image.Image]:
    for file in files:
        yield decode_image(file.read_bytes())


def _write(engine: VisionEngine, files: Sequence[Path], inputs: str) -> None:
    features, metric, scale = sample_features(engine, _decoded(files), METRICS[engine.spec.task])
    path = REPOSITORY / "models" / engine.model_id / "calibration.safetensors"
    metadata = {"model": engine.model_id, "weights": engine.weights, "scale": str(scale), "inputs": inputs}
    write_features(path, features, metric, metadata)
    print(f"{path}: {list(features.shape)}, {path.stat().st_size / 1e6:.1f} MB, scale {scale}")


def main() -> None:
    """Make both samples, or the one whose data is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, help="folder that holds train/<class>/*.jpg")
    parser.add_argument("--camvid", type=Path, help="folder that holds val/images")
    arguments = parser.parse_args()
    if arguments.cifar:
        files = [file for file, _ in cifar_held_back(arguments.cifar)[:CIFAR_SAMPLE]]
        files = files[CIFAR_FIRST:] + files[:CIFAR_FIRST]
        _write(load_classifier(), files, "the first 4,000 of the 5,000 held-back images, the first 1,000 of them last")
    if arguments.camvid:
        files, _ = camvid_validation(arguments.camvid)
        _write(load_segmenter(), files, "6 tiles of each of 51 validation images, every other one by name")


if __name__ == "__main__":
    main()
