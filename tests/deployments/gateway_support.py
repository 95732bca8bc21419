"""A gateway of no model, its store, and an HTTP client of it: shared by the tests of what a gateway answers."""

from __future__ import annotations

import warnings
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from typing import Any

import httpx

from deployments.config import AppArgs
from deployments.contracts.catalog import ModelInfo
from deployments.contracts.spending import Spent
from tenants.admin.admin import TenantAdmin
from tenants.store.embedded import EmbeddedValkey

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's own, at import
    from deployments.serving.ingress import TenantGateway
    from deployments.serving.store import StoreAccess


class LocalGateway(TenantGateway):
    """Outside Serve nobody awaits its destructor; the fixture calls it."""

    def __del__(self) -> None:  # type: ignore[override]
        pass


class Scripted:
    """Models that answer as a test says, in the place of a gateway's fleet.

    Args:
        answer: what every call answers, given its words; an exception is raised.
        pieces: what every stream yields.
    """

    def __init__(self, answer: Callable[..., Any] = lambda *_: [], pieces: Sequence[Any] = ()) -> None:
        self.infos: dict[str, ModelInfo] = {}
        self.waking: list[str] = []
        self.visiting: list[str] = []
        self.deadlines: list[float] = []
        self.cut: dict[str, Spent] = {}
        self._answer, self._pieces = answer, pieces

    def add(self, info: ModelInfo) -> None:
        """Let a model be ready."""
        self.infos[info.id] = info

    def known(self) -> Collection[str]:
        return [*self.infos, *self.waking, *self.visiting]

    def starting(self, *, own: bool) -> list[str]:
        return self.waking if own else self.visiting

    def model(self, model_id: str) -> Scripted:
        return self

    async def call(self, method: str, *args: Any, deadline: float) -> Any:
        self.deadlines.append(deadline)
        answer = self._answer(method, *args)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def spent(self, call: str) -> Spent | None:
        return self.cut.get(call)

    async def stream(self, method: str, *args: Any, deadline: float) -> AsyncGenerator[Any]:
        self.deadlines.append(deadline)
        for piece in self._pieces:
            yield piece


class Running:
    """A gateway of no model, its store, and an HTTP client of it."""

    def __init__(self, valkey: EmbeddedValkey, gateway: TenantGateway, admin: TenantAdmin, args: AppArgs) -> None:
        self.valkey, self.gateway, self.admin, self.args = valkey, gateway, admin, args
        self.app = gateway.__serve_build_asgi_app__()
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://gateway")

    async def key(self, **limits: str) -> dict[str, str]:
        """Headers with a new key of the tenant."""
        return {"authorization": f"Bearer {(await self.admin.create_key('acme', limits=limits))[0]}"}


async def opened(args: AppArgs) -> LocalGateway:
    """A gateway of no model, as a replica makes it."""
    gateway = LocalGateway.__new__(LocalGateway)
    await TenantGateway.__init__(gateway, args, {}, StoreAccess(None, args.store))
    return gateway
