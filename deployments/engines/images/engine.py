"""What the classifier and the segmenter share: one batch across tenants, the head's slots, audit, calibration."""

from __future__ import annotations

import hashlib
import threading
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from deployments.config import ModelSpec, Task
from deployments.engines.calibrated import CalibratedEngine
from deployments.engines.errors import LoadError
from deployments.engines.images.duplicates import Duplicate
from deployments.engines.images.loading import LoadedModel
from deployments.engines.images.sample import picture_files, read_features, read_picture
from deployments.engines.sample import CalibrationSample
from policies.answers import highest
from policies.errors import InvalidRequest
from policies.field.metric import duplicate_metric
from policies.head.attachment import layer_shape
from policies.head.final import NoFinalLayer, find_final
from policies.head.focus import Target
from policies.head.slots import Setting
from policies.terms import Modulation

COPIES = 8
"""How often a picture is sent again to fit the field's metric on."""
_HASHED = 4096
"""About so many values of a picture tell it from others: all would cost a large one two milliseconds."""


@dataclass(frozen=True)
class ItemLogits:
    """One picture's logits, [K] or [K, h, w]: to answer from, and for the audit alone, clean and after utility."""

    logits: Tensor
    clean: Tensor
    utility: Tensor


class VisionEngine(CalibratedEngine):
    """A vision model whose every picture is answered at its tenant's terms.

    `preprocess`, `setting`, `prepare`, `install` and `audit` are safe from any thread; `forward` and
    `calibration_sample` belong to one thread at a time.

    Attributes:
        classes: K names, in the order of the logits.
        features: H, width of the final layer's input.
        fingerprint: 16 hex digits over weights, classes, preprocessing and dtype; the same in every process.
    """

    task: ClassVar[Task]
    calibration_images: ClassVar[int]
    directions: ClassVar[int]
    """Columns of the field's metric."""
    duplicated_images: ClassVar[int]
    """Pictures of a sample whose near-duplicates the field's metric is fitted on."""
    default_depth: ClassVar[int]

    def __init__(self, spec: ModelSpec, loaded: LoadedModel, device: str | torch.device) -> None:
        super().__init__()
        self.spec = spec
        self.model_id, self.classes = spec.id, loaded.classes
        self.device, self.dtype = torch.device(device), getattr(torch, spec.dtype)
        self.depth = spec.depth or self.default_depth
        self.weights = loaded.weights_digest()[:16]
        named = "\n".join([self.weights, spec.dtype, loaded.preprocessing, *loaded.classes])
        self.fingerprint = hashlib.sha256(named.encode()).hexdigest()[:16]
        self._preprocess, self._run = loaded.preprocess, loaded.run
        self.model = loaded.model.requires_grad_(False).to(self.device, self.dtype)
        blank = self.preprocess(Image.new("RGB", (64, 64), "grey"))[None].to(self.device, self.dtype)
        try:
            found = find_final(self.model, lambda: self._run(blank))
        except NoFinalLayer as error:
            raise LoadError(f"{spec.id}: {error}; name another model in source") from error
        self.final, self._align_corners = found.module, found.align_corners
        self.features, classes = layer_shape(self.final)
        if classes != len(self.classes) or found.maps is not (self.task is Task.SEGMENTATION):
            raise LoadError(f"{spec.id}: {spec.source} answers {classes} classes, but is to name {len(self.classes)}")
        self.slots = spec.max_batch_size
        self._answered = 0
        self._scales: deque[int] = deque(maxlen=256)
        self._forward_lock = threading.Lock()

    @classmethod
    def load(cls, spec: ModelSpec, device: str | torch.device = "cpu") -> Self:
        """Load the model that `spec` names.

        Raises:
            LoadError: it cannot be loaded or modulated; the message says what to change.
        """
        return cls(spec, cls._load(spec), device)

    @classmethod
    @abstractmethod
    def _load(cls, spec: ModelSpec) -> LoadedModel: ...

    def preprocess(self, image: Image.Image) -> Tensor:
        """An RGB picture of any size to the model's input, [3, h, w] float32 on the CPU."""
        return self._preprocess(image)

    def setting(self, modulation: Modulation) -> Setting:
        """A request's terms by class index; a name that several classes bear stands for all of them.

        Raises:
            InvalidRequest: a focus on a class that the model does not have.
            Unavailable: the model is not calibrated yet, and the terms are not those of level 1.0.
        """
        self.check_served(modulation)
        focus: dict[int | Target, float] = {}
        for name, strength in modulation.focus.items():
            if name not in self.classes:
                raise InvalidRequest(
                    f"{self.model_id} has no class '{name}'.", param=f"focus.{name}", code="unknown_class"
                )
            focus |= {index: strength for index, known in enumerate(self.classes) if known == name}
        return Setting(modulation.utility, focus)

    def prepare(self, modulation: Modulation) -> list[Future[Tensor]]:
        """Check a request's terms and have built what they need before it joins a batch.

        Returns:
            What is waited for, and held until the answer is there.

        Raises:
            InvalidRequest, Unavailable: as `setting`.
        """
        setting = self.setting(modulation)
        return self.head.prepare(setting) if self.calibrated else []

    @torch.inference_mode()
    def forward(self, pixels: Sequence[Tensor], modulations: Sequence[Modulation]) -> list[ItemLogits]:
        """One batch across tenants: item i of `pixels` answered at `modulations[i]`.

        Args:
            pixels: from `preprocess`; those of one shape run together.

        Raises:
            InvalidRequest: as `row_terms`.
            ValueError: other than one modulation per picture.
        """
        if len(pixels) != len(modulations):
            raise ValueError(f"{len(pixels)} pictures, but {len(modulations)} modulations")
        shapes: dict[tuple[int, ...], list[int]] = {}
        for index, item in enumerate(pixels):
            shapes.setdefault(tuple(item.shape), []).append(index)
        answers: dict[int, ItemLogits] = {}
        with self._forward_lock:
            settings = [self.setting(modulation) for modulation in modulations]
            for group in shapes.values():
                batch = torch.stack([pixels[i] for i in group]).to(self.device, self.dtype)
                modulated = self._modulated(batch, [settings[i] for i in group], [_source(pixels[i]) for i in group])
                answers |= dict(zip(group, modulated, strict=True))
        return [answers[i] for i in range(len(pixels))]

    def _modulated(self, batch: Tensor, settings: Sequence[Setting], sources: Sequence[int]) -> Iterable[ItemLogits]:
        head = self._head
        if head is None:  # `setting` let nothing but level 1.0 pass
            clean = self._run(batch).float()
            return [ItemLogits(item, item, item) for item in clean]
        head.write_all(settings)
        size = self._run(batch).shape[2:]
        last, head.last = head.last, None
        seen, head.seen = head.seen, None
        if last is None or seen is None:
            raise RuntimeError(f"{self.model_id}: the head was not in the path of this batch")
        self._keep(seen, sources)
        parts = [self._as_answered(logits, size) for logits in (last.logits, last.clean, last.utility)]
        return [ItemLogits(*item) for item in zip(*parts, strict=True)]

    def _as_answered(self, logits: Tensor, size: torch.Size) -> Tensor:
        """A final layer's output [B, K, ...] as the model answers it, float32: maps at its own resolution."""
        if self._align_corners is not None:
            return F.interpolate(logits.float(), size, mode="bilinear", align_corners=self._align_corners)
        return logits.float() if len(size) else logits.float().flatten(1)

    def _keep(self, features: Tensor, sources: Sequence[int]) -> None:
        """Live rows of a batch, by the pictures' hashes: a picture that comes again is the same input."""
        rows = [self._take(item[None], self._answered + i) for i, item in enumerate(features)]
        groups = [source for source, taken in zip(sources, rows, strict=True) for _ in taken]
        self.live.add(torch.cat(rows), groups)
        self._answered += len(features)

    def _between(self, call: Callable[[], None]) -> None:
        with self._forward_lock:
            call()

    def _count(self, item: ItemLogits, level: float, rows: int, agreed: int) -> None:
        self.counts.count(level, rows, agreed)
        self.counts.finish(level, rows, agreed, source=_hashed(item.clean.half()))

    def calibration_sample(self, path: Path, progress: Callable[[str], None] = lambda _: None) -> CalibrationSample:
        """Features to calibrate on, from a bundled .safetensors or from a folder of at least 100 images.

        Raises:
            LoadError: not such a file or folder, too few images, or features of another model.
        """
        progress(f"reading {path.name}")
        if path.is_dir():
            features, metric, scale = self.sample_features(
                map(read_picture, picture_files(path, self.calibration_images))
            )
        else:
            features, metric, metadata = read_features(path)
            if metadata.get("weights") != self.weights or features.shape[1] != self.features:
                raise LoadError(f"{path} was made with other weights than {self.model_id}'s; make it again")
            scale = int(metadata.get("scale", "1"))
        return self._sample(features.to(self.device), scale, metric.to(self.device))

    def refit_sample(self, path: Path, progress: Callable[[str, float], None]) -> CalibrationSample:
        """Features of a folder of at least 100 images, or of a bundled .safetensors.

        Raises:
            LoadError: as `calibration_sample`.
        """
        if not path.is_dir():
            return self.calibration_sample(path)
        files = picture_files(path, self.calibration_images)
        kept, scales = [], []
        for number, (image, features) in enumerate(self._featured(map(read_picture, files))):
            progress("reading images", number / len(files))
            kept.append(self._take(features, number).half())
            scales.append(_scale(image.height, features))
        return self._sample(torch.cat(kept), int(median(scales)), None)

    def sample_features(self, images: Iterable[Image.Image]) -> tuple[Tensor, Tensor, int]:
        """What to calibrate on, of pictures, on the CPU.

        Returns:
            features: [N, H] float16 inputs of the final layer, or for masks a few tiles of each picture,
                [tiles, H, h, w].
            metric: [H, m] float32, of the noise field, from near-duplicates of the first of them.
            scale: output pixels per logit (1: no mask).
        """
        kept: list[Tensor] = []
        nearby: list[Tensor] = []
        scales: list[int] = []
        for number, (image, features) in enumerate(self._featured(images)):
            kept.append(self._take(features, number).half().cpu())
            scale = _scale(image.height, features)
            scales.append(scale)
            if number < self.duplicated_images:
                nearby.append(self._duplicates(image, scale).float().cpu())
        sample, chosen = torch.cat(kept), torch.cat(nearby)
        different = chosen[:, 0] if sample.ndim == 4 else sample.float()
        seen = different.to(self.device)
        clean = self._clean_logits(seen[..., None, None] if sample.ndim == 4 else seen)
        metric = duplicate_metric(chosen, different, highest(clean).flatten().cpu(), self.directions)
        return sample, metric, sorted(scales)[len(scales) // 2]

    def _duplicates(self, image: Image.Image, scale: int) -> Tensor:
        """Features [M, COPIES, H] of a picture's near-duplicates; a shift is one cell of a map, or a 16th of a side."""
        ways = [Duplicate.draw(number) for number in range(COPIES)]
        step = scale if scale > 1 else max(1, min(image.size) // 16)
        return self._nearby([features for _, features in self._featured(way.apply(image, step) for way in ways)], ways)

    def _featured(self, images: Iterable[Image.Image]) -> Iterator[tuple[Image.Image, Tensor]]:
        """Pictures, each with its final-layer input [1, ...], float32; pictures of one shape are run together."""
        for some in batched(images, self.spec.max_batch_size):
            found: dict[int, Tensor] = {}
            shapes: dict[torch.Size, list[tuple[int, Tensor]]] = {}
            for at, image in enumerate(some):
                pixels = self.preprocess(image)
                shapes.setdefault(pixels.shape, []).append((at, pixels))
            for group in shapes.values():
                features = self._final_input(torch.stack([pixels for _, pixels in group]))
                found |= {at: features[i : i + 1] for i, (at, _) in enumerate(group)}
            yield from ((image, found[at]) for at, image in enumerate(some))

    @torch.inference_mode()
    def _final_input(self, batch: Tensor) -> Tensor:
        seen: list[Tensor] = []
        hook = self.final.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
        try:
            self._run(batch.to(self.device, self.dtype))
        finally:
            hook.remove()
        return seen[0].float()

    @abstractmethod
    def _take(self, features: Tensor, number: int) -> Tensor:
        """What of one picture's features [1, ...] goes into a sample."""

    @abstractmethod
    def _nearby(self, features: Sequence[Tensor], ways: Sequence[Duplicate]) -> Tensor:
        """Final-layer inputs [1, ...] of one picture's duplicates: [M, copies, H], in the picture's own frame."""

    @abstractmethod
    def _sample(self, features: Tensor, scale: int, metric: Tensor | None) -> CalibrationSample: ...

    @torch.inference_mode()
    def _clean_logits(self, features: Tensor) -> Tensor:
        """The final layer's answers to features [N, H] or [N, H, h, w], float32."""
        logits: Tensor = self.final.forward(features.to(self.dtype))  # not by calling it, which the head modulates
        return logits.float()


def batched(images: Iterable[Image.Image], size: int) -> Iterator[list[Image.Image]]:
    """Lists of at most so many (itertools has it from Python 3.12 on)."""
    waiting = iter(images)
    while some := list(islice(waiting, size)):
        yield some


def _source(pixels: Tensor) -> int:
    """A hash of a picture as the model sees it, [3, h, w] float32 on the CPU."""
    return _hashed(pixels.flatten()[:: max(1, pixels.numel() // _HASHED)])


def _hashed(values: Tensor) -> int:
    """The same 64 bits in every process: all replicas of a model must hold the same inputs out from refits."""
    digest = hashlib.blake2b(values.cpu().contiguous().numpy().tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _scale(height: int, features: Tensor) -> int:
    """Output pixels per logit along a side of a picture, from final-layer inputs [1, ...]; 1 without a map."""
    return max(1, round(height / features.shape[-2])) if features.ndim == 4 else 1
