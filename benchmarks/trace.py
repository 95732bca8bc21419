"""Whether `tenants trace` finds the level of given answers, and claims none of clean or of another installation's.

For each noise secret 200 answers (pictures; tiles of two by two squares; texts of 32 tokens) are given at each level,
by the model itself, and by the installation of the next secret. Pictures are held-back ones that neither trained nor
calibrated the model; tiles are those that calibrate, since no other scenes ship with the project; prompts are
paragraphs that calibration leaves out.

Usage: python -m benchmarks.trace labels --cifar DIR [--secrets N] [--first N] [--answers N] [--decoys N]
       python -m benchmarks.trace masks | text ...
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.levels import LEVELS, SMOLLM2
from deployments.engines.images.decoding import decode_image
from deployments.engines.images.engine import VisionEngine
from deployments.engines.images.sample import read_features
from deployments.engines.text.calibration import BUNDLED, answers, prompt_of, split_paragraphs
from deployments.engines.text.generator import Generator
from deployments.engines.text.traced import traced_tokens
from models.make_calibration_sample import CIFAR_SAMPLE, cifar_held_back, load_classifier, load_segmenter
from policies.answers import highest
from policies.calibration.calibration import Calibration
from policies.head.blocks import block_means
from policies.head.slots import Setting
from policies.provenance.answers import Answers
from policies.provenance.decoys import DECOYS, Decoys
from policies.provenance.trace import CLAIMED, Trace, rank, trace

SETS = 5
"""Sets of pictures, so that not all secrets are judged on the same."""
STEPS = 32
TEXT_LEVELS = (0.5, 0.7, 0.9, 0.95)


@dataclass(frozen=True)
class Asked:
    """Inputs of a final layer and its clean logits."""

    seen: Tensor
    logits: Tensor

    def answered(self, calibration: Calibration, secret: bytes, level: float) -> Answers:
        """What an installation answers at a level."""
        ladder = calibration.ladder(secret, features=self.seen.shape[1], classes=self.logits.shape[1])
        noise = ladder.phi(self.seen) @ ladder.matrix(calibration.position(level))
        return Answers.of(self.seen, self.logits, highest(self.logits + noise))


def secret_of(number: int) -> bytes:
    """The noise secret of a number."""
    return hashlib.sha256(f"trace {number}".encode()).digest()


class Found:
    """What was found, by whose answers they are."""

    def __init__(self) -> None:
        self.traces: dict[str, list[tuple[float, Trace]]] = {}
        self.nulls: dict[str, list[float]] = {}

    def add(self, level: float, found: Trace) -> None:
        """Answers of this installation's level."""
        self.traces.setdefault(f"{level:g}", []).append((level, found))

    def table(self) -> str:
        """Markdown."""
        lines = [f"| answers of | claimed at p < {CLAIMED:g} | largest p | level right among those sold |"
                 " largest error | within the range told | widest range |", "|---" * 7 + "|"]  # fmt: skip
        for name, found in self.traces.items():
            ps = [f.p for _, f in found]
            right = sum(min(LEVELS, key=lambda sold: abs(sold - f.level)) == level for level, f in found)
            within = sum(f.lowest <= level <= f.highest for level, f in found)
            error = max(abs(f.level - level) for level, f in found)
            wide = max(f.highest - f.lowest for _, f in found)
            lines.append(
                f"| level {name} | {sum(p < CLAIMED for p in ps)} of {len(ps)} | {max(ps):.4f} | {right} of {len(ps)}"
                f" | {error:.2f} | {within} of {len(ps)} | {wide:.2f} |"
            )
        for name, nulls in self.nulls.items():
            claimed = sum(p < CLAIMED for p in nulls)
            lines.append(f"| {name} | {claimed} of {len(nulls)} | least p {min(nulls):.4f} | | | | |")
        return "\n".join(lines)

    def say(self, number: int) -> None:
        """How far it is."""
        last = " ".join(f"{name}:{found[-1][1].p:.4f}/{found[-1][1].level:g}" for name, found in self.traces.items())
        print(f"secret {number}: {last}", file=sys.stderr, flush=True)


def fields(asked: Sequence[Asked], solved: Sequence[tuple[bytes, Calibration]], count: int) -> Found:
    """Labels, or masks, of each installation, traced by it and answers of the next one."""
    found = Found()
    decoys = [Decoys(Answers.of(a.seen, a.logits, highest(a.logits)), solved[0][1], count) for a in asked]
    for number, (secret, calibration) in enumerate(solved):
        inputs, compared = asked[number % len(asked)], decoys[number % len(asked)]
        other, theirs = solved[(number + 1) % len(solved)]
        for level in LEVELS:
            mine = inputs.answered(calibration, secret, level)
            found.add(level, trace(mine, calibration, secret, decoys=compared))
            strange = rank(inputs.answered(theirs, other, level), calibration, secret, compared)[0]
            found.nulls.setdefault("another installation's, all levels", []).append(strange)
        clean = Answers.of(inputs.seen, inputs.logits, highest(inputs.logits))
        found.nulls.setdefault("the clean model's", []).append(rank(clean, calibration, secret, compared)[0])
        found.say(number)
    return found


