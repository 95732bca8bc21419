"""An admitted request, as the routers hold it."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from deployments.contracts.catalog import ModelInfo
from deployments.gateway.context import RequestContext
from deployments.gateway.models import Model
from policies.terms import Modulation, Share
from tenants.entitlements import Entitlements
from tenants.lease import Lease, Tokens


@dataclass(frozen=True)
class Cost:
    """What a request may use at most, for admission."""

    images: int = 0
    tokens: Tokens = field(default_factory=Tokens)


@dataclass(frozen=True)
class Ticket:
    """An admitted request: whose it is, the terms it is answered at, and the lease to settle."""

    entitlements: Entitlements
    model: ModelInfo
    modulation: Modulation
    lease: Lease
    remote: Model
    context: RequestContext
    deadline: float

    @property
    def share(self) -> Share:
        """The tenant's flow in the replica's fair queue."""
        return self.entitlements.share()

    async def call(self, method: str, *args: Any) -> Any:
        """Call a method of the model's replica; waits no longer than the request's deadline."""
        started = time.perf_counter()
        try:
            return await self.remote.call(method, *args, self.modulation, self.share, deadline=self.deadline)
        finally:
            self.context.model_seconds += time.perf_counter() - started

    async def stream(self, method: str, *args: Any) -> AsyncGenerator[Any]:
        """Stream from a method of the model's replica; closing the iterator cancels the work."""
        items = self.remote.stream(method, *args, self.modulation, self.share, deadline=self.deadline)
        async with aclosing(items):
            while True:
                started = time.perf_counter()
                try:
                    item = await anext(items, None)
                finally:
                    self.context.model_seconds += time.perf_counter() - started
                if item is None:
                    return
                yield item
