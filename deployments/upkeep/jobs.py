"""One job in which a model's levels are solved beside the traffic: told step by step, and called off at once."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TypeVar

from deployments.contracts.console import FAILED, announce
from deployments.engines.calibrated import CalibratedEngine
from deployments.upkeep.calibrator import CalibrationFailed, Calibrator, check_source, pack
from deployments.upkeep.fields import NoiseField
from policies.calibration.calibration import Calibration
from policies.errors import Unavailable
from tenants.records.fields import iso
from tenants.records.schema import RecordError
from tenants.reports.jobs import AUTO, BEFORE, BEFORE_REST_S, LIVE, REST_S, Job
from tenants.reports.replicas import ServedModels
from tenants.store import tasks

logger = logging.getLogger("deployments.upkeep.jobs")
T = TypeVar("T")

TELL_S = 0.5
STORE_TURNS = 120
"""How often a store that is away is tried again before a calibration is given up: what it took is minutes of work."""


class CalledOff(Exception):
    """The operator interrupted `tenants calibrate`, or another replica took the job over."""


class Solving:
    """One job's way to `done` or `failed`, a first calibration's or a refit's; what happens is told in one line each.

    Args:
        engine: the replica's.
        calibrator: of its model.
        key: where the calibration is kept, below `calibration:`.
        field: the model's noise field; the first calibration on it fixes it.
        stored: the calibration in place; None for the first.
        job: what is to be done.
    """

    def __init__(
        self,
        engine: CalibratedEngine,
        calibrator: Calibrator,
        key: str,
        field: NoiseField,
        stored: Calibration | None,
        job: Job,
    ) -> None:
        self._engine, self._calibrator, self._key, self._stored = engine, calibrator, key, stored
        self._field = field
        self._job = replace(job, state="running", step="starting")
        self._said = ("", 0)

    async def run(self, served: ServedModels, take: Callable[[int], Awaitable[None]]) -> None:
        """Do the job. `take` puts the calibration of a version in this replica's place."""
        try:
            calibration = await (self._first(served) if self._job.first else self._followed(served))
            self._job = replace(self._job, answers=calibration.answers, step="reaching every replica", share=1.0)
            put = served.place_calibration if self._job.first else served.replace_calibration
            version = await self._kept(served, partial(put, self._key, calibration.to_json()))
            await take(version)
            if self._job.source in (LIVE, BEFORE):
                self._job = replace(self._job, after=await self._delivered())
            if not self._job.first:
                await self._rest(served)
            await served.tell(replace(self._job, state="done", version=version))
        except CalledOff:
            logger.warning("model %s: the calibration was called off", self._job.model)
        except (CalibrationFailed, RecordError, ValueError) as error:
            await self._fail(served, str(error))
        except Unavailable:
            logger.error(
                "model %s: the store went away during a calibration; look at `tenants levels`, and ask again",
                self._job.model,
            )
        except Exception:
            logger.exception("model %s: the calibration failed", self._job.model)
            await self._fail(served, "it failed; see the replica's log")

    async def _first(self, served: ServedModels) -> Calibration:
        """A first calibration, on the model's field as whoever was first has fixed it."""
        self._stored = await self._kept(served, self._field.fixed)
        calibration = await self._followed(served)
        fixed = await self._kept(served, partial(self._field.fix, calibration))
        if fixed.same_field(calibration):
            return calibration
        self._stored = fixed  # another model of the field was first meanwhile
        return await self._followed(served)

    async def _kept(self, served: ServedModels, put: Callable[[], Awaitable[T]]) -> T:
        """What the store says to what is put into it; one that is away is waited for a while."""
        for left in reversed(range(STORE_TURNS)):
            try:
                if not await served.tell(self._job):
                    raise CalledOff
                return await put()
            except Unavailable:
                if not left:
                    raise
                await asyncio.sleep(TELL_S)
        raise AssertionError("unreachable")

    async def _fail(self, served: ServedModels, error: str) -> None:
        if self._job.first:
            announce(self._job.model, f"{FAILED} its levels cannot be solved: {error}")
        if self._job.who == AUTO:
            logger.warning("model %s: its drifted levels were not solved anew: %s", self._job.model, error)
        with suppress(Unavailable):  # a job that nobody tells of runs out
            if self._job.who == AUTO:
                await served.rest(self._key, f"the last, at {iso(time.time())}, failed: {error}")
            await served.tell(replace(self._job, state="failed", error=error))

    async def _rest(self, served: ServedModels) -> None:
        """Levels have moved: none is to be moved by itself for a while."""
        at = iso(time.time())
        if self._job.source == BEFORE:
            why = f"{self._job.who} put the calibration before back at {at}, and it is left alone for a day"
            await served.rest(self._key, why, BEFORE_REST_S)
        else:
            logger.info("model %s: levels solved anew, asked for by %s", self._job.model, self._job.who)
            await served.rest(self._key, f"levels were solved anew at {at}", REST_S)

    async def _followed(self, served: ServedModels) -> Calibration:
        """The calibration, with its progress told every half second; a store that is away meanwhile is waited for."""
        solving = asyncio.create_task(self._solve(served), name=f"solve-{self._job.model}")
        try:
            while not solving.done():
                with suppress(Unavailable):
                    if not await served.tell(self._job):
                        raise CalledOff
                await asyncio.wait({solving}, timeout=TELL_S)
            return solving.result()
        finally:
            if not solving.done():
                await tasks.end(solving)

    async def _solve(self, served: ServedModels) -> Calibration:
        if self._job.source == LIVE:
            return await self._refit()
        if self._job.source == BEFORE:
            return await self._before(served)
        await asyncio.to_thread(check_source, self._job.source, self._calibrator.spec)
        return await self._calibrator.solve(self._job.source, self._progress, stored=self._stored)

    async def _refit(self) -> Calibration:
        """The levels, solved on live rows."""
        assert self._stored is not None  # the first calibration is solved on a path
        live = await asyncio.to_thread(pack, self._engine)
        self._job = replace(self._job, before=await self._delivered())
        refit = await self._calibrator.refit(
            live,
            self._progress,
            stored=self._stored,
            levels=[report.level for report in self._engine.reports()],
            least=self._engine.least_live,
            strict=self._job.who == AUTO,
        )
        self._job = replace(self._job, tenants=refit.tenants, left_out=refit.left_out, capped=refit.capped)
        return refit.calibration

    async def _before(self, served: ServedModels) -> Calibration:
        """The calibration that a refit replaced last."""
        stored = await served.replaced_calibration(self._key)
        if stored is None:
            raise CalibrationFailed(f"{self._job.model} has no calibration to put back: no refit has replaced one")
        calibration = Calibration.from_json(stored)
        if self._stored is None or not calibration.same_field(self._stored):
            raise CalibrationFailed(f"the calibration of {self._job.model} before is of another noise field")
        self._job = replace(self._job, before=await self._delivered())
        return calibration

    async def _delivered(self) -> dict[str, float]:
        """By level in use, what the calibration in place delivers on live inputs that no refit is solved on."""
        await asyncio.to_thread(self._engine.judge_live)
        return {f"{r.level:g}": round(r.expected.level, 3) for r in self._engine.reports() if r.expected.groups}

    def _progress(self, step: str, share: float) -> None:
        self._job = replace(self._job, step=step, share=share)
        said = (step, int(share * 4))
        if self._job.first and said != self._said:
            self._said = said
            announce(self._job.model, f"calibrating: {step}" + (f", {25 * said[1]} %" if said[1] else ""))
