"""Real servers for the tests: Valkey as this project embeds it, and Debian's redis-server where it is installed.

Also the cache, the `tenants` command and what else several files of tests share.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from inspect import isawaitable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from typer.testing import CliRunner, Result

from policies.errors import NotEntitled, Unauthenticated
from tenants.admin import installation
from tenants.admin.admin import TenantAdmin
from tenants.command.app import app
from tenants.live.cache import EntitlementCache
from tenants.metering.admission import Admission
from tenants.store.embedded import EmbeddedValkey
from tenants.store.store import TenantStore

REPOSITORY = str(Path(__file__).parents[2])
Run = Callable[..., Any]
BACKENDS = ["valkey", *(["redis"] if shutil.which("redis-server") else [])]


class Valkey:
    """The embedded server, which a test may kill and start again."""

    def __init__(self, folder: Path) -> None:
        self._server = EmbeddedValkey(folder)
        self.url = self._server.url

    @property
    def pid(self) -> int:
        return self._server.pid

    def kill(self) -> None:
        process = self._server._server._process
        process.kill()
        # Its port closes a moment before it has ended, and until it has, `start` takes it for running.
        process.wait()

    def start(self) -> None:
        self._server.start()

    def stop(self) -> None:
        self._server.stop()


class Redis:
    """Debian's redis-server, likewise."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        password = secrets.token_hex(16)
        self.url = f"redis://:{password}@127.0.0.1:{port}/0"
        options = {
            "port": port,
            "dir": folder,
            "requirepass": password,
            "appendonly": "yes",
            "save": "",
            "bind": "127.0.0.1",
        }
        self._command = [
            "redis-server",
            *(part for name, value in options.items() for part in (f"--{name}", str(value))),
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while not is_open(self.url):
            assert time.monotonic() < deadline, "redis-server did not start"
            time.sleep(0.02)

    def stop(self) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait()


Backend = Valkey | Redis


def is_open(url: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(url.rsplit(":", 1)[1].split("/")[0]))) == 0


def wait_until_closed(url: str) -> None:
    deadline = time.monotonic() + 30
    while is_open(url):
        assert time.monotonic() < deadline, "the server did not end"
        time.sleep(0.01)


def launch(kind: str, folder: Path) -> Backend:
    return Valkey(folder) if kind == "valkey" else Redis(folder)


@pytest.fixture(scope="session", params=BACKENDS)
def shared_backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    backend = launch(request.param, tmp_path_factory.mktemp("store"))
    yield backend
    backend.stop()


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    """A server of one test's own, to kill."""
    own = launch(request.param, tmp_path / "own")
    yield own
    own.stop()


@pytest_asyncio.fixture
async def store(shared_backend: Backend) -> AsyncIterator[TenantStore]:
    # These tests are not about a store that is slow, and a busy machine may be.
    async with await TenantStore.connect(shared_backend.url, timeout_s=5.0) as connected:
        await connected.execute("FLUSHALL")
        await installation.mark(connected)
        yield connected


@pytest.fixture
def admin(store: TenantStore) -> TenantAdmin:
    return TenantAdmin(store, who="tester")


@pytest_asyncio.fixture
async def cache(store: TenantStore) -> AsyncIterator[EntitlementCache]:
    started = EntitlementCache(store, ttl_s=60.0)
    await started.start()
    yield started
    await started.aclose()


@pytest_asyncio.fixture
async def admission(store: TenantStore) -> AsyncIterator[Admission]:
    opened = Admission(store)
    yield opened
    await opened.aclose()


@pytest.fixture
def invoke(store: TenantStore) -> Run:
    """Run the command in a thread, since it has an event loop of its own."""

    async def run(*words: str, url: str | None = None) -> Result:
        environment = {"REDIS_URL": store.url if url is None else url, "COLUMNS": "200"}
        return await asyncio.to_thread(lambda: CliRunner().invoke(app, list(words), env=environment))

    return run


@pytest.fixture
def tenants(invoke: Run) -> Run:
    """Run a command that must succeed; its output."""

    async def run(*words: str) -> str:
        result = await invoke(*words)
        assert result.exit_code == 0, result.output
        return str(result.stdout)

    return run


async def prepare(tenants: Run) -> None:
    await tenants("tier", "create", "gold", "utility=1.0", "weight=4")
    await tenants("tier", "create", "silver", "utility=0.9")
    await tenants("create", "acme", "--tier", "silver", "--name", "Acme")


async def populate(admin: TenantAdmin, tenant: str = "acme", **tenant_fields: str) -> str:
    """A tier `silver` and a tenant of it; the secret of a key of the tenant."""
    if "silver" not in await admin.tiers():
        await admin.create_tier("silver", {"utility": "0.9"})
    await admin.create_tenant(tenant, tier="silver", fields=tenant_fields)
    return (await admin.create_key(tenant))[0]


async def refused(cache: EntitlementCache, key: str, code: str) -> bool:
    try:
        await cache.authenticate(key)
    except (Unauthenticated, NotEntitled) as error:
        return error.code == code
    return False


async def until(condition: Callable[[], Awaitable[Any] | Any], seconds: float = 20.0) -> Any:
    """Wait until `condition` is true, asking again and again; what it answered."""
    deadline = time.monotonic() + seconds
    while True:
        answer = condition()
        answer = await answer if isawaitable(answer) else answer
        if answer:
            return answer
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.01)
