"""The embedded store's deployment, and how replicas and gateways find their store."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

from ray.serve.handle import DeploymentHandle

from deployments.config import StoreArgs
from deployments.console import announce
from policies.errors import Unavailable
from tenants.embedded import EmbeddedValkey
from tenants.seed import ENV_FILE, read_env, seed_demo
from tenants.store import TenantStore

logger = logging.getLogger("deployments.store")

STARTUP_PATIENCE_S = 600.0
STARTUP_PAUSE_S = 0.5


class EmbeddedStore:
    """Owns a Valkey server on loopback, with its data under `data_dir`, seeded once with demo tenants."""

    async def __init__(self, args: StoreArgs) -> None:
        self._valkey = await asyncio.to_thread(EmbeddedValkey, args.data_dir)
        async with await TenantStore.connect(self._valkey.url) as store:
            demo = await seed_demo(store, args.data_dir, args.public_url)
        # Printed from a worker, so Ray logs it: the place of the keys, never the keys.
        announce("store", f"embedded Valkey is up; demo keys are in {demo}")

    async def check_health(self) -> None:
        """Starts the server again where it has died: Serve itself sees this process only."""
        await asyncio.to_thread(self._valkey.start)

    def url(self) -> str:
        """The server's URL. A secret: it travels by handle, never in arguments, which Ray logs."""
        return self._valkey.url

    def __del__(self) -> None:
        if hasattr(self, "_valkey"):
            self._valkey.stop()


@dataclass(frozen=True)
class StoreAccess:
    """How a deployment finds the store: by the embedded store's handle, or by a URL of its own environment.

    Attributes:
        embedded: handle of `EmbeddedStore`, or None.
        args: `store` of the configuration; the environment's REDIS_URL goes before its `redis_url`.
    """

    embedded: DeploymentHandle | None
    args: StoreArgs

    async def connect(self) -> TenantStore:
        """A connection to the store; waits for one that is away, so that Serve gives a new replica no requests.

        Raises:
            ValueError: the URL is malformed.
            Unavailable: it has not answered for `STARTUP_PATIENCE_S`.
        """
        until = time.monotonic() + STARTUP_PATIENCE_S
        while True:
            try:
                return await self._connect()
            except Unavailable:
                if time.monotonic() > until:
                    raise
                logger.warning("waiting for the tenant store")
                await asyncio.sleep(STARTUP_PAUSE_S)

    async def _connect(self) -> TenantStore:
        if self.embedded is None:
            return await TenantStore.connect(store_url(self.args))
        embedded = self.embedded

        async def locate() -> str:
            # A restarted server may find its port taken, and then listens on another.
            url: str = await embedded.url.remote()
            return url

        return await TenantStore.connect(await locate(), locate=locate)

    async def noise_secret(self, store: TenantStore) -> bytes:
        """The installation's noise secret: from the environment (AIM_NOISE_SECRET), else a file, else the store."""
        if value := os.environ.get("AIM_NOISE_SECRET"):
            return value.encode()
        if self.args.noise_secret_file:
            return Path(self.args.noise_secret_file).expanduser().read_bytes().strip()
        return (await store.noise_secret()).encode()


def store_url(args: StoreArgs) -> str:
    """`embedded`, or the store's URL; the environment's REDIS_URL goes before the configuration.

    A shell that has read `demo.env` exports the embedded store's own URL, which means that store and no other.
    """
    url = os.environ.get("REDIS_URL") or args.redis_url
    demo = read_env(Path(args.data_dir) / ENV_FILE).get("REDIS_URL")
    return args.redis_url if url == demo else url
