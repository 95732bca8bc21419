"""A replica's start: take the model's calibration from the store, or solve it and leave it there for the next."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from deployments.config import ModelSpec, resolve_path
from deployments.console import announce
from deployments.store import StoreAccess
from policies.calibration import Calibration


class Engine(Protocol):
    """What the three engines have in common."""

    fingerprint: str
    device: torch.device

    @property
    def floor(self) -> float: ...

    def calibration_sample(self, path: Path, progress: Callable[[str], None]) -> Any: ...

    def fit(self, sample: Any, secret: bytes, *, progress: Callable[[float], None]) -> Calibration: ...

    def install(self, calibration: Calibration, secret: bytes) -> None: ...


class NotCalibrated(Exception):
    """A model without a calibration sample: it is refused rather than sold at levels nobody measured."""


async def install_calibration(engine: Engine, spec: ModelSpec, access: StoreAccess) -> None:
    """Calibrate `engine` for this installation and put its modulated layer in place.

    Raises:
        NotCalibrated: `spec.calibration` names no sample.
        Unavailable: the store is away.
    """
    async with await access.connect() as store:
        secret = await access.noise_secret(store)
        key = _calibration_key(engine.fingerprint, spec, secret)
        stored = await store.load_calibration(key)
        if stored is None:
            calibration = await asyncio.to_thread(_calibrate, engine, spec, secret)
            # Replicas that start together may all calibrate; the first one's is everyone's.
            stored = json.loads(await store.save_calibration(key, calibration.to_json()))
    await asyncio.to_thread(engine.install, Calibration.from_json(json.dumps(stored)), secret)


def _calibrate(engine: Engine, spec: ModelSpec, secret: bytes) -> Calibration:
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


def _calibration_key(fingerprint: str, spec: ModelSpec, secret: bytes) -> str:
    """The model's fingerprint and a digest of all else that decides its noise field; 2 is the kind of field."""
    field = hmac.new(secret, f"2:{fingerprint}:{spec.length_scale}:{spec.depth}".encode(), hashlib.sha256)
    return f"{fingerprint}-{field.hexdigest()[:8]}"
