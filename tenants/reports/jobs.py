"""The jobs in which models' levels are solved, as they stand in the store."""

from __future__ import annotations

import json
import secrets
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field

from tenants.records import keyspace

LIVE = "live"
"""The source of a refit on live rows."""
BEFORE = "before"
"""The source of putting the calibration back that a refit replaced; any other is a path on the replica's machine."""
AUTO = "auto"
"""Who asks for refits that begin by themselves."""
REST_S = 1800
"""After a refit, however it ended, none of the same calibration begins by itself for so long: judged on the same live
rows the next would move levels by their sampling error, and one tenant's inputs should not keep a calibrator busy."""
BEFORE_REST_S = 86_400
"""After a calibration was put back: a day, in which an admin can set `refit` to what it shall be."""
SOURCES = {LIVE: "live rows", BEFORE: "the calibration before"}
"""In words, for the audit stream."""


@dataclass(frozen=True)
class Job:
    """One solving of a model's levels: its first calibration, or a refit.

    Attributes:
        model, replica: whose it is.
        source: `live`, `before`, or a path on the replica's machine.
        who: asked for it.
        asked_at: when, in unix seconds by that one's clock.
        state: `asked`, `running`, `done`, `failed` or `cancelled`.
        step, share: what it does now, and how much of that is done, 0 to 1.
        error: why it failed.
        version: of the calibration, once done.
        answers: judged.
        tenants, left_out: live refits only: on how many tenants' rows it was solved, and how many were left out, since
            they moved a level for the others too far.
        capped: whether no tenant had more than a fifth of the rows.
        before, after: live refits only: by level (text), what it delivered on the live rows.
        first: of a first calibration, its key below `calibration:`. Models that share it share the job; "": a refit.
    """

    model: str
    replica: str
    source: str
    who: str
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    state: str = "asked"
    step: str = "waiting for the replica"
    share: float = 0.0
    error: str = ""
    version: int = 0
    answers: int = 0
    tenants: int = 0
    left_out: int = 0
    capped: bool = True
    asked_at: float = field(default_factory=time.time)
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    first: str = ""

    @property
    def key(self) -> str:
        """Where it stands in the store: one at a time of each model, or of each first calibration."""
        return keyspace.calibration_job(self.first or self.model)

    @property
    def under_way(self) -> bool:
        """Whether somebody has it to do."""
        return self.state in ("asked", "running")

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: bytes | str) -> Job:
        """Parse a stored job. Raises ValueError for anything else."""
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError) as error:
            raise ValueError(f"not a calibration job: {error!r}") from None


def read_job(stored: object) -> Job | None:
    """A stored job; what is none counts as none."""
    with suppress(ValueError):
        return Job.from_json(stored) if isinstance(stored, bytes) else None
    return None
