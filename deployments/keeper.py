"""A task in each replica: it reports what the levels deliver, follows refits, and has one made when asked."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import TYPE_CHECKING

from deployments.calibrating import InPlace
from deployments.config import ModelSpec
from deployments.engines.calibrated import CalibratedEngine
from deployments.refitting import Refit
from policies.calibration import Calibration
from policies.errors import Unavailable
from tenants.records import RecordError
from tenants.served import ReplicaReport, ServedModels
from tenants.store import TenantStore

if TYPE_CHECKING:  # Ray, which a process that only fits does without
    from deployments.store import StoreAccess

logger = logging.getLogger("deployments.keeper")

POLL_S = 1.0
REPORT_S = 5.0
JUDGE_S = 30.0
"""Judging 4,096 pictures takes a tenth of a second, 1,024 decoding steps of a large vocabulary up to two."""


class Keeper:
    """Stays in touch with the store while a replica serves; no request ever waits for it.

    Args:
        engine: with its calibration installed.
        spec: the model.
        access: how to find the store.
        in_place: the calibration installed.
        replica: this replica's id.
        threads: CPU threads of a refit from a folder.
    """

    def __init__(
        self,
        engine: CalibratedEngine,
        spec: ModelSpec,
        access: StoreAccess,
        in_place: InPlace,
        replica: str,
        threads: int,
    ) -> None:
        self._engine, self._spec, self._access, self._in_place = engine, spec, access, in_place
        self._replica, self._threads = replica, threads
        self._version, self._unusable = in_place.version, -1
        self._judged = self._reported = -JUDGE_S
        self._known_job = ""
        self._refit: asyncio.Task[None] | None = None
        self._task = asyncio.create_task(self._run(), name=f"keeper-{spec.id}")

    async def _run(self) -> None:
        async with await self._access.connect() as store:
            while True:
                try:
                    await self._once(store)
                except Unavailable:
                    pass  # the store's own client says so, and finds it again
                except Exception:
                    logger.exception("model %s: reports and refits pause", self._spec.id)
                    await asyncio.sleep(REPORT_S)
                await asyncio.sleep(POLL_S)

    def check(self) -> None:
        """Raises RuntimeError where the task has ended, so that no refit would reach this replica."""
        if self._task.done():
            raise RuntimeError("the keeper of the calibration has ended")

    async def _once(self, store: TenantStore) -> None:
        served = ServedModels(store)
        version, job = await served.look(self._spec.id, self._in_place.key)
        if version != self._version:
            await self._take(store, version)
        if job and job.replica == self._replica and job.state == "asked" and job.id != self._known_job:
            self._known_job = job.id
            refit = Refit(self._engine, self._spec, self._in_place, self._threads, job)
            work = refit.run(served, lambda made: self._take(store, made))
            self._refit = asyncio.create_task(work, name=f"refit-{job.model}")
        if time.monotonic() - self._judged > JUDGE_S:
            await asyncio.to_thread(self._engine.judge_live)
            self._judged = time.monotonic()
        if time.monotonic() - self._reported > REPORT_S:
            await self._report(served)

    async def _report(self, served: ServedModels) -> None:
        inputs, levels = await asyncio.to_thread(lambda: self._engine.live.inputs), tuple(self._engine.reports())
        await served.publish(
            ReplicaReport(self._spec.id, self._replica, self._in_place.key, self._version, inputs, levels)
        )
        self._reported = time.monotonic()

    async def _take(self, store: TenantStore, version: int) -> None:
        """Put the calibration that is in the store in place; one that cannot be used leaves the old one."""
        if version in (self._version, self._unusable):
            return
        try:
            stored = await store.load_calibration(self._in_place.key)
            if stored is None:
                raise ValueError("it is gone")
            await asyncio.to_thread(self._engine.recalibrate, Calibration.from_json(json.dumps(stored)))
        except (RecordError, ValueError) as error:
            logger.error("model %s: the stored calibration cannot be used: %s", self._spec.id, error)
            self._unusable = version
            return
        self._version = version
        self._judged = self._reported = -JUDGE_S