def solved_under(engine: VisionEngine, secrets: range) -> list[tuple[bytes, Calibration]]:
    """The calibrations of some installations."""
    sample = engine.calibration_sample(Path(str(engine.spec.calibration)))
    return [(secret_of(number), engine.fit(sample, secret_of(number))) for number in secrets]


def labels(cifar: Path, secrets: range, count: int, decoys: int) -> Found:
    """The shipped classifier's."""
    engine = load_classifier()
    files = [file for file, _ in cifar_held_back(cifar)[CIFAR_SAMPLE:]][: SETS * count]
    pixels = [engine.preprocess(decode_image(file.read_bytes())) for file in files]
    features = torch.cat([engine.final_input(torch.stack(pixels[i : i + 50])) for i in range(0, len(pixels), 50)])
    asked = [Asked(some, engine.clean_logits(some)) for some in torch.split(features, count) if len(some) == count]
    return fields(asked, solved_under(engine, secrets), decoys)


def masks(secrets: range, count: int, decoys: int) -> Found:
    """The shipped segmenter's: the pixel in the middle of each square of a tile."""
    engine = load_segmenter()
    block = engine.scheme.block
    tiles, _, _ = read_features(Path(str(engine.spec.calibration)))
    some = tiles[torch.randperm(len(tiles), generator=torch.Generator().manual_seed(0))[:count]].float()
    logits = F.avg_pool2d(engine.clean_logits(some)[:, :, block // 2 - 1 :, block // 2 - 1 :], 2, stride=block)
    seen, clean = (maps.flatten(2).transpose(1, 2).flatten(0, 1) for maps in (block_means(some, block), logits))
    return fields([Asked(seen, clean)], solved_under(engine, secrets), decoys)


def text(secrets: range, count: int, decoys: int) -> Found:
    """The shipped language model's, as its serving engine gives them."""
    found = Found()
    with closing(Generator.load(SMOLLM2, torch.device("cpu"))) as engine:
        prompts = [prompt_of(engine.language_model, text) for text in split_paragraphs(BUNDLED)[1]][:count]
        sample = engine.calibration_sample()
        for number in secrets:
            secret, other = secret_of(number), secret_of(number + 1)
            calibration = engine.fit(sample, secret)
            engine.install(calibration, secret)
            asked = [(prompt, Setting(level)) for level in (*TEXT_LEVELS, 1.0) for prompt in prompts]
            given = [answer.tokens for answer in answers(engine, asked, steps=STEPS)]
            engine.uninstall()
            for at, level in enumerate((*TEXT_LEVELS, 1.0)):
                own = given[at * len(prompts) : (at + 1) * len(prompts)]
                rows = Answers.join([traced_tokens(engine, *pair) for pair in zip(prompts, own, strict=True)])
                _add_text(found, rows, calibration, (secret, other), level, decoys)
            found.say(number)
    return found


def _add_text(
    found: Found, rows: Answers, calibration: Calibration, keys: tuple[bytes, bytes], level: float, decoys: int
) -> None:
    secret, other = keys
    if level < 1.0:
        found.add(level, trace(rows, calibration, secret, decoys=Decoys(rows, calibration, decoys)))
        name, key = "another installation's, all levels", other
    else:
        name, key = "the clean model's", secret
    found.nulls.setdefault(name, []).append(rank(rows, calibration, key, Decoys(rows, calibration, decoys))[0])


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("labels", "masks", "text"))
    parser.add_argument("--cifar", type=Path, help="folder that holds train/<class>/*.jpg")
    parser.add_argument("--secrets", type=int, default=20, help="noise secrets")
    parser.add_argument("--first", type=int, default=0, help="number of the first")
    parser.add_argument("--decoys", type=int, default=DECOYS, help="keys that each is compared with")
    parser.add_argument("--answers", type=int, default=200, help="answers that are traced together")
    arguments = parser.parse_args()
    secrets = range(arguments.first, arguments.first + arguments.secrets)
    count, decoys = arguments.answers, arguments.decoys
    measures: dict[str, Callable[[], Found]] = {
        "labels": lambda: labels(arguments.cifar or parser.error("labels needs --cifar"), secrets, count, decoys),
        "masks": lambda: masks(secrets, count, decoys),
        "text": lambda: text(secrets, count, decoys),
    }
    print(measures[arguments.task]().table())


if __name__ == "__main__":
    main()
