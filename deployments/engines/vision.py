"""What the classifier and the segmenter share: one batch across tenants, the modulated layer, audit, calibration."""

from __future__ import annotations

import hashlib
import threading
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import ClassVar, Self

import torch
from PIL import Image
from torch import Tensor, nn

from deployments.config import ModelSpec, Task
from deployments.engines.calibrated import CalibratedEngine
from deployments.engines.duplicates import Duplicate
from deployments.engines.final_layer import find_final
from deployments.engines.loading import LoadedModel, LoadError
from deployments.engines.sample import CalibrationSample, picture_files, pictures, read_features, read_picture
from policies.errors import InvalidRequest
from policies.layer import ModulatedLayer, RowTerms, from_rows, layer_shape
from policies.metric import duplicate_metric
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

    `preprocess`, `row_terms`, `prepare` and `audit` are safe from any thread; `forward`, `install` and
    `calibration_sample` belong to one thread at a time.

    Attributes:
        classes: K names, in the order of the logits.
        features: H, width of the final layer's input.
        fingerprint: 16 hex digits over weights, classes, preprocessing and dtype; the same in every process.
    """

    task: ClassVar[Task]
    final_kind: ClassVar[type[nn.Module]]
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
        self._final_name, self.final = find_final(self.model, self._run, blank, self.final_kind, len(self.classes))
        self.features, _ = layer_shape(self.final)
        self._seen: Tensor | None = None
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

    def _put(self, layer: ModulatedLayer) -> None:
        layer.register_forward_pre_hook(self._remember)
        self.model.set_submodule(self._final_name, layer)

    def row_terms(self, modulation: Modulation) -> RowTerms:
        """A request's terms by class index; a name that several classes bear stands for all of them.

        Raises:
            InvalidRequest: a focus on a class that the model does not have.
        """
        focus: dict[int, float] = {}
        for name, strength in modulation.focus.items():
            if name not in self.classes:
                raise InvalidRequest(
                    f"{self.model_id} has no class '{name}'.", param=f"focus.{name}", code="unknown_class"
                )
            focus |= {index: strength for index, known in enumerate(self.classes) if known == name}
        return RowTerms(max(modulation.utility, self.floor), focus)

    def prepare(self, modulation: Modulation) -> None:
        """Check a request's terms and build what they need before it joins a batch.

        Raises:
            InvalidRequest: as `row_terms`.
        """
        self.layer.prepare(self.row_terms(modulation))

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
            terms = [self.row_terms(modulation) for modulation in modulations]
            for group in shapes.values():
                batch = torch.stack([pixels[i] for i in group]).to(self.device, self.dtype)
                modulated = self._modulated(batch, [terms[i] for i in group], [_source(pixels[i]) for i in group])
                answers |= dict(zip(group, modulated, strict=True))
        return [answers[i] for i in range(len(pixels))]

    def _modulated(self, batch: Tensor, terms: Sequence[RowTerms], sources: Sequence[int]) -> Iterable[ItemLogits]:
        layer = self.layer
        with layer.rows(terms):
            shape = self._run(batch).shape
        last, layer.last = layer.last, None
        seen, self._seen = self._seen, None
        if last is None or seen is None:
            raise RuntimeError(f"{self.model_id}: the modulated layer was not in the path of this batch")
        self._keep(seen, sources)
        parts = [from_rows(self.final, rows, shape).float() for rows in (last.logits, last.clean, last.utility)]
        return [ItemLogits(*item) for item in zip(*parts, strict=True)]

    def _remember(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._seen = inputs[0]

    def _keep(self, features: Tensor, sources: Sequence[int]) -> None:
        """Live rows of a batch, by the pictures' hashes: a picture that comes again is the same input."""
        rows = [self._take(item[None], self._answered + i) for i, item in enumerate(features)]
        groups = [source for source, taken in zip(sources, rows, strict=True) for _ in taken]
        self.live.add(torch.cat(rows), groups)
        self._answered += len(features)

    def _adopt(self, adopt: Callable[[], None]) -> None:
        with self._forward_lock:
            adopt()

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
            features, metric, scale = self.sample_features(pictures(path, self.calibration_images))
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
        for number, file in enumerate(files):
            progress("reading images", number / len(files))
            image = read_picture(file)
            features = self._final_input(self.preprocess(image))
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
        for number, image in enumerate(images):
            features = self._final_input(self.preprocess(image))
            kept.append(self._take(features, number).half().cpu())
            scale = _scale(image.height, features)
            scales.append(scale)
            if number < self.duplicated_images:
                nearby.append(self._duplicates(image, scale).float().cpu())
        sample, chosen = torch.cat(kept), torch.cat(nearby)
        different = chosen[:, 0] if sample.ndim == 4 else sample.float()
        seen = different.to(self.device)
        clean = self._clean_logits(seen[..., None, None] if sample.ndim == 4 else seen)
        metric = duplicate_metric(chosen, different, clean.argmax(dim=1).flatten().cpu(), self.directions)
        return sample, metric, sorted(scales)[len(scales) // 2]

    def _duplicates(self, image: Image.Image, scale: int) -> Tensor:
        """Features [M, COPIES, H] of a picture's near-duplicates; a shift is one cell of a map, or a 16th of a side."""
        ways = [Duplicate.draw(number) for number in range(COPIES)]
        step = scale if scale > 1 else max(1, min(image.size) // 16)
        return self._nearby([self._final_input(self.preprocess(way.apply(image, step))) for way in ways], ways)

    @torch.inference_mode()
    def _final_input(self, pixels: Tensor) -> Tensor:
        seen: list[Tensor] = []
        hook = self.final.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
        try:
            self._run(pixels[None].to(self.device, self.dtype))
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
        logits: Tensor = self.final(features.to(self.dtype))
        return logits.float()


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
