"""The noise field of a model, in the store: fixed by who calibrates on it first, kept by every model that has it."""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import replace

from deployments.config import ModelSpec
from deployments.engines.calibrated import CalibratedEngine
from deployments.engines.errors import LoadError
from policies.calibration.calibration import Calibration
from policies.head.attachment import layer_shape
from tenants.records import keyspace
from tenants.store.store import TenantStore


class NoiseField:
    """One model's view of its field.

    Two models of one field have one noise only if length scale, depth, metric, block and offsets are the same too. So
    these are written once, with the first calibration, and every later one of the field is solved on them.

    Args:
        engine: loaded.
        secret: the installation's noise secret; another one's field of the same name is another.
    """

    def __init__(self, engine: CalibratedEngine, spec: ModelSpec, secret: bytes, store: TenantStore) -> None:
        self._engine, self._spec, self._store = engine, spec, store
        self._key = f"{engine.field}-{_keyed(secret, f'field:{engine.field}')}"
        self._earlier = _earlier_key(engine, spec, secret)

    async def join(self) -> None:
        """Say of which shape the model's final layer is, unless another model of the field has said so.

        Raises:
            LoadError: it is of another one; the message names both.
            Unavailable: the store is away.
        """
        features, classes = layer_shape(self._engine.final)
        own = f"{features}x{classes}"
        known = await self._store.place(keyspace.field_shape(self._key), own)
        if known != own:
            raise LoadError(
                f"{self._spec.id}: the noise field '{self._engine.field}' is of final layers of {known} (features x"
                f" classes), but this model's is {own}; only equal shapes can share a field: give it another `field`"
            )

    async def fixed(self) -> Calibration | None:
        """What is fixed of the field, as a calibration without levels; None before the first one.

        Raises:
            LoadError: the configuration asks for something else; the message names both.
            RecordError: the record is not what `fix` wrote.
            Unavailable: the store is away.
        """
        stored = await self._store.load_json(keyspace.field(self._key))
        return None if stored is None else self._checked(stored)

    async def fix(self, calibration: Calibration) -> Calibration:
        """Fix the field to a calibration's, unless it is; what is fixed then, which another model may have been first.

        Raises:
            LoadError, RecordError, Unavailable: as `fixed`.
        """
        bare = replace(calibration, curve=((0, 1.0),), favour_gap=(), avoid_gap=(), answers=0)
        ell = self._spec.length_scale or self._engine.scheme.length_scale
        record = json.dumps({"relative_length_scale": ell, "calibration": json.loads(bare.to_json())})
        await self._store.place(keyspace.field(self._key), record)
        fixed = await self.fixed()
        if fixed is None:
            raise LoadError(f"{self._spec.id}: its noise field was deleted from the store while it was being fixed")
        return fixed

    async def adopted(self) -> Calibration | None:
        """What this model was sold by before fields had names, its field being fixed to it; None where that is not so.

        Its noise, keyed by its fingerprint, goes on, so that an upgrade draws none anew.

        Raises:
            LoadError, RecordError, Unavailable: as `fixed`.
        """
        stored = await self._store.load_calibration(self._earlier)
        if stored is None:
            return None
        calibration = Calibration.from_json(json.dumps(stored))
        fixed = await self.fix(calibration)
        return calibration if fixed.same_field(calibration) else None

    def _checked(self, stored: dict[str, object]) -> Calibration:
        try:
            ell = float(str(stored["relative_length_scale"]))
            fixed = Calibration.from_json(json.dumps(stored["calibration"]))
        except (KeyError, ValueError) as error:
            raise LoadError(f"{keyspace.field(self._key)} is not a noise field's record: {error!r}") from None
        for name, own, its in (
            ("depth", self._spec.depth, fixed.depth),
            ("length_scale", self._spec.length_scale, ell),
        ):
            if own is not None and own != its:
                raise LoadError(
                    f"{self._spec.id}: its configuration has {name} {own:g}, but its noise field '{self._engine.field}'"
                    f" was fixed with {its:g}; set {name}: {its:g}, or leave it out, or give the model another `field`,"
                    " which draws other noise"
                )
        return fixed


def calibration_key(engine: CalibratedEngine, secret: bytes) -> str:
    """Where a model's levels are kept, below `calibration:`: by its fingerprint, its field and the secret."""
    return f"{engine.fingerprint}-{_keyed(secret, f'field:{engine.field}')}"


def _earlier_key(engine: CalibratedEngine, spec: ModelSpec, secret: bytes) -> str:
    """Where they were kept before fields had names; 2 and 3 are kinds of field."""
    kind = 3 if engine.scheme.balance else 2
    return f"{engine.fingerprint}-{_keyed(secret, f'{kind}:{engine.fingerprint}:{spec.length_scale}:{spec.depth}')}"


def _keyed(secret: bytes, text: str) -> str:
    return hmac.new(secret, text.encode(), hashlib.sha256).hexdigest()[:8]
