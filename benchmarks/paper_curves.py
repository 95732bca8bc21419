"""The paper's experiments (AIM, arXiv 2603.12755), with its independent noise and with the ladder, drawn.

Three sweeps: the scale of utility noise against classification accuracy; the scale of a class's focus, added to every
row as in the paper, against that class's recall and IoU and those of the others; the scale of utility noise against a
text's token agreement and the perplexity that the clean model finds in it. Points are measured, lines the closed form.

Usage: python benchmarks/paper_curves.py [--cifar DIR] [--camvid DIR] [--text] [--out DIR]
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from deployments.config import REPOSITORY
from deployments.engines.images.engine import VisionEngine
from deployments.engines.images.segmenter import ImageSegmenter
from deployments.engines.text.generator import Generator
from policies.calibration.answering import CANDIDATES
from policies.calibration.calibration import Calibration
from policies.closed_form import NODES, REACH, agreement
from policies.field.ladder import NoiseLadder
from policies.field.variance import MAX_VARIANCE, MIN_VARIANCE, POSITIONS
from policies.head.blocks import block_means, spread
from policies.reference import independent_focus, independent_utility

matplotlib.use("Agg")
import matplotlib.pyplot as plt

sys.path.insert(0, str(REPOSITORY / "models"))
sys.path.insert(0, str(REPOSITORY / "benchmarks"))
from levels import SMOLLM2, final_inputs, text_prompts
from make_calibration_sample import CIFAR_SAMPLE, camvid_validation, cifar_held_back, load_classifier, load_segmenter

SECRET = b"the noise secret of benchmarks/paper_curves.py"
SIGMAS = tuple(float(f"{s:.3g}") for s in np.geomspace(0.05, 30.0, 16))
FOCUS_STDS = (0.0, *(float(f"{s:.3g}") for s in np.geomspace(0.5, 32.0, 10)))
TEXT_SIGMAS = (0.1, 0.25, 0.5, 0.8, 1.2, 1.7, 2.4)
TEXT_PROMPTS, TEXT_STEPS = 16, 32
FOCUSED, VOID = "pedestrian", 11
NOISES = (("independent", "o"), ("ladder", "x"))


def position_of(sigma: float) -> int:
    """The ladder position whose noise has a standard deviation nearest to sigma."""
    share = math.log(sigma * sigma / MIN_VARIANCE) / math.log(MAX_VARIANCE / MIN_VARIANCE)
    return 1 + round(share * (POSITIONS - 1))


def chance(logits: Tensor, classes: Tensor, sigma: float) -> Tensor:
    """Probability that a given class of each row wins under independent noise: `policies.agreement` for any class.

    Args:
        logits: [N, K].
        classes: [N] int64.
        sigma: in logit units, above 0.
    """
    z = logits.double()
    ahead = (z.gather(1, classes[:, None]) - z) / sigma
    u = torch.linspace(-REACH, REACH, NODES, dtype=torch.float64)
    log_phi = torch.special.log_ndtr(u[None, :, None] + ahead[:, None, :]).sum(dim=2) - torch.special.log_ndtr(u)
    weight = torch.exp(-0.5 * u * u) * (2.0 * REACH / (NODES - 1) / math.sqrt(2.0 * math.pi))
    return (log_phi.exp() * weight).sum(dim=1)


def field_of(engine: VisionEngine) -> tuple[Calibration, NoiseLadder, int]:
    """The installation's field of a shipped model, and its number of classes."""
    calibration = engine.fit(engine.calibration_sample(Path(str(engine.spec.calibration))), SECRET)
    classes = len(engine.classes)
    return calibration, calibration.ladder(SECRET, features=engine.features, classes=classes), classes


