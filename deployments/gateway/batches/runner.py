"""Finds the batches that wait, of all tenants, and works on them: one gateway on each, another after its death."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from contextlib import suppress
from weakref import WeakValueDictionary

from deployments.gateway.batches.lines import Ask
from deployments.gateway.batches.pace import Foreground, Turns
from deployments.gateway.batches.work import Desk, Work
from deployments.gateway.service import Gateway
from policies.errors import Unavailable
from tenants.batches.batches import GONE, HELD, Batches
from tenants.batches.files import Files
from tenants.store import tasks
from tenants.store.store import TenantStore

logger = logging.getLogger("deployments.gateway.batches")

PERIOD_S = 2.0
"""How often gateways look for batches."""
LEASE_S = 15.0
"""After so long without a word of its gateway a batch is another's."""
RENEW_S = 3.0
MOST = 32
"""Batches that a gateway has at a time."""
_MAKING_S = 60
"""A batch is announced before it is entered; after so long it was not."""
_SWEEP_S = 600.0
_LEAVE_S = 10.0


class BatchRunner:
    """The batches of one gateway.

    Attributes:
        files, batches: of all tenants.
        foreground: to be told of the calls that clients wait for.
    """

    def __init__(self, service: Gateway, store: TenantStore) -> None:
        self.files, self.batches, self.foreground = Files(store), Batches(store), Foreground()
        self._service = service
        self._token = secrets.token_hex(8)
        self._turns = Turns(self.foreground, lambda: service.settings.now.batch_at_once)
        self._orders: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._working: dict[tuple[str, str], tuple[Work, asyncio.Task[None]]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._wake = asyncio.Event()
        self._uploads: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def start(self, ask: Ask) -> None:
        """Begin to look. `ask` makes the requests of lines."""
        desk = Desk(self._service, self.files, self.batches, self._turns, ask, self._token)
        calls = {"batches": self._look_often(desk), "batch-files": self._sweep()}
        self._tasks = [asyncio.create_task(call, name=name) for name, call in calls.items()]

    def uploading(self, tenant: str) -> asyncio.Lock:
        """To be held while a tenant's file is stored: what room there is, is asked before."""
        return self._uploads.setdefault(tenant, asyncio.Lock())

    def look(self) -> None:
        """There may be a new batch."""
        self._wake.set()

    async def aclose(self) -> None:
        """End after the lines that are under way, within `_LEAVE_S`, and leave the batches to other gateways."""
        for task in self._tasks:
            await tasks.end(task)
        works = dict(self._working)
        for work, _ in works.values():
            work.leave()
        if works:
            await asyncio.wait([task for _, task in works.values()], timeout=_LEAVE_S)
        for (tenant, batch_id), (_, task) in works.items():
            await tasks.end(task)
            with suppress(Unavailable):
                await self.batches.claim(tenant, batch_id, self._token, 0.0)

    async def _look_often(self, desk: Desk) -> None:
        while True:
            self._wake.clear()
            try:
                await self._look(desk)
            except Unavailable as error:
                logger.debug("no batch is looked for: %s", error)
            except Exception:  # whatever one record holds, the others are to be worked on
                logger.exception("looking for batches failed")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), PERIOD_S)

    async def _look(self, desk: Desk) -> None:
        for tenant, batch_id, made_at in await self.batches.open():
            if (tenant, batch_id) in self._working or len(self._working) >= MOST:
                continue
            status = await self.batches.claim(tenant, batch_id, self._token, LEASE_S)
            if status == GONE:
                if time.time() - made_at > _MAKING_S:
                    await self.batches.forget(tenant, batch_id)
            elif status != HELD:
                self._take(desk, tenant, batch_id)

    def _take(self, desk: Desk, tenant: str, batch_id: str) -> None:
        order = self._orders.setdefault(tenant, asyncio.Lock())
        work = Work(desk, tenant, batch_id, order)
        task = asyncio.create_task(self._work(work, tenant, batch_id), name=f"batch-{batch_id}")
        self._working[tenant, batch_id] = work, task
        task.add_done_callback(lambda _: self._working.pop((tenant, batch_id), None))

    async def _work(self, work: Work, tenant: str, batch_id: str) -> None:
        working = asyncio.create_task(work.run())
        try:
            while not (await asyncio.wait([working], timeout=RENEW_S))[0]:
                with suppress(Unavailable):
                    status = await self.batches.claim(tenant, batch_id, self._token, LEASE_S)
                    if status in (GONE, HELD):
                        return
                    work.told(status)
            await working
        except Exception:
            logger.exception("batch %s failed; it is tried again", batch_id)
            await asyncio.sleep(LEASE_S)
        finally:
            await tasks.end(working)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            with suppress(Unavailable):
                await self.files.sweep()
