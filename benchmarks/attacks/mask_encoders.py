"""What students of masks see: street scenes without labels, and frozen encoders' features of their cells."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.attacks.encoders import MEAN, STD, foreign_network, installed
from benchmarks.attacks.mask_correctors import place_and_colour
from benchmarks.attacks.mask_features import VOID, Scene, judged_files, labelled_files, seen
from benchmarks.attacks.queries import final_inputs, read
from deployments.engines.images.segmenter import ImageSegmenter

OWN, FOREIGN = "the model's own encoder", "EfficientNet-lite0"
QUERIES, CELLS, LABELLED_CELLS = 3, 40, 750
"""Of each picture: near-duplicates that are asked, cells that a student learns from, and those of a labelled one."""
TAPS = (4, 10, 15)
"""Blocks of EfficientNet-lite0 whose output is read: 40 channels at stride 8, 112 at 16, 320 at 32."""
WIDTH = 480
"""Pixels, of a picture."""
COMPONENTS = 128
"""Principal components that are kept of them."""
Maps = Callable[[Sequence[Path]], Iterator[Tensor]]
"""Files of pictures to batches of feature maps [n, F, h', w']."""


@dataclass(frozen=True)
class Cells:
    """Some cells of some pictures.

    Attributes:
        x: [P, C, F] float32.
        at: [P, C] int64, the pixel in the middle of each, counted along rows.
    """

    x: Tensor
    at: Tensor

    def known(self, labels: Tensor, pictures: int | None = None) -> tuple[Tensor, Tensor]:
        """Features [N, F] and labels [N] of the first pictures' cells that labels [P, C] int64 know: not void."""
        chosen = labels[:pictures].flatten()
        return self.x[:pictures].flatten(0, 1)[chosen != VOID], chosen[chosen != VOID]

    def read(self, masks: Tensor) -> Tensor:
        """What masks [P, h, w] say in the middle of each cell: [P, C]."""
        return masks.flatten(1).gather(1, self.at)


@dataclass(frozen=True)
class Encoded:
    """Pictures as an encoder sees them.

    Attributes:
        unlabelled: cells of the training pictures.
        labelled: cells of the labelled pictures, by drive.
        maps: features [P, F, h', w'] of the labelled pictures by drive, and of the judged ones.
    """

    unlabelled: Cells
    labelled: dict[str, Cells]
    maps: dict[str, Tensor]


def unlabelled(engine: ImageSegmenter, root: Path, cache: Path) -> list[Scene]:
    """The 367 training pictures with three near-duplicates, their labels left out. The model was trained on them."""
    scenes = []
    for file in training_files(root):
        (picture,) = read([file])
        means, logits = seen(engine, file, QUERIES, cache / "unlabelled", lazily=True)
        pixels = torch.from_numpy(np.array(picture))
        scenes.append(Scene(pixels, torch.tensor(VOID).expand(pixels.shape[:2]), means, logits))
    return scenes


def training_files(root: Path) -> list[Path]:
    """In an order in which the first N are spread over all drives."""
    files = sorted((root / "train" / "images").iterdir())
    return [files[i] for i in torch.randperm(len(files), generator=torch.Generator().manual_seed(0)).tolist()]


def encoders(engine: ImageSegmenter, root: Path, cache: Path) -> dict[str, Encoded]:
    """The victim's own encoder, and the foreign one where it is installed."""
    own = _stored(lambda files: final_inputs(engine, read(files), 4), root, cache / f"{engine.fingerprint}-cells.pt")
    found = {OWN: _encoded(*own)}
    if not installed():
        return found
    foreign, maps = _stored(_foreign, root, cache / "efficientnet-lite0-cells.pt")
    reduced = _principal(foreign.x.flatten(0, 1))
    small = Cells(reduced(foreign.x), foreign.at)
    return found | {FOREIGN: _encoded(small, {k: reduced(m.movedim(1, -1)).movedim(-1, 1) for k, m in maps.items()})}


def _encoded(cells: Cells, maps: dict[str, Tensor]) -> Encoded:
    drives = [name for name in maps if name != "judged"]
    return Encoded(cells, {name: sampled_cells([maps[name]], LABELLED_CELLS) for name in drives}, maps)


def _stored(maps: Maps, root: Path, path: Path) -> tuple[Cells, dict[str, Tensor]]:
    """Cells of the training pictures and whole maps of the others; computed where the cache does not hold them."""
    if not path.exists():
        cells = sampled_cells(maps(training_files(root)), CELLS)
        groups = labelled_files(root) | {"judged": judged_files(root)}
        whole = {name: torch.cat(list(maps(files))).half() for name, files in groups.items()}
        torch.save((cells.x.half(), cells.at, whole), path)
        print(f"  {path.name}: done", file=sys.stderr, flush=True)
    x, at, whole = torch.load(path)
    return Cells(x.float(), at), {name: values.float() for name, values in whole.items()}


def sampled_cells(batches: Iterator[Tensor] | Sequence[Tensor], count: int, width: int = WIDTH) -> Cells:
    """Random cells of maps [n, F, h', w'] of pictures so many pixels wide."""
    generator, x, at = torch.Generator().manual_seed(0), [], []
    for one in (one for batch in batches for one in batch):
        _, rows, columns = one.shape
        chosen = torch.randperm(rows * columns, generator=generator)[:count]
        side = width // columns
        middle = torch.stack([chosen // columns, chosen % columns]) * side + side // 2
        x.append(one.flatten(1)[:, chosen].T.float())
        at.append(middle[0] * width + middle[1])
    return Cells(torch.stack(x), torch.stack(at))


@torch.inference_mode()
def _foreign(files: Sequence[Path]) -> Iterator[Tensor]:
    """EfficientNet-lite0's features of stride 8, 16 and 32 at stride 8, and place and colour."""
    network, taps = foreign_network(), dict[int, Tensor]()
    for number in TAPS:
        network._blocks[number].register_forward_hook(lambda _block, _in, out, n=number: taps.__setitem__(n, out))
    for image in read(files):
        picture = torch.from_numpy(np.array(image))
        pixels = (picture.movedim(-1, 0).float() / 255 - MEAN) / STD
        network.extract_features(F.interpolate(pixels[None], (384, 480), mode="bilinear"))  # multiples of 32
        deep = [F.interpolate(taps[number], (45, 60), mode="bilinear")[0] for number in TAPS]
        yield torch.cat([*deep, place_and_colour(picture)[:, 4::8, 4::8]])[None]


def _principal(x: Tensor) -> Callable[[Tensor], Tensor]:
    """From rows [N, F] of which the last 22 are place and colour: [..., F] to [..., 128 + 22]."""
    deep = x[:, :-22]
    mean, spread = deep.mean(dim=0), deep.std(dim=0).clamp(min=1e-6)
    standard = (deep - mean) / spread
    basis = torch.linalg.eigh(standard.T @ standard).eigenvectors[:, -COMPONENTS:]
    return lambda rows: torch.cat([((rows[..., :-22] - mean) / spread) @ basis, rows[..., -22:]], dim=-1)
