"""An admitted request, as the routers hold it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from typing import Any

from deployments.contracts.catalog import ModelInfo
from deployments.contracts.spending import Spent
from deployments.gateway.context import RequestContext
from deployments.gateway.models import Model
from deployments.gateway.waiting import Place
from policies.errors import DeadlineExceeded
from policies.terms import Modulation, Share
from tenants.live.entitlements import Entitlements
from tenants.metering.lease import Lease
from tenants.metering.wanted import Tokens


@dataclass(frozen=True)
class Cost:
    """What a request may use at most, for admission."""

    images: int = 0
    tokens: Tokens = field(default_factory=Tokens)


@dataclass
class Ticket:
    """An admitted request: whose it is, the terms it is answered at, and the lease to settle."""

    entitlements: Entitlements
    model: ModelInfo
    modulation: Modulation
    lease: Lease
    remote: Model
    context: RequestContext
    deadline: float
    place: Place
    """Among those that wait for the model."""
    cut: bool = False
    """A call has begun and has not come to its own end."""
    answered: int = 0
    """Pictures whose answers have come."""

    @property
    def share(self) -> Share:
        """The tenant's flow in the replica's fair queue."""
        return self.entitlements.share()

    async def call(self, method: str, *args: Any) -> Any:
        """Call a method of the model's replica; waits no longer than the request's deadline."""
        with self.context.waiting(), self._to_its_end():
            answer = await self.remote.call(method, *args, *self._terms, deadline=self.deadline)
        self.answered += 1
        self.place.leave()
        return answer

    async def stream(self, method: str, *args: Any) -> AsyncGenerator[Any]:
        """Stream from a method of the model's replica; closing the iterator cancels the work."""
        items = self.remote.stream(method, *args, *self._terms, deadline=self.deadline)
        with self._to_its_end():
            async with aclosing(items):
                while True:
                    with self.context.waiting():
                        item = await anext(items, None)
                    self.place.leave()
                    if item is None:
                        return
                    yield item

    async def book(self) -> None:
        """Where a call was cut short, settle what its replica says that it had used: more than had come here."""
        if not self.cut:
            return
        spent = await self.remote.spent(self.lease.id)
        if spent or self.answered:
            spent = spent or Spent()
            self.lease.settle(
                tokens_in=spent.tokens_in, tokens_out=spent.tokens_out, images=self.answered + spent.images
            )

    @property
    def _terms(self) -> tuple[Modulation, Share, str]:
        """What every call of a replica ends with; by the lease's id a replica knows calls that are cut short."""
        return self.modulation, self.share, self.lease.id

    @contextmanager
    def _to_its_end(self) -> Iterator[None]:
        """Remembers a call that is cut short, by a client that leaves or by the deadline."""
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit, DeadlineExceeded):
            self.cut = True
            raise
