"""How a process finds the store and the installation's secrets: the environment first, then the configuration."""

from __future__ import annotations

import os
from typing import Protocol

from deployments.config import StoreArgs, resolve_path
from tenants.admin import installation
from tenants.admin.seed import ADMIN_FILE, read_env
from tenants.store.store import TenantStore


class Access(Protocol):
    """The way to the store and its secrets that a part of the application is given."""

    async def connect(self) -> TenantStore:
        """A connection to the store. Raises ValueError, Unavailable."""

    def for_admin(self) -> Access:
        """The way of administration over HTTP, which has a user of the store of its own."""

    async def noise_secret(self, store: TenantStore) -> bytes:
        """As `noise_secret`."""

    async def receipt_secret(self, store: TenantStore) -> bytes:
        """As `receipt_secret`."""


async def noise_secret(args: StoreArgs, store: TenantStore) -> bytes:
    """The installation's noise secret: from the environment (AIM_NOISE_SECRET), else a file, else the store.

    Raises:
        RecordError: the store has none, or a damaged one; the message names the command that makes it.
        OSError: the file cannot be read.
    """
    given = given_noise_secret(args)
    return (await installation.noise_secret(store)).encode() if given is None else given


async def receipt_secret(args: StoreArgs, store: TenantStore) -> bytes:
    """The secret that signs receipts: as the noise secret, from AIM_RECEIPT_SECRET, else a file, else the store."""
    given = _given("AIM_RECEIPT_SECRET", args.receipt_secret_file)
    return (await installation.receipt_secret(store)).encode() if given is None else given


def given_noise_secret(args: StoreArgs) -> bytes | None:
    """The noise secret that the environment or a file gives; None: the store's is used. Raises OSError."""
    return _given("AIM_NOISE_SECRET", args.noise_secret_file)


def _given(variable: str, file: str | None) -> bytes | None:
    if value := os.environ.get(variable):
        return value.encode()
    return resolve_path(file).read_bytes().strip() if file else None


def store_url(args: StoreArgs, *, replica: bool = False) -> str:
    """`embedded`, or the store's URL; the environment goes before the configuration.

    That is REDIS_URL, and for replicas AIM_REPLICA_REDIS_URL before it, in which they have a user of their own. A
    shell that has read `admin.env` exports the embedded store's own URL, which means that store and no other.
    """
    own = os.environ.get("AIM_REPLICA_REDIS_URL") if replica else None
    url = own or os.environ.get("REDIS_URL") or args.redis_url
    return args.redis_url if url in read_env(args.folder / ADMIN_FILE).values() else url


def admin_url() -> str:
    """The store's URL for administration over HTTP. Raises ValueError where the environment has none."""
    url = os.environ.get("AIM_ADMIN_REDIS_URL", "")
    if not url:
        raise ValueError("gateway.admin_api needs the store's URL of its user admin in AIM_ADMIN_REDIS_URL")
    return url


def is_embedded(args: StoreArgs) -> bool:
    """Whether the application has a store of its own.

    Raises:
        ValueError: replicas are given another one, and gateways none.
    """
    embedded = store_url(args) == "embedded"
    if embedded and os.environ.get("AIM_REPLICA_REDIS_URL"):
        raise ValueError("AIM_REPLICA_REDIS_URL names a store for replicas, but REDIS_URL names none for gateways")
    return embedded