@torch.inference_mode()
def classification(root: Path, out: Path) -> None:
    """Sigma against accuracy and against agreement with the clean answer."""
    engine, held_back = load_classifier(), cifar_held_back(root)[CIFAR_SAMPLE:]
    _, ladder, _ = field_of(engine)
    features = torch.cat([x for x, _ in final_inputs(engine, [file for file, _ in held_back])])
    logits, truth = engine.final(features).float(), torch.tensor([k for _, k in held_back])
    clean, phi = logits.argmax(dim=1), ladder.phi(features)
    generator = torch.Generator().manual_seed(0)
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name, _ in NOISES}
    for sigma in SIGMAS:
        noisy = {
            "independent": torch.stack([independent_utility(logits, sigma, generator) for _ in range(5)]),
            "ladder": (logits + phi @ ladder.matrix(position_of(sigma)))[None],
        }
        for name, z in noisy.items():
            answer = z.argmax(dim=2)
            measured[name].append((float((answer == truth).double().mean()), float((answer == clean).double().mean())))
    lines = [(float(chance(logits, truth, s).mean()), float(agreement(logits, s).mean())) for s in SIGMAS]
    print("| sigma | accuracy: closed form, independent, ladder | agreement: closed form, independent, ladder |")
    print("|---|---|---|")
    for i, sigma in enumerate(SIGMAS):
        cells = [" ".join(f"{v:.3f}" for v in (lines[i][c], *(measured[n][i][c] for n, _ in NOISES))) for c in (0, 1)]
        print(f"| {sigma} | {cells[0]} | {cells[1]} |", flush=True)
    figure, axes = plt.subplots(1, 2, figsize=(9.0, 3.6))
    for c, (axis, title) in enumerate(zip(axes, ("accuracy", "agreement with the clean answer"), strict=True)):
        axis.plot(SIGMAS, [line[c] for line in lines], color="grey", label="closed form")
        for name, mark in NOISES:
            axis.plot(SIGMAS, [m[c] for m in measured[name]], mark, label=f"{name} noise")
        axis.set(xscale="log", xlabel="sigma (logit units)", ylim=(0.0, 1.0), title=title)
    finish(figure, axes[0], out / "paper_classification.png", f"{engine.model_id}, {len(truth)} held-back images")


class Pixels(NamedTuple):
    """Labelled rows: clean logits [N, K], truth [N], and the ladder's noise [N] of the focused class, at a std of 1."""

    logits: Tensor
    truth: Tensor
    xi: Tensor


