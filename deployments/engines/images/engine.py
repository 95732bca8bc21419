"""What the classifier and the segmenter share: one batch across tenants, the head's slots, audit, calibration."""

from __future__ import annotations

import hashlib
import threading
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from deployments.config import ModelSpec, Task
from deployments.engines.calibrated import CalibratedEngine, Progress, untold
from deployments.engines.errors import LoadError, first_line
from deployments.engines.images.bounds import ResizedBound
from deployments.engines.images.duplicates import Duplicate
from deployments.engines.images.features import sample_features
from deployments.engines.images.hashes import hashed, hashed_picture
from deployments.engines.images.items import ItemLogits
from deployments.engines.images.loading.loaded import LoadedModel
from deployments.engines.images.loading.torchvision_models import load_torchvision
from deployments.engines.images.loading.transformers_models import load_transformers
from deployments.engines.images.sample import picture_files, read_features, read_picture, told
from policies.calibration.sample import CalibrationSample
from policies.errors import InvalidRequest, PayloadTooLarge
from policies.field.identity import field_digest
from policies.head.attachment import layer_shape
from policies.head.final import NoFinalLayer, find_final
from policies.head.focus import Target
from policies.head.slots import Setting
from policies.terms import Modulation


class VisionEngine(CalibratedEngine):
    """A vision model whose every picture is answered at its tenant's terms.

    `preprocess`, `setting`, `prepare`, `install` and `audit` are safe from any thread; `forward` and
    `calibration_sample` belong to one thread at a time.

    Attributes:
        classes: K names, in the order of the logits.
        features: H, width of the final layer's input.
        fingerprint: 16 hex digits over weights, classes, architecture, preprocessing and dtype; the same in every
            process.
    """

    task: ClassVar[Task]
    calibration_images: ClassVar[int]

    def __init__(self, spec: ModelSpec, loaded: LoadedModel, device: str | torch.device) -> None:
        super().__init__(spec)
        self.model_id, self.classes = spec.id, loaded.classes
        self.device, self.dtype = torch.device(device), getattr(torch, spec.dtype)
        self.depth = spec.depth or self.scheme.depth
        self.weights = loaded.weights_digest()[:16]
        named = "\n".join([self.weights, spec.dtype, loaded.described, *loaded.classes])
        self.fingerprint = hashlib.sha256(named.encode()).hexdigest()[:16]
        self._preprocess, self._run = loaded.preprocess, loaded.run
        self.model = loaded.model.requires_grad_(False).to(self.device, self.dtype)
        blank = self._preprocess(Image.new("RGB", (64, 64), "grey"))[None].to(self.device, self.dtype)
        self._resized = ResizedBound(loaded.resizing, blank.shape[-2] * blank.shape[-1])
        try:
            found = find_final(self.model, lambda: self._run(blank))
        except NoFinalLayer as error:
            raise LoadError(f"{spec.id}: {error}; name another model in source") from error
        except Exception as error:  # of a model that takes other inputs than pixels of that size
            raise LoadError(f"{spec.id}: {spec.source} fails on a grey picture: {first_line(error)}") from error
        self.final, self._align_corners = found.module, found.align_corners
        self.field = spec.field or field_digest(self.final)
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
        return cls(spec, load_torchvision(spec) or load_transformers(spec), device)

    def preprocess(self, image: Image.Image) -> Tensor:
        """An RGB picture to the model's input, [3, h, w] float32 on the CPU.

        Raises:
            PayloadTooLarge: resized, it would be huge.
            InvalidRequest: the model's own preprocessing cannot take it.
        """
        self._resized.check(*image.size)
        try:
            return self._preprocess(image)
        except Exception as error:  # of the libraries' own, on a picture of one line
            raise InvalidRequest(
                f"{self.model_id} cannot take an image of {image.width} x {image.height} pixels"
                f" ({first_line(error)}); send one that is less long and thin.",
                param="inputs",
                code="invalid_image",
            ) from error

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
    def forward(
        self, pixels: Sequence[Tensor], modulations: Sequence[Modulation], flows: Sequence[str] | None = None
    ) -> list[ItemLogits]:
        """One batch across tenants: item i of `pixels` answered at `modulations[i]`.

        Args:
            pixels: from `preprocess`; those of one shape run together.
            flows: whose each is, for the live rows; None: all of one tenant.

        Raises:
            InvalidRequest: as `row_terms`.
            ValueError: other than one modulation per picture, or one flow.
        """
        flows = flows or [""] * len(pixels)
        if not len(pixels) == len(modulations) == len(flows):
            raise ValueError(f"{len(pixels)} pictures, but {len(modulations)} modulations and {len(flows)} flows")
        shapes: dict[tuple[int, ...], list[int]] = {}
        for index, item in enumerate(pixels):
            shapes.setdefault(tuple(item.shape), []).append(index)
        answers: dict[int, ItemLogits] = {}
        with self._forward_lock:
            settings = [self.setting(modulation) for modulation in modulations]
            for group in self._resized.together(shapes):
                batch = torch.stack([pixels[i] for i in group]).to(self.device, self.dtype)
                whose = [(hashed_picture(pixels[i]), flows[i]) for i in group]
                modulated = self._modulated(batch, [settings[i] for i in group], whose)
                answers |= dict(zip(group, modulated, strict=True))
        return [answers[i] for i in range(len(pixels))]

    @torch.inference_mode()
    def trial(self) -> None:
        """Have the model answer a grey picture, and read the answer back. Raises what the device raises."""
        blank = self._preprocess(Image.new("RGB", (64, 64), "grey"))[None].to(self.device, self.dtype)
        with self._forward_lock:
            if self._head is not None:
                self._head.write_all([Setting()])
            self._run(blank).float().sum().item()
            if self._head is not None:
                self._head.last = self._head.seen = None

    def _modulated(
        self, batch: Tensor, settings: Sequence[Setting], whose: Sequence[tuple[int, str]]
    ) -> Iterable[ItemLogits]:
        head = self._head
        if head is None:  # `setting` let nothing but level 1.0 pass
            return [ItemLogits(item, item, item) for item in self._run(batch).float()]
        head.write_all(settings)
        answer = self._run(batch).float()
        last, head.last = head.last, None
        seen, head.seen = head.seen, None
        if last is None or seen is None:
            raise RuntimeError(f"{self.model_id}: the head was not in the path of this batch")
        self._keep(self._rows(seen), whose)
        # What is the same in the final layer is the same in the answer.
        utility = answer if last.utility is last.logits else self._as_answered(last.utility, answer.shape)
        clean = utility if last.clean is last.utility else self._as_answered(last.clean, answer.shape)
        lines = seen.shape[-2] if self.task is Task.SEGMENTATION else 1
        return [ItemLogits(*item, lines) for item in zip(answer, clean, utility, strict=True)]

    def _as_answered(self, logits: Tensor, shape: torch.Size) -> Tensor:
        """A final layer's output [B, K, ...] in the shape that the model answers in, float32."""
        if self._align_corners is None:
            return logits.float().reshape(shape)
        return F.interpolate(logits.float(), shape[2:], mode="bilinear", align_corners=self._align_corners)

    def _keep(self, features: Tensor, whose: Sequence[tuple[int, str]]) -> None:
        """Live rows of a batch, by the pictures' hashes and flows: a picture that comes again is the same input."""
        rows = [self.take(item[None], self._answered + i) for i, item in enumerate(features)]
        groups, flows = zip(*(own for own, taken in zip(whose, rows, strict=True) for _ in taken), strict=True)
        self.live.add(torch.cat(rows), groups, flows=flows)
        self._answered += len(features)

    def _between(self, call: Callable[[], None]) -> None:
        with self._forward_lock:
            call()

    def readout(
        self, items: Sequence[ItemLogits], modulations: Sequence[Modulation], top_k: Sequence[int | None]
    ) -> Any:
        """What each picture of a batch is answered from, made in the thread of its forward: its logits."""
        return items

    def _count(self, clean: Tensor, level: float, rows: int, agreed: int) -> None:
        """Count a picture in the audit, by its clean logits in 16 bits."""
        self.counts.count(level, rows, agreed)
        if level < 1.0:  # of level 1.0 there is nothing to judge
            self.counts.finish(level, rows, agreed, source=hashed(clean))

    def calibration_sample(self, path: Path, progress: Progress = untold, *, refit: bool = False) -> CalibrationSample:
        """Features to calibrate on, from a bundled .safetensors or from a folder of at least 100 images.

        Raises:
            LoadError: not such a file or folder, too few images, or features of another model.
        """
        if path.is_dir():
            files = picture_files(path, self.calibration_images)
            pictures = (self._read(file) for file in told(files, progress))
            features, metric, scale = sample_features(self, pictures, self.scheme, refit=refit)
        else:
            progress(f"reading {path.name}", 0.0)
            features, metric, metadata = read_features(path)
            if metadata.get("weights") != self.weights or features.shape[1] != self.features:
                raise LoadError(f"{path} was made with other weights than {self.model_id}'s; make it again")
            scale = int(metadata.get("scale", "1"))
            metric = metric if self.scheme.directions else None
        return self._sample(features.to(self.device), scale, None if metric is None else metric.to(self.device))

    def _read(self, path: Path) -> Image.Image:
        image = read_picture(path)
        try:
            self._resized.check(*image.size)
        except PayloadTooLarge as error:
            raise LoadError(f"calibration image {path}: {error.message}") from error
        return image

    @torch.inference_mode()
    def final_input(self, batch: Tensor) -> Tensor:
        """What the final layer is given for a batch from `preprocess`, [B, 3, h, w]: [B, H] or [B, H, h, w] float32."""
        return self._final_input_and_answer(batch)[0]

    @torch.inference_mode()
    def clean_answer(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """What the final layer is given for a batch, as `final_input`, and its clean logits in the answer's shape."""
        features, answer = self._final_input_and_answer(batch)
        return features, self._as_answered(self.clean_logits(features), answer.shape)

    def _final_input_and_answer(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        seen: list[Tensor] = []
        hook = self.final.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
        try:
            answer = self._run(batch.to(self.device, self.dtype))
        finally:
            hook.remove()
        return self._rows(seen[0]).float(), answer

    def _rows(self, features: Tensor) -> Tensor:
        """What a final layer is given: [B, H] of a classifier, also of one whose layer takes [B, 1, H] or a map."""
        return features.flatten(1) if self.task is Task.CLASSIFICATION else features

    @abstractmethod
    def take(self, features: Tensor, number: int) -> Tensor:
        """What of one picture's features [1, ...] goes into a sample."""

    @abstractmethod
    def nearby(self, features: Sequence[Tensor], ways: Sequence[Duplicate]) -> Tensor:
        """Final-layer inputs [1, ...] of one picture's duplicates: [M, copies, H], in the picture's own frame."""

    @abstractmethod
    def _sample(self, features: Tensor, scale: int, metric: Tensor | None) -> CalibrationSample: ...

    @torch.inference_mode()
    def clean_logits(self, features: Tensor) -> Tensor:
        """The final layer's answers to features [N, H] or [N, H, h, w], float32."""
        features = features.to(self.device, self.dtype)
        if isinstance(self.final, nn.Conv2d) and features.ndim == 2:
            features = features[..., None, None]
        logits: Tensor = self.final.forward(features)  # not by calling it, which the head modulates
        return self._rows(logits).float()
