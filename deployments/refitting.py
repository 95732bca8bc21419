"""A refit that an operator asked one replica for: made beside the traffic, told step by step, called off at once."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace

from deployments.calibrating import InPlace
from deployments.collecting import RefitFailed, refit_from
from deployments.config import ModelSpec
from deployments.engines.calibrated import CalibratedEngine
from deployments.engines.loading import LoadError
from policies.calibration import Calibration
from policies.errors import Unavailable
from tenants.served import LIVE, Job, ServedModels

logger = logging.getLogger("deployments.refitting")

TELL_S = 0.5


class CalledOff(Exception):
    """The operator interrupted `tenants calibrate`."""


class Refit:
    """One job's way from `asked` to `done` or `failed`; whatever happens is told, in one line.

    Args:
        engine: the replica's, with its calibration installed.
        spec: the model.
        in_place: where the calibration is kept.
        threads: CPU threads of a process that reads a folder.
        job: what was asked for.
    """

    def __init__(self, engine: CalibratedEngine, spec: ModelSpec, in_place: InPlace, threads: int, job: Job) -> None:
        self._engine, self._spec, self._in_place, self._threads = engine, spec, in_place, threads
        self._job = replace(job, state="running", step="starting")
        self._off = threading.Event()

    async def run(self, served: ServedModels, take: Callable[[int], Awaitable[None]]) -> None:
        """Do the job. `take` puts the calibration of a version in this replica's place."""
        try:
            calibration = await self._followed(served)
            self._job = replace(self._job, rows=calibration.rows, step="reaching every replica", share=1.0)
            version = await served.replace_calibration(self._in_place.key, calibration.to_json())
            await take(version)
            if self._job.source == LIVE:
                self._job = replace(self._job, after=await self._delivered())
            await served.tell(replace(self._job, state="done", version=version))
        except CalledOff:
            logger.warning("model %s: the calibration was called off", self._job.model)
        except (RefitFailed, LoadError, ValueError) as error:
            await served.tell(replace(self._job, state="failed", error=str(error)))
        except Unavailable:
            logger.error(
                "model %s: the store went away during a calibration; look at `tenants levels`, and ask again",
                self._job.model,
            )
        except Exception:
            logger.exception("model %s: the calibration failed", self._job.model)
            await served.tell(replace(self._job, state="failed", error="it failed; see the replica's log"))

    async def _followed(self, served: ServedModels) -> Calibration:
        """The fit, with its progress told every half second."""
        fit = asyncio.create_task(self._fit())
        try:
            while not fit.done():
                if not await served.tell(self._job):
                    raise CalledOff
                await asyncio.wait({fit}, timeout=TELL_S)
            return fit.result()
        finally:
            self._off.set()
            fit.cancel()

    async def _fit(self) -> Calibration:
        secret, stored = self._in_place.secret, self._engine.layer.calibration
        if self._job.source != LIVE:
            return await refit_from(self._job.source, self._spec, secret, stored, self._threads, self._progress)
        self._job = replace(self._job, before=await self._delivered())

        def solve() -> Calibration:
            sample = self._engine.live_sample()
            return self._engine.fit(
                sample, secret, stored=stored, progress=lambda share: self._progress("solving levels", share)
            )

        return await asyncio.to_thread(solve)

    async def _delivered(self) -> dict[str, float]:
        """By level in use, what the calibration in place delivers on live inputs that no refit is solved on."""
        await asyncio.to_thread(self._engine.judge_live)
        return {f"{r.level:g}": round(r.expected.level, 3) for r in self._engine.reports() if r.expected.groups}

    def _progress(self, step: str, share: float) -> None:
        if self._off.is_set():  # a thread cannot be cancelled: its next word of progress ends it
            raise CalledOff
        self._job = replace(self._job, step=step, share=share)
