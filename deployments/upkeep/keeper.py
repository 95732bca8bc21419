"""A task in each replica: it takes what levels the store has, sees to it that they are solved, and reports on them."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from dataclasses import replace

from deployments.config import ModelSpec, Refit, Task, resolve_path
from deployments.contracts.console import announce
from deployments.engines.calibrated import CalibratedEngine
from deployments.environment import Access
from deployments.upkeep.calibrator import Calibrator, check_source
from deployments.upkeep.drift import AutoRefit
from deployments.upkeep.fields import NoiseField, calibration_key
from deployments.upkeep.jobs import Solving
from policies.calibration.calibration import Calibration
from policies.errors import Unavailable
from tenants.admin import installation
from tenants.admin.directory import Directory
from tenants.records.schema import RecordError
from tenants.reports import catalog
from tenants.reports.jobs import Job
from tenants.reports.replicas import ReplicaReport, ServedModels
from tenants.store import tasks
from tenants.store.store import TenantStore

logger = logging.getLogger("deployments.upkeep.keeper")

POLL_S = 1.0
REPORT_S = 5.0
JUDGE_S = 30.0
"""Judging 4,096 pictures takes a tenth of a second, 1,024 decoding steps of a large vocabulary up to two."""
LEVELS_S = 30.0
"""Which levels are sold is read so often; where there are so many tenants that it takes long, a 20th of the time."""
NOT_YET = "levels below 1.0"


class NotCalibrated(Exception):
    """A model without a calibration sample: it is refused rather than sold at levels nobody measured."""


class Keeper:
    """Stays in touch with the store while a replica serves; no request ever waits for it.

    Made by `start`.

    Attributes:
        pending: what the model does not serve yet, in a few words; "" once all its levels are served.
    """

    def __init__(
        self, engine: CalibratedEngine, store: TenantStore, field: NoiseField, calibrator: Calibrator, replica: str
    ) -> None:
        self._engine, self._store, self._calibrator, self._replica = engine, store, calibrator, replica
        self._field, self._key = field, calibration_key(engine, calibrator.secret)
        self._noise = installation.secret_id(calibrator.secret)
        self._served, self._spec = ServedModels(store), calibrator.spec
        auto = self._spec.refit is Refit.AUTO
        self._auto = AutoRefit(engine, self._served, self._key, replica) if auto else None
        self._stored: Calibration | None = None
        self._version, self._unusable = 0, -1
        self._first: Job | None = None
        self._judged = self._reported = self._sold = -max(JUDGE_S, LEVELS_S)
        self._known_job = ""
        self._taking = asyncio.Lock()
        self._work: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls,
        engine: CalibratedEngine,
        spec: ModelSpec,
        access: Access,
        *,
        replica: str,
        threads: int,
        gpu_share: float = 0.0,
    ) -> Keeper:
        """Put the calibration that the store has in place, and keep it up to date from now on.

        Where it has none, the engine serves level 1.0 alone, until this replica or another has had the levels solved.

        Args:
            engine: loaded.
            access: how to find the store.
            replica: this replica's id.
            threads, gpu_share: as of `Calibrator`.

        Raises:
            NotCalibrated: the store has no calibration, and `spec.calibration` names no sample.
            CalibrationFailed, LoadError: as `check_source`, or the model's field is fixed otherwise than configured.
            RecordError, ValueError: what the store has cannot be used, or the noise secret is missing, or not the one
                that the installation's other replicas serve with.
            Unavailable: the store is away.
        """
        store = await access.connect()
        try:
            secret = await access.noise_secret(store)
            await installation.join(store, secret)
            field = NoiseField(engine, spec, secret, store)
            await field.join()
            keeper = cls(engine, store, field, Calibrator(spec, secret, threads, gpu_share), replica)
            await keeper._enter()
            # Before the calibration: one that is replaced in between is then taken again, not missed.
            keeper._version = await keeper._served.version(keeper._key)
            stored = await store.load_calibration(keeper._key)
            if stored is None and (adopted := await field.adopted()) is not None:
                stored = json.loads(await store.save_calibration(keeper._key, adopted.to_json()))
            if stored is not None:
                await keeper._install(stored, keeper._version)
            else:
                await asyncio.to_thread(check_source, _source(spec), spec)
        except BaseException:
            await store.aclose()
            raise
        keeper._task = asyncio.create_task(keeper._run(), name=f"keeper-{spec.id}")
        return keeper

    @property
    def pending(self) -> str:
        if self._engine.calibrated:
            return ""
        job = self._first
        if self._unusable >= 0:
            return f"{NOT_YET} cannot be served: the stored calibration cannot be used, see the replica's log"
        if job is None or job.state == "asked":
            return f"{NOT_YET} are about to be solved"
        if job.state == "failed":
            return f"{NOT_YET} cannot be solved: {job.error}"
        return f"{NOT_YET} are being solved ({job.step}, {job.share:.0%})"

    def check(self) -> None:
        """Raises RuntimeError where the task has ended, so that no refit would reach this replica."""
        if self._task is None or self._task.done():
            raise RuntimeError("the keeper of the calibration has ended")

    async def aclose(self) -> None:
        """End the task, and a calibration that it follows."""
        for task in (self._task, self._work):
            await tasks.end(task)
        await self._store.aclose()

    async def _run(self) -> None:
        while True:
            try:
                await self._once()
            except Unavailable:
                pass  # the store's own client says so, and finds it again
            except Exception:
                logger.exception("model %s: reports and refits pause", self._spec.id)
                await asyncio.sleep(REPORT_S)
            await asyncio.sleep(POLL_S)

    async def _once(self) -> None:
        version, job = await self._served.look(self._spec.id, self._key)
        if version != self._version:
            await self._take(version)
        if not self._engine.calibrated and self._unusable < 0:
            await self._have_solved()
        if job and job.replica == self._replica and job.state == "asked" and job.id != self._known_job:
            self._known_job = job.id
            await self._refit(job)
        if self._engine.calibrated:
            await self._look_after_levels()
        if time.monotonic() - self._reported > REPORT_S:
            await self._report()

    async def _have_solved(self) -> None:
        """See to it that somebody solves the levels: this replica, or the one that has taken the job on."""
        if self._work and not self._work.done():
            self._first = await self._served.job(self._key) or self._first
            return
        job = Job(self._spec.id, self._replica, _source(self._spec), "first start", first=self._key)
        # One that failed before this replica started may have failed of what has been mended since.
        self._first = await self._served.claim(job, again=self._first is None)
        if self._first != job:
            return
        if await self._served.version(self._key) != self._version:  # solved since this replica looked
            await self._served.call_off(job)
        else:
            self._begin(job)

    async def _refit(self, job: Job) -> None:
        if self._engine.calibrated:
            self._begin(job)
        else:
            error = f"{job.model} cannot be calibrated anew yet: {self.pending}"
            await self._served.tell(replace(job, state="failed", error=error))

    def _begin(self, job: Job) -> None:
        solving = Solving(
            self._engine, self._calibrator, self._key, self._field, None if job.first else self._stored, job
        )
        self._work = asyncio.create_task(solving.run(self._served, self._take), name=f"calibration-{job.model}")

    async def _look_after_levels(self) -> None:
        now = time.monotonic()
        if now - self._judged > JUDGE_S:
            await asyncio.to_thread(self._engine.judge_live)
            self._judged = time.monotonic()
            if self._auto:
                await self._auto.look()
        if now > self._sold:
            began = time.monotonic()
            await self._enter()
            sold = await Directory(self._store).levels(self._spec.id)
            await asyncio.to_thread(self._engine.keep, sold)
            self._sold = time.monotonic() + max(LEVELS_S, 20 * (time.monotonic() - began))

    async def _enter(self) -> None:
        """Say what the model's classes are, so that an admin's slip is noticed when it is made."""
        words = self._spec.task is Task.TEXT
        classes = None if words else getattr(self._engine, "classes", ())
        await catalog.enter(self._store, self._spec.id, classes, self._spec.aliases)

    async def _report(self) -> None:
        inputs, levels = await asyncio.to_thread(lambda: self._engine.live.inputs), tuple(self._engine.reports())
        note = self._auto.note if self._auto else ""
        await self._served.publish(
            ReplicaReport(
                self._spec.id,
                self._replica,
                self._key,
                self._version,
                inputs,
                levels,
                self._engine.field,
                self._noise,
                note,
            )  # fmt: skip
        )
        self._reported = time.monotonic()

    async def _take(self, version: int) -> None:
        """Put the calibration that is in the store in place; one that cannot be used leaves the old one."""
        async with self._taking:
            if version in (self._version, self._unusable):
                return
            before, stored = self._engine.calibrated, None
            try:
                stored = await self._store.load_calibration(self._key)
                if stored is None:
                    raise ValueError("it is gone")
                await self._install(stored, version)
            except (RecordError, ValueError) as error:
                logger.error("model %s: the stored calibration cannot be used: %s", self._spec.id, error)
                # One that is gone is made anew; another stays where it is until somebody mends it.
                self._unusable = -1 if stored is None and not before else version
                self._version = version if self._unusable < 0 else self._version
                return
            if not before:
                announce(self._spec.id, f"{NOT_YET} are served")
            self._judged = self._reported = self._sold = -max(JUDGE_S, LEVELS_S)

    async def _install(self, stored: dict[str, object], version: int) -> None:
        calibration = Calibration.from_json(json.dumps(stored))
        # Levels that were solved before the field's record was lost say what the field is.
        if not calibration.same_field(await self._field.fix(calibration)):
            raise ValueError(
                f"it is of another noise than its field '{self._engine.field}' has; delete calibration:{self._key}, and"
                " the levels are solved on that one"
            )
        await asyncio.to_thread(self._engine.install, calibration, self._calibrator.secret)
        self._stored, self._version, self._unusable = calibration, version, -1


def _source(spec: ModelSpec) -> str:
    """What a model is calibrated on first, a path. Raises NotCalibrated."""
    if spec.calibration is None:
        raise NotCalibrated(
            f"model {spec.id} has no calibration: name a folder of images or a text file that it was not trained on"
            " in its `calibration` field"
        )
    return str(resolve_path(spec.calibration))
