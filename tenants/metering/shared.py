"""A request whose limits others share: admitted by its tenant and by each of its projects, or by nobody.

A tenant's counters live in one slot of a Cluster and a project's in another, so that no script sees both. Each is asked
by itself, the tenant first, and each admits exactly; where one refuses, those before it get back all that they gave,
rates too. No limit is ever exceeded; in the moment between, a neighbour may be refused what is about to be given back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import TracebackType

from policies.errors import LimitExceeded
from tenants.live.entitlements import Entitlements
from tenants.metering.lease import Lease
from tenants.metering.wanted import Wanted
from tenants.records import keyspace

RETURN_S = 1.0


def projects_of(own: Entitlements) -> dict[str, Entitlements]:
    """A key as a member of each of its projects: with the project's limits, and counted under its name."""
    alone = replace(own, key_limits=None, model_limits={}, projects={}, key_created_at=None)
    return {name: replace(alone, tenant=keyspace.shared(name), limits=shared) for name, shared in own.projects.items()}


class SharedLease(Lease):
    """As `Lease`, with those of the projects beside the tenant's."""

    __slots__ = ("_entered", "_shares")
    _shares: Mapping[str, Lease]
    _entered: list[Lease]

    def share(self, leases: Mapping[str, Lease]) -> SharedLease:
        """Itself, with the leases of its projects by their ids."""
        self._shares, self._entered = leases, []
        return self

    async def __aenter__(self) -> SharedLease:
        try:
            await self._enter_all()
        finally:
            readings = [*self._judgement.readings]
            readings += [reading for lease in self._shares.values() for reading in lease.readings]
            self._judgement = replace(self._judgement, readings=tuple(readings))
        return self

    async def _enter_all(self) -> None:
        for name, lease in self._shares.items():
            with self._told(name):
                lease.check_refused()  # what is known to be used up costs its tenant nothing
        await super().__aenter__()
        try:
            for name, lease in self._shares.items():
                lease.want(self._left())
                with self._told(name):
                    await lease.__aenter__()
                self._entered.append(lease)
                self.tokens = min(self.tokens, lease.tokens)
                self.become(lease.sold.level, lease.reason)
            cost = min(lease.granted_cost for lease in (self, *self._entered))
            for lease in (self, *self._entered):
                lease.become(self.sold.level, self.reason)
                lease.cost_at_most(cost)
        except BaseException:
            for lease in (*self._entered, self):
                lease.give_back()
            await self._returned()
            raise

    async def _returned(self) -> None:
        """Wait a moment until all is given back: who tries again at once must not be told of what is not used."""
        with suppress(TimeoutError):
            async with asyncio.timeout(RETURN_S):
                for lease in (*self._entered, self):
                    while self._admission.settler.pending(lease.sold.tenant, lease.id):
                        await asyncio.sleep(0.001)

    def _left(self) -> Wanted:
        """What is asked of the next: no more tokens, and no better level, than those before have granted."""
        asked = self._wanted
        tokens = replace(asked.tokens, most=self.tokens, least=min(self.tokens, asked.tokens.least))
        return replace(asked, tokens=tokens, rungs=asked.rungs[self._judgement.rung :])

    @contextmanager
    def _told(self, name: str) -> Iterator[None]:
        """A project's refusal says whose it is, and is one of the tenant's too."""
        try:
            yield
        except LimitExceeded as error:
            self.reject()
            raise LimitExceeded(
                f"{error.message} The limit is shared by the project '{name}'.",
                retry_after=error.retry_after,
                retry_soon=error.retry_soon,
                code=error.code,
            ) from None

    def settle(self, *, tokens_in: int = 0, tokens_out: int = 0, images: int | None = None) -> None:
        """As of `Lease`, for all of them."""
        super().settle(tokens_in=tokens_in, tokens_out=tokens_out, images=images)
        for lease in self._entered:
            lease.settle(tokens_in=tokens_in, tokens_out=tokens_out, images=images)

    def broke(self, error: BaseException) -> None:
        """As of `Lease`, for all of them."""
        super().broke(error)
        for lease in self._entered:
            lease.broke(error)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await super().__aexit__(kind, error, trace)
        for lease in self._entered:
            await lease.__aexit__(kind, error, trace)
