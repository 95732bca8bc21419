"""A replica's start: take the model's calibration from the store, or solve it and leave it there for the next."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch

from deployments.config import ModelSpec, Task, resolve_path
from deployments.console import announce
from deployments.engines.calibrated import CalibratedEngine
from policies.calibration import Calibration
from tenants.served import ServedModels

if TYPE_CHECKING:  # Ray, which a process that only fits does without
    from deployments.store import StoreAccess


class NotCalibrated(Exception):
    """A model without a calibration sample: it is refused rather than sold at levels nobody measured."""


@dataclass(frozen=True)
class InPlace:
    """The calibration that a replica uses.

    Attributes:
        key: its place in the store, below `calibration:`.
        version: how often it had been refitted.
        secret: the installation's noise secret.
    """

    key: str
    version: int
    secret: bytes = field(repr=False)


def load_engine(spec: ModelSpec, device: torch.device) -> CalibratedEngine:
    """The engine of a model's task, loaded.

    Raises:
        LoadError: it cannot be loaded or modulated; the message says what to change.
    """
    match spec.task:
        case Task.CLASSIFICATION:
            from deployments.engines.classifier import ImageClassifier

            return ImageClassifier.load(spec, device)
        case Task.SEGMENTATION:
            from deployments.engines.segmenter import ImageSegmenter

            return ImageSegmenter.load(spec, device)
        case Task.TEXT:
            from deployments.engines.generator import Generator

            return Generator.load(spec, device)


async def install_calibration(engine: CalibratedEngine, spec: ModelSpec, access: StoreAccess) -> InPlace:
    """Calibrate `engine` for this installation and put its modulated layer in place.

    Raises:
        NotCalibrated: `spec.calibration` names no sample.
        Unavailable: the store is away.
    """
    async with await access.connect() as store:
        secret = await access.noise_secret(store)
        key = _calibration_key(engine, spec, secret)
        # Before the calibration: one that is replaced in between is then taken again, not missed.
        version = await ServedModels(store).version(key)
        stored = await store.load_calibration(key)
        if stored is None:
            calibration = await asyncio.to_thread(_calibrate, engine, spec, secret)
            # Replicas that start together may all calibrate; the first one's is everyone's.
            stored = json.loads(await store.save_calibration(key, calibration.to_json()))
    await asyncio.to_thread(engine.install, Calibration.from_json(json.dumps(stored)), secret)
    return InPlace(key, version, secret)


def _calibrate(engine: CalibratedEngine, spec: ModelSpec, secret: bytes) -> Calibration:
    if spec.calibration is None:
        raise NotCalibrated(
            f"model {spec.id} has no calibration: name a folder of images or a text file that it was not trained on"
            " in its `calibration` field"
        )
    sample = engine.calibration_sample(resolve_path(spec.calibration), partial(announce, spec.id))
    said = 0

    def quarters(share: float) -> None:
        nonlocal said
        if int(share * 4) > said:
            said = int(share * 4)
            announce(spec.id, f"calibrating, {25 * said} %")

    return engine.fit(sample, secret, progress=quarters)


def _calibration_key(engine: CalibratedEngine, spec: ModelSpec, secret: bytes) -> str:
    """The model's fingerprint and a digest of all else that decides its noise field; 2 and 3 are kinds of field."""
    kind = 3 if engine.balanced else 2
    field = hmac.new(secret, f"{kind}:{engine.fingerprint}:{spec.length_scale}:{spec.depth}".encode(), hashlib.sha256)
    return f"{engine.fingerprint}-{field.hexdigest()[:8]}"
