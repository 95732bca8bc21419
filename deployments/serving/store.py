"""The embedded store's deployment, and how replicas and gateways find their store."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from deployments import environment
from deployments.config import StoreArgs
from deployments.contracts.console import FAILED, announce
from policies.errors import Unavailable
from tenants.admin import installation
from tenants.admin.seed import seed_demo
from tenants.changes.edits import AdminError
from tenants.store.connection import SOCKET_TIMEOUT_S
from tenants.store.embedded import EmbeddedValkey
from tenants.store.store import TenantStore

logger = logging.getLogger("deployments.serving.store")

STARTUP_PATIENCE_S = 600.0
STARTUP_PAUSE_S = 0.5
ADMIN_TIMEOUT_S = 5.0
"""A person can wait, and lists are long."""
ONE_NODE = (
    "redis_url: embedded is a store for one machine, but this cluster has several nodes; name a store that all of them"
    ' reach, in REDIS_URL or store.redis_url (docs/operations.md, "Several nodes")'
)


class EmbeddedStore:
    """Owns a Valkey server on loopback, with its data under `data_dir`, seeded once with secrets and demo tenants."""

    async def __init__(self, args: StoreArgs) -> None:  # type: ignore[misc]  # Serve awaits it
        self._valkey = await asyncio.to_thread(EmbeddedValkey, args.folder)
        async with await TenantStore.connect(self._valkey.url) as store:
            try:
                await installation.create_secrets(
                    store, outside=environment.given_noise_secret(args) is not None, who="seed"
                )
            except (AdminError, OSError) as error:
                announce("store", f"{FAILED} {error} Add `--embedded {args.folder}` to the command.")
                raise
            admin_url = self._valkey.url_of("admin")
            demo = await seed_demo(store, args.folder, args.public_url, admin_url=admin_url)
        # Printed from a worker, so Ray logs it: the place of the keys, never the keys.
        announce("store", f"embedded Valkey is up; demo keys are in {demo}")

    async def check_health(self) -> None:
        """Starts the server again where it has died: Serve itself sees this process only."""
        await asyncio.to_thread(self._valkey.start)

    def node(self) -> str:
        """Id of the Ray node on whose loopback the server listens."""
        return own_node()

    def url(self, user: str) -> str:
        """The server's URL for `gateway`, `replica` or `admin`.

        A secret: it travels by handle, never in arguments, which Ray logs.
        """
        return self._valkey.url_of(user)

    def __del__(self) -> None:
        if hasattr(self, "_valkey"):
            self._valkey.stop()


@dataclass(frozen=True)
class StoreAccess:
    """How a deployment finds the store: by the embedded store's handle, or by a URL of its own environment.

    Attributes:
        embedded: handle of `EmbeddedStore`, or None.
        args: `store` of the configuration; the environment's URLs go before its `redis_url`.
        replica: whether it is a replica's, which has a store user of its own.
        admin: whether it is for administration over HTTP, likewise.
        elsewhere: whether the embedded store is another application's, `args.application`.
    """

    embedded: DeploymentHandle[Any] | None
    args: StoreArgs
    replica: bool = False
    elsewhere: bool = False
    admin: bool = False

    async def connect(self) -> TenantStore:
        """A connection to the store; waits for one that is away, so that Serve gives a new replica no requests.

        Raises:
            ValueError: the URL is malformed, or the embedded store is on another node.
            Unavailable: it has not answered for `STARTUP_PATIENCE_S`.
        """
        until = time.monotonic() + STARTUP_PATIENCE_S
        while True:
            try:
                return await self._connect()
            except ValueError as error:
                announce("store", f"{FAILED} {error}")
                raise
            except Unavailable:
                if time.monotonic() > until:
                    raise
                logger.warning("waiting for the tenant store")
                await asyncio.sleep(STARTUP_PAUSE_S)

    async def _connect(self) -> TenantStore:
        if self.embedded is None and not self.elsewhere:
            url = environment.admin_url() if self.admin else environment.store_url(self.args, replica=self.replica)
            return await TenantStore.connect(url, timeout_s=ADMIN_TIMEOUT_S if self.admin else SOCKET_TIMEOUT_S)
        embedded: Any = self.embedded or _of_application(self.args.application)

        if await embedded.node.remote() != own_node():
            raise ValueError(ONE_NODE)

        async def locate() -> str:
            # A restarted server may find its port taken, and then listens on another.
            url: str = await embedded.url.remote("admin" if self.admin else "replica" if self.replica else "gateway")
            return url

        patience = ADMIN_TIMEOUT_S if self.admin else SOCKET_TIMEOUT_S
        return await TenantStore.connect(await locate(), timeout_s=patience, locate=locate)

    def for_admin(self) -> StoreAccess:
        """The same for administration over HTTP."""
        return replace(self, replica=False, admin=True)

    async def noise_secret(self, store: TenantStore) -> bytes:
        """As `environment.noise_secret`."""
        return await environment.noise_secret(self.args, store)

    async def receipt_secret(self, store: TenantStore) -> bytes:
        """As `environment.receipt_secret`."""
        return await environment.receipt_secret(self.args, store)


def _of_application(name: str) -> DeploymentHandle[Any]:
    """The embedded store of another application. Raises Unavailable where that is not there (yet)."""
    try:
        return serve.get_deployment_handle(EmbeddedStore.__name__, app_name=name)
    except RayServeException as error:
        raise Unavailable(f"The application '{name}' has no embedded store: {error}", retry_after=1) from None


def own_node() -> str:
    """Id of the Ray node that this process runs on."""
    node: str = ray.get_runtime_context().get_node_id()
    return node