@torch.inference_mode()
def segmentation(root: Path, out: Path) -> None:
    """The raw standard deviation of a class's focus against recall and IoU, at the logits' own resolution."""
    engine, files = load_segmenter(), camvid_validation(root)[1]
    rows = focus_sweep(pixels_of(engine, files), engine.classes.index(FOCUSED), len(engine.classes))
    names = (f"recall of {FOCUSED}", f"IoU of {FOCUSED}", "mean recall of the others", "mean IoU of the others")
    print(f"| focus std | {' | '.join(names)} |\n|---|---|---|---|---|")
    for i, std in enumerate(FOCUS_STDS):
        cells = [" ".join(f"{rows[n][i][c]:.3f}" for n in rows) for c in range(len(names))]
        print(f"| {std} | {' | '.join(cells)} |", flush=True)
    figure, axes = plt.subplots(1, 2, figsize=(9.0, 3.6))
    for c, name in enumerate(names):
        axis, colour = axes[c // 2], f"C{c % 2}"
        axis.plot(FOCUS_STDS, [r[c] for r in rows["closed form"]], color=colour, label=f"{name}, closed form")
        for noise, mark in NOISES:
            axis.plot(FOCUS_STDS, [r[c] for r in rows[noise]], mark, color=colour, label=f"{noise} noise")
        title = ("the class in focus", "the others")[c // 2]
        axis.set(xscale="symlog", xlabel="focus std (logit units), on every row", ylim=(0.0, 1.0), title=title)
    axes[1].legend(fontsize=7)
    finish(figure, axes[0], out / "paper_focus.png", f"{engine.model_id}, focus on {FOCUSED}, {len(files)} pictures")


def pixels_of(engine: ImageSegmenter, files: Sequence[Path]) -> Pixels:
    """The labelled rows of some pictures, each picture's labels brought to the logits' resolution."""
    calibration, ladder, _ = field_of(engine)
    xi_column = ladder.focus_matrix()[:, [engine.classes.index(FOCUSED)]]
    parts = []
    for file, (features, _) in zip(files, final_inputs(engine, files), strict=True):
        height, width = features.shape[-2:]
        labelled = Image.open(file.parents[1] / "labels" / f"{file.stem}.png")
        labels = labelled.resize((width, height), Image.Resampling.NEAREST)
        means = block_means(features, calibration.block)
        squares = (ladder.phi(places(means)) @ xi_column).reshape(len(means), *means.shape[-2:], 1).movedim(-1, 1)
        xi = places(spread(squares, calibration.block, height, width))
        truth = torch.from_numpy(np.array(labels)).long().flatten()
        known = truth < VOID
        logits = places(engine.final(features)).float()
        parts.append((logits[known], truth[known], xi[known, 0]))
    return Pixels(*(torch.cat(column) for column in zip(*parts, strict=True)))


def places(maps: Tensor) -> Tensor:
    """[B, C, h, w] to [B * h * w, C]."""
    return maps.movedim(1, -1).flatten(0, -2)


def focus_sweep(pixels: Pixels, target: int, classes: int) -> dict[str, list[tuple[float, ...]]]:
    """`scores` by noise, at each of `FOCUS_STDS`."""
    logits, truth, xi = pixels
    top, clean = logits.max(dim=1)
    gap = (top - logits[:, target]).double()
    generator = torch.Generator().manual_seed(0)
    rows: dict[str, list[tuple[float, ...]]] = {name: [] for name in ("closed form", "independent", "ladder")}
    for std in FOCUS_STDS:
        lifted = logits.clone()
        lifted[:, target] += std * xi.abs()
        drawn = independent_focus(logits, torch.tensor([target]), std, generator)
        for name, z in (("independent", drawn), ("ladder", lifted)):
            chosen = z.argmax(dim=1)
            rows[name].append(scores((chosen == target).double(), clean, truth, target, classes))
        # The target's lead must exceed its gap: P(std |xi| > gap) = erfc(gap / (std sqrt 2)).
        wins = torch.erfc(gap / (max(std, 1e-9) * math.sqrt(2.0)))
        rows["closed form"].append(scores(torch.where(clean == target, 1.0, wins), clean, truth, target, classes))
    return rows


def scores(taken: Tensor, clean: Tensor, truth: Tensor, target: int, classes: int) -> tuple[float, ...]:
    """Recall and IoU of the target and means of the others', from each row's chance [N] float64 that the target wins.

    A row that the target does not win keeps its clean answer.
    """
    confusion = torch.zeros(classes, classes, dtype=torch.float64)
    confusion.view(-1).index_add_(0, truth * classes + clean, torch.where(clean == target, 1.0, 1.0 - taken))
    confusion.view(-1).index_add_(0, truth * classes + target, torch.where(clean == target, 0.0, taken))
    hits, there = confusion.diag(), confusion.sum(1)
    recall, iou = hits / there, hits / (there + confusion.sum(0) - hits)
    others = (torch.arange(classes) != target) & (there > 0)
    return float(recall[target]), float(iou[target]), float(recall[others].mean()), float(iou[others].mean())


class TextPoint(NamedTuple):
    """What one noise at one sigma did to a text, and its agreement in closed form on the same steps."""

    agreed: float
    perplexity: float
    line: float


def text(out: Path) -> None:
    """Sigma against token agreement and the clean model's perplexity on what was generated."""
    engine = Generator.load(SMOLLM2, torch.device("cpu"))
    prompts = text_prompts(engine)[0][:TEXT_PROMPTS]
    points = text_sweep(engine, prompts)
    clean = [written(engine, prompt, 1, lambda _features, logits: logits) for prompt in prompts]
    engine.close()
    base = math.exp(float(torch.cat([steps.surprise for steps in clean]).mean()))
    print(
        f"clean perplexity {base:.3f}\n| sigma | noise | agreement | closed form on the same steps | perplexity |\n"
        "|---|---|---|---|---|"
    )
    for name, _ in NOISES:
        for sigma, (agreed, perplexity, line) in zip(TEXT_SIGMAS, points[name], strict=True):
            print(f"| {sigma} | {name} | {agreed:.3f} | {line:.3f} | {perplexity:.2f} |", flush=True)
    figure, axes = plt.subplots(1, 2, figsize=(9.0, 3.6))
    for (name, mark), style in zip(NOISES, ("-", "--"), strict=True):
        axes[0].plot(
            TEXT_SIGMAS, [p.line for p in points[name]], style, color="grey", label=f"closed form, {name}'s steps"
        )
        axes[0].plot(TEXT_SIGMAS, [p.agreed for p in points[name]], mark, label=f"{name} noise")
        axes[1].plot(TEXT_SIGMAS, [p.perplexity for p in points[name]], mark, label=f"{name} noise")
    axes[0].set(xscale="log", xlabel="sigma (logit units)", ylim=(0.0, 1.0), title="token agreement")
    axes[1].axhline(base, color="grey", linewidth=0.8)
    axes[1].set(xscale="log", yscale="log", xlabel="sigma (logit units)", title="perplexity to the clean model")
    finish(figure, axes[0], out / "paper_text.png", f"{engine.model_id}, greedy, {TEXT_PROMPTS} prompts")


class Steps(NamedTuple):
    """Steps of several answers to one prompt: highest clean logits [N, 256] float32, whether each token is the clean
    one [N], the clean model's surprise at it [N] in nats, and the answer that it is a step of [N]."""

    logits: Tensor
    agreed: Tensor
    surprise: Tensor
    answer: Tensor


Noise = Callable[[Tensor, Tensor], Tensor]
"""Features [B, H] and clean logits [B, V] float32 of a step's answers to the logits that tokens are taken from."""


@torch.no_grad()
def written(engine: Generator, prompt: list[int], copies: int, noise: Noise) -> Steps:
    """Greedy answers of the model's own `generate` to copies of a prompt, with noise at its final layer."""
    clean: list[Tensor] = []

    def add_noise(_module: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        clean.append(output[:, -1].float())
        return noise(inputs[0][:, -1], clean[-1])[:, None]

    ids = torch.tensor([prompt] * copies)
    ends = sorted(engine.language_model.end_tokens)
    hook = engine.final.register_forward_hook(add_noise)
    try:
        out = engine.language_model.model.generate(  # type: ignore[operator]
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=TEXT_STEPS, eos_token_id=ends
        )
    finally:
        hook.remove()
    tokens = out[:, len(prompt) :]
    ended = torch.isin(tokens, torch.tensor(ends)).cumsum(dim=1)
    going = torch.cat([torch.ones_like(ended[:, :1]), ended[:, :-1] == 0], dim=1).bool()
    logits, taken = torch.stack(clean, dim=1)[going], tokens[going]
    surprise = logits.logsumexp(dim=1) - logits.gather(1, taken[:, None])[:, 0]
    highest = logits.topk(CANDIDATES, dim=1).values
    return Steps(highest, taken == logits.argmax(dim=1), surprise, going.nonzero()[:, 0])


def text_sweep(engine: Generator, prompts: Sequence[list[int]]) -> dict[str, list[TextPoint]]:
    """By noise, a point at each of `TEXT_SIGMAS`: every prompt is answered under every noise at every sigma."""
    points: dict[str, list[TextPoint]] = {}
    for name, noise in text_noises(engine).items():
        found: list[list[Any]] = [[] for _ in TEXT_SIGMAS]
        for prompt in prompts:
            steps = written(engine, prompt, len(TEXT_SIGMAS), noise)
            for i, sigma in enumerate(TEXT_SIGMAS):
                mine = steps.answer == i
                found[i].append((steps.agreed[mine], steps.surprise[mine], agreement(steps.logits[mine], sigma)))
        joined = [[torch.cat(part).double() for part in zip(*some, strict=True)] for some in found]
        points[name] = [
            TextPoint(float(same.mean()), math.exp(float(nats.mean())), float(line.mean()))
            for same, nats, line in joined
        ]
    return points


def text_noises(engine: Generator) -> dict[str, Noise]:
    """By name, the noise of answers of which the i-th is given at `TEXT_SIGMAS[i]`."""
    pilot = engine.calibration_sample()
    field = Calibration.fit(SECRET, engine.fingerprint, pilot.features, pilot.logits, depth=engine.depth, tolerance=0.3)
    ladder = field.ladder(SECRET, features=engine.features, classes=engine.vocabulary)
    matrices = torch.stack([ladder.matrix(position_of(sigma)) for sigma in TEXT_SIGMAS])
    sigmas, generator = torch.tensor(TEXT_SIGMAS)[:, None], torch.Generator().manual_seed(0)
    return {
        "independent": lambda _features, logits: independent_utility(logits / sigmas, 1.0, generator) * sigmas,
        "ladder": lambda features, logits: logits + (ladder.phi(features)[:, None] @ matrices)[:, 0],
    }


def finish(figure: Any, axis: Any, path: Path, title: str) -> None:
    """Legend, title, file."""
    axis.legend(fontsize=7)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    print(f"{path}: {path.stat().st_size / 1024:.0f} KB\n", flush=True)


def main() -> None:
    """Measure, print tables and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, help="folder that holds train/<class>/*.jpg")
    parser.add_argument("--camvid", type=Path, help="folder that holds val/images and val/labels")
    parser.add_argument("--text", action="store_true", help="the text model")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs", help="where the pictures go")
    arguments = parser.parse_args()
    sweeps: Sequence[Callable[[], None]] = [
        *([lambda: classification(arguments.cifar, arguments.out)] if arguments.cifar else []),
        *([lambda: segmentation(arguments.camvid, arguments.out)] if arguments.camvid else []),
        *([lambda: text(arguments.out)] if arguments.text else []),
    ]
    for sweep in sweeps:
        sweep()


if __name__ == "__main__":
    main()
