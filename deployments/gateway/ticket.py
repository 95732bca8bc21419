"""An admitted request, as the routers hold it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from deployments.contracts.catalog import ModelInfo
from deployments.gateway.context import RequestContext
from deployments.gateway.models import Model
from policies.terms import Modulation, Share
from tenants.admission import Lease
from tenants.entitlements import Entitlements


@dataclass(frozen=True)
class Cost:
    """What a request may use at most, for admission."""

    images: int = 0
    tokens: int = 0


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
        with self.context.waiting():
            return await self.remote.call(method, *args, self.modulation, self.share, deadline=self.deadline)

    async def stream(self, method: str, *args: Any) -> AsyncGenerator[Any]:
        """Stream from a method of the model's replica; closing the iterator cancels the work."""
        items = self.remote.stream(method, *args, self.modulation, self.share, deadline=self.deadline)
        async with aclosing(items):
            while True:
                with self.context.waiting():
                    item = await anext(items, None)
                if item is None:
                    return
                yield item
