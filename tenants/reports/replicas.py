"""The models that replicas serve now: where replicas and the `tenants` command meet."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

from policies.audit import LevelReport, Tally
from tenants.changes.audit import AuditLog, Entry, models_note
from tenants.changes.edits import AdminError
from tenants.records import keyspace
from tenants.records.fields import iso
from tenants.reports.jobs import AUTO, LIVE, REST_S, SOURCES, Job, read_job
from tenants.store import scripts
from tenants.store.store import TenantStore

REPORT_TTL_S = 20
"""A replica reports every few seconds; what has not for so long is gone."""
JOB_TTL_S = 20
RETRY_S = 120
"""A first calibration that has failed stands in the store for so long, and meanwhile nobody begins another."""
_SWAP = scripts.load("reports/swap")


@dataclass(frozen=True)
class ReplicaReport:
    """What one replica says of its model.

    Attributes:
        model: its id.
        replica: the replica's id.
        calibration: key of the calibration in use, below `calibration:`.
        version: refits of it that the replica has taken.
        inputs: inputs among its live rows.
        levels: every level below 1.0 in use, by rising level.
        field: name of its noise field.
        noise: id of its noise secret, as of `installation.secret_id`.
        note: why a level that drifted is not solved anew by itself now, in a few words.
    """

    model: str
    replica: str
    calibration: str
    version: int
    inputs: int
    levels: tuple[LevelReport, ...] = ()
    field: str = ""
    noise: str = ""
    note: str = ""

    def to_json(self) -> str:
        """One line of JSON."""
        levels = [[r.level, r.delivered.to_list(), r.expected.to_list()] for r in self.levels]
        return json.dumps({**asdict(replace(self, levels=())), "levels": levels})

    @classmethod
    def from_json(cls, text: bytes | str) -> ReplicaReport:
        """Parse what `to_json` wrote. Raises ValueError for anything else."""
        try:
            fields = json.loads(text)
            levels = tuple(
                LevelReport(float(x), Tally.from_list(d), Tally.from_list(e)) for x, d, e in fields["levels"]
            )
            return cls(**{**fields, "levels": levels})
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"not a replica's report: {error!r}") from None


class ServedModels:
    """Where replicas and the `tenants` command meet. Every method raises Unavailable while the store is away."""

    def __init__(self, store: TenantStore) -> None:
        self._store = store

    async def publish(self, report: ReplicaReport) -> None:
        """A replica's word, good for 20 seconds."""
        await self._store.execute(
            "SET", keyspace.levels(report.model, report.replica), report.to_json(), "EX", REPORT_TTL_S
        )

    async def reports(self) -> dict[str, list[ReplicaReport]]:
        """By model, what its replicas say now."""
        keys = sorted({key async for key in self._store.scan(keyspace.LEVELS)})
        answers = await self._store.pipeline([("GET", key) for key in keys]) if keys else []
        found: dict[str, list[ReplicaReport]] = {}
        for answer in answers:
            if isinstance(answer, bytes):
                with suppress(ValueError):  # written by nobody that reports, or by another version
                    report = ReplicaReport.from_json(answer)
                    found.setdefault(report.model, []).append(report)
        return found

    async def look(self, model: str, calibration: str) -> tuple[int, Job | None]:
        """What a replica watches: the version of its calibration, and the refit of its model."""
        keys = (keyspace.calibration_version(calibration), keyspace.calibration_job(model))
        version, job = await self._store.pipeline([("GET", key) for key in keys])
        return int(version or 0), read_job(job)

    async def version(self, calibration: str) -> int:
        """How often a calibration was put in place: 0 or 1 until it is refitted."""
        return int(await self._store.execute("GET", keyspace.calibration_version(calibration)) or 0)

    async def job(self, model: str) -> Job | None:
        """The refit of a model, done or not; or by its calibration's key, the first calibration of it."""
        return read_job(await self._read(keyspace.calibration_job(model)))

    async def claim(self, job: Job, *, again: bool = False) -> Job:
        """Take a first calibration on, unless somebody has: of many that claim it at once, one does.

        It is good for 20 seconds and made so again by each `tell`, so that another can take over from one that is gone.

        Args:
            again: take it on also where it has failed lately.

        Returns:
            `job`, or the one that stands in its place.
        """
        while True:
            read = await self._read(job.key)
            stored = read_job(read)
            if stored and not (again and stored.state == "failed"):
                return stored
            if await self._swap(job.key, read, job):
                return job

    async def follow(self, job: Job) -> Job | None:
        """How far a job of one's own is, also where another one has followed it since; None where it was dropped."""
        stored = await self.job(job.model)
        if stored is None or stored.id != job.id:
            stored = read_job(await self._store.execute("GET", keyspace.calibration_outcome(job.model, job.id)))
        return stored

    async def ask(self, model: str, source: str, who: str | None = None) -> Job:
        """Ask the replica that has seen most inputs for a refit, and note it in the audit stream.

        Of several that ask at once, one is served.

        Args:
            source: as in `Job`.
            who: asks; None: as of `AuditLog`.

        Raises:
            AdminError: no replica serves the model, or a refit of it is under way; the message says whose, and since
                when.
        """
        reports = await self.reports()
        if model not in reports:
            known = f"those that run: {', '.join(sorted(reports))}" if reports else "no model runs now"
            raise AdminError(f"No replica serves a model '{model}'; {known}.")
        chosen = max(reports[model], key=lambda report: (report.inputs, report.replica))
        log = AuditLog(self._store, who)
        job = Job(model, chosen.replica, source, await log.who())
        await self._put(job)
        await log.append(Entry("model calibrate", model, detail=_detail(job)))
        return job

    async def ask_of_itself(self, model: str, replica: str) -> Job:
        """As `ask`, by a replica of itself, on its live rows; noted in the audit stream of the models.

        Raises:
            AdminError: a refit of the model is under way.
        """
        job = Job(model, replica, LIVE, AUTO)
        await self._put(job)
        await self._store.execute(*models_note(job.who, "model calibrate", model, _detail(job)))
        return job

    async def _put(self, job: Job) -> None:
        """Put a refit in its place."""
        while True:
            stored = await self._read(job.key)
            if (other := read_job(stored)) and other.under_way:
                raise AdminError(
                    f"A calibration of {job.model} is under way, asked for by {other.who} at {iso(other.asked_at)}"
                    f" ({other.step}); wait for it."
                )
            if await self._swap(job.key, stored, job):
                break

    async def rest(self, calibration: str, why: str, seconds: int = REST_S) -> None:
        """Let no refit of a calibration begin by itself for so long."""
        await self._store.execute("SET", keyspace.calibration_rest(calibration), why, "EX", seconds)

    async def take_turn(self, calibration: str, why: str) -> bool:
        """As `rest`, unless one rests already: of several replicas one may go on."""
        key = keyspace.calibration_rest(calibration)
        return bool(await self._store.execute("SET", key, why, "NX", "EX", REST_S))

    async def resting(self, calibration: str) -> str:
        """Why no refit of a calibration begins by itself now; "" where one may."""
        stored = await self._read(keyspace.calibration_rest(calibration))
        return stored.decode("utf-8", "replace") if isinstance(stored, bytes) else ""

    async def tell(self, job: Job) -> bool:
        """How far a job is; False where it was called off."""
        if (
            not job.under_way and not job.first
        ):  # before its own place, since from then on another job may take its place
            key = keyspace.calibration_outcome(job.model, job.id)
            await self._store.execute("SET", key, job.to_json(), "EX", JOB_TTL_S)
        return await self._replace(job, job)

    async def call_off(self, job: Job) -> None:
        """End a job that is under way: its replica finds it gone."""
        await self._replace(job, None)

    async def replace_calibration(self, calibration: str, payload: str) -> int:
        """Put a refit in a calibration's place and keep what it replaces; the new version."""
        replaced = await self._read(keyspace.calibration(calibration))
        if replaced is not None and replaced != payload.encode():  # where this is tried again, it is there already
            await self._store.execute("SET", keyspace.calibration_before(calibration), replaced)
        await self._store.execute("SET", keyspace.calibration(calibration), payload)
        return await self._announce(calibration)

    async def replaced_calibration(self, calibration: str) -> str | None:
        """What `replace_calibration` replaced last (JSON), or None."""
        stored = await self._read(keyspace.calibration_before(calibration))
        return stored.decode("utf-8", "replace") if isinstance(stored, bytes) else None

    async def place_calibration(self, calibration: str, payload: str) -> int:
        """Store a first calibration unless one is there, so that all replicas agree; the version of what is there."""
        await self._store.save_calibration(calibration, payload)
        return await self._announce(calibration)

    async def _announce(self, calibration: str) -> int:
        # Replicas look at the version alone, so it follows what it announces.
        return int(await self._store.execute("INCR", keyspace.calibration_version(calibration)))

    async def _read(self, key: str) -> object:
        return await self._store.execute("GET", key)

    async def _swap(self, key: str, read: object, job: Job | None) -> bool:
        """Put a job, or none, in the place of what was read; False where that has changed."""
        lasting = job is not None and job.first and job.state == "failed"
        words = (read or b"", "" if job is None else job.to_json(), RETRY_S if lasting else JOB_TTL_S)
        return bool(await self._store.run(_SWAP, [key], words))

    async def _replace(self, job: Job, by: Job | None) -> bool:
        """Put a later state of a job, or none, in its place; False where it is there no longer."""
        while True:
            read = await self._read(job.key)
            stored = read_job(read)
            if stored is None or stored.id != job.id:
                return False
            if await self._swap(job.key, read, by):
                return True


def _detail(job: Job) -> str:
    return json.dumps({"source": SOURCES.get(job.source, job.source)})
