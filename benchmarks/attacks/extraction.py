"""Models stolen from scratch: KnockoffNets (Orekondy et al., CVPR 2019) with a ResNet-20, by labels alone.

The attack and two of the defences are the Adversarial Robustness Toolbox's (`pip install 'aim-serve[bench]'`); ours are
the other sources of answers and the network's few lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.attacks.label_attack import LabelAttack
from benchmarks.attacks.label_features import JUDGED, label_features
from benchmarks.attacks.labels import CLEAN, LADDER, LEVEL, installation
from benchmarks.attacks.queries import read
from benchmarks.attacks.records import Records
from benchmarks.attacks.sources import Clean, Fresh, Ladder, Sample, Source, Temperature
from models.make_calibration_sample import CIFAR_SAMPLE, cifar_held_back, load_classifier
from policies.attacks.answers import accuracy

EPOCHS, BATCH = 30, 64
ANSWERS = (1000, 4000)


class Block(nn.Module):
    """Two 3x3 convolutions and a way past them."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = (
            nn.Conv2d(width, out, 3, stride, 1, bias=False),
            nn.Conv2d(out, out, 3, 1, 1, bias=False),
        )
        self.norms = nn.ModuleList([nn.BatchNorm2d(out), nn.BatchNorm2d(out)])
        self.past = nn.Conv2d(width, out, 1, stride, bias=False) if stride > 1 or width != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.past(x) + self.norms[1](self.second(F.relu(self.norms[0](self.first(x))))))


class ResNet20(nn.Module):
    """He et al.'s ResNet-20 for pictures of 32 x 32 (CVPR 2016); in training it mirrors and shifts them."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
        blocks = [Block(a, b, 2 if b > a else 1) for a, b in zip(widths, widths[1:], strict=False)]
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), *blocks)
        self.last = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures [N, 3, 32, 32] in [0, 1] to logits [N, K]."""
        x = (x - 0.5) / 0.25
        if self.training:
            down, right = torch.randint(-4, 5, (2,)).tolist()
            mirrored = torch.rand(len(x)) < 0.5
            x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
            x = F.pad(x, (4, 4, 4, 4))[:, :, 4 + down : 36 + down, 4 + right : 36 + right]
        return self.last(self.body(x).mean(dim=(2, 3)))


def measure(root: Path, cache: Path, secrets: int) -> Records:
    """What a ResNet-20 trained on answers to 1,000 and 4,000 pictures is worth, as a share of the ladder's gap."""
    engine, records = load_classifier(), Records()
    sample, head, installed = installation(engine)
    data = label_features(engine, root, cache / "labels")
    files, known = [file for file, _ in cifar_held_back(root)], data.examples[:CIFAR_SAMPLE]
    pixels, judged = _pixels(files[:CIFAR_SAMPLE]), _pixels(files[CIFAR_SAMPLE:][:JUDGED])
    for number in range(secrets):
        ladder = LabelAttack(Ladder(number, installed, sample), LEVEL, data, head, len(engine.classes))
        for name, source, defences in _sources(number, ladder.source, sample):
            answers = source(known, head(known), LEVEL).softmax(dim=1).numpy()
            for count in ANSWERS:
                scores = _stolen(answers[:count], defences, pixels[:count])(judged)
                share = ladder.share(accuracy(torch.from_numpy(scores), data.truth))
                records.add(f"KnockoffNets, ResNet-20 from scratch: {count:,} answers", name, share)
                records.run(name, {})
            records.save(cache / "extraction.json")
    return records


def _pixels(files: Sequence[Path]) -> np.ndarray:
    """[N, 3, 32, 32] float32 in [0, 1]."""
    pictures = np.stack([np.asarray(picture.convert("RGB")) for picture in read(files)])
    return pictures.transpose(0, 3, 1, 2).astype(np.float32) / 255


def _sources(number: int, ladder: Source, sample: Sample) -> Iterator[tuple[str, Source, list[Any]]]:
    from art.defences.postprocessor import ReverseSigmoid, Rounded

    yield LADDER, ladder, []
    yield "fresh", Fresh(number, sample), []
    yield CLEAN, Clean(), []
    if number == 0:
        yield "temperature", Temperature(number, sample), []
        yield "rounded (ART)", Clean(), [Rounded(decimals=2)]
        yield "reverse sigmoid (ART)", Clean(), [ReverseSigmoid(beta=1.0, gamma=0.1)]


def _stolen(answers: np.ndarray, defences: list[Any], pixels: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """KnockoffNets' copy of a victim that answers pictures [N, 3, 32, 32] with probabilities [N, K]."""
    from art.attacks.extraction import KnockoffNets
    from art.estimators.classification import BlackBoxClassifierNeuralNetwork, PyTorchClassifier

    given, shape, classes = (
        {picture.tobytes(): row for picture, row in zip(pixels, answers, strict=True)},
        (3, 32, 32),
        answers.shape[1],
    )

    def answer(asked: np.ndarray) -> np.ndarray:
        return np.stack([given[picture.astype(np.float32).tobytes()] for picture in asked])

    victim = BlackBoxClassifierNeuralNetwork(answer, shape, classes, postprocessing_defences=defences)
    torch.manual_seed(0)
    np.random.seed(0)
    network = ResNet20(classes)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
    thief = PyTorchClassifier(network, nn.CrossEntropyLoss(), shape, classes, optimizer, device_type="cpu")
    attack = KnockoffNets(victim, BATCH, len(pixels), EPOCHS, len(pixels), sampling_strategy="random", verbose=False)
    stolen = attack.extract(pixels, thieved_classifier=thief)
    return lambda asked: stolen.predict(asked)
