"""Events sent to a billing system: each batch until it is taken, and what was taken remembered in a file."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import httpx

from tenants.metering import delivery
from tenants.metering.events import Event
from tenants.metering.formats import cloud_event, form, stripe_events

BATCH = 100
ATTEMPTS = 8
Placed = tuple[str, Event]
"""An event behind its place in its tenant's stream, "" where that is not asked for."""


class Places:
    """The place up to which each tenant's events were taken, in a file that is replaced whole.

    Raises ValueError where the file holds something else.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.seen: dict[str, str] = {}
        if path is not None and path.exists():
            try:
                found = json.loads(path.read_text())
                self.seen = {str(tenant): str(place) for tenant, place in found["places"].items()}
            except (ValueError, KeyError, AttributeError, TypeError):
                raise ValueError(f"{path} is no file of places that an export wrote") from None

    def take(self, batch: Sequence[Placed]) -> None:
        """Remember that these were taken."""
        self.seen.update({event.tenant: place for place, event in batch if place})
        if self._path is None:
            return
        beside = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        with beside.open("w") as file:
            json.dump({"places": self.seen}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, self._path)


class Target(Protocol):
    """A billing system."""

    async def send(self, events: Sequence[Event]) -> None:
        """Send until they are taken. Raises delivery.Refused, delivery.Undelivered."""


class CloudEvents:
    """Takes CloudEvents in JSON, a batch a request: OpenMeter's `/api/v1/events` and others."""

    def __init__(self, http: httpx.AsyncClient, url: str, token: str, source: str) -> None:
        self._http, self._url, self._source = http, url, source
        self._headers = {"Content-Type": "application/cloudevents-batch+json", **_authorization(token)}

    async def send(self, events: Sequence[Event]) -> None:
        content = json.dumps([cloud_event(event, self._source) for event in events]).encode()
        await delivery.post_until_taken(self._http, self._url, content, self._headers, attempts=ATTEMPTS)


class Stripe:
    """Stripe's meter events, `/v1/billing/meter_events`, or a server that takes the same."""

    def __init__(
        self, http: httpx.AsyncClient, url: str, token: str, customers: Mapping[str, str], prefix: str
    ) -> None:
        self._http, self._url, self._customers, self._prefix = http, url, customers, prefix
        self._headers = {"Content-Type": "application/x-www-form-urlencoded", **_authorization(token)}

    async def send(self, events: Sequence[Event]) -> None:
        for event in events:
            if event.tenant not in self._customers:
                raise delivery.Refused(f"the tenant '{event.tenant}' has no customer of Stripe; name it in --customers")
            for number, fields in stripe_events(event, self._customers, self._prefix):
                headers = {**self._headers, "Idempotency-Key": number}
                await delivery.post_until_taken(self._http, self._url, form(fields), headers, attempts=ATTEMPTS)


async def send(events: AsyncIterator[Placed], target: Target, places: Places) -> int:
    """Send all of them, in batches; how many. What was taken is remembered batch by batch.

    Who is killed between a batch and its memory sends that batch again, with the same ids.
    """
    count, batch = 0, list[Placed]()
    async for placed in events:
        batch.append(placed)
        if len(batch) == BATCH:
            count += await _flush(batch, target, places)
    return count + await _flush(batch, target, places)


async def _flush(batch: list[Placed], target: Target, places: Places) -> int:
    if not batch:
        return 0
    await target.send([event for _, event in batch])
    places.take(batch)
    sent = len(batch)
    batch.clear()
    return sent


def _authorization(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"} if token else {}
