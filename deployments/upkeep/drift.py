"""Refits that begin by themselves once a level in use has drifted, where a model's `refit` is `auto`."""

from __future__ import annotations

import asyncio
import time

from deployments.engines.calibrated import CalibratedEngine
from deployments.engines.errors import LoadError
from deployments.engines.live import SHARE
from policies.audit import State, judge
from tenants.changes.edits import AdminError
from tenants.records.fields import iso
from tenants.reports.replicas import ServedModels


class AutoRefit:
    """Asks for a refit on a replica's live rows once they show that a level has drifted; of several replicas one does.

    They are judged by `expected` alone, of which no tenant is more than a fifth where there are five: what one tenant's
    own answers delivered is no drift for the others, and no refit on such a sample could mend it.

    Args:
        engine: the replica's.
        served: where replicas meet.
        key: of the calibration, below `calibration:`.
        replica: the replica's id.

    Attributes:
        note: why a level that drifted is not solved anew now; "" where none has.
    """

    def __init__(self, engine: CalibratedEngine, served: ServedModels, key: str, replica: str) -> None:
        self._engine, self._served, self._key, self._replica = engine, served, key, replica
        self.note = ""

    async def look(self) -> None:
        """Ask where it is time, after the levels have been judged."""
        drifted = [
            f"{report.level:g}"
            for report in self._engine.reports()
            # Below the floor nothing can be delivered, and a refit would not change that.
            if judge(max(report.level, self._engine.floor), report.expected) is State.DRIFTED
        ]
        self.note = await self._why_not() if drifted else ""
        began = f"one for {', '.join(drifted)} began at {iso(time.time())}"
        if not drifted or self.note or not await self._served.take_turn(self._key, began):
            return
        try:
            await self._served.ask_of_itself(self._engine.model_id, self._replica)
        except AdminError as error:  # somebody else is at it
            self.note = str(error)

    async def _why_not(self) -> str:
        why = await self._served.resting(self._key)
        return f"no refit begins by itself yet: {why}" if why else await asyncio.to_thread(self._lacking)

    def _lacking(self) -> str:
        """What a refit that no tenant decides lacks; "" where nothing."""
        try:
            kept = self._engine.live_rows()
        except LoadError as error:
            return f"no refit begins by itself: {error}"
        inputs = kept.capped().inputs
        if inputs >= self._engine.least_live:
            return ""
        return (
            f"no refit begins by itself: it needs rows of {SHARE} tenants, none of them more than a fifth, and"
            f" {self._engine.least_live} inputs in all to solve on; there are {inputs} such, of {kept.tenants} tenants"
        )
