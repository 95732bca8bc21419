"""What many tests share: one text engine, which takes long to load and calibrate, OpenAI's client on a script, and a
store with keepers on it."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import openai
import pytest
import pytest_asyncio
import torch
from typer.testing import CliRunner, Result

from deployments.config import AppArgs, StoreArgs
from deployments.engines.text.calibration import BUNDLED
from deployments.engines.text.generator import Generator
from deployments.upkeep.keeper import Keeper
from policies.calibration.calibration import Calibration
from tenants.admin import installation
from tenants.admin.admin import TenantAdmin
from tenants.command.app import app
from tenants.store.embedded import EmbeddedValkey
from tenants.store.store import TenantStore
from tests.deployments.openai_support import Script
from tests.deployments.text_support import SECRET, SPEC
from tests.deployments.upkeep_support import Run, hurry, solve

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's own, at import
    from deployments.gateway.api.api import build_api
    from deployments.serving.ingress import TenantGateway
    from tests.deployments.gateway_support import Running, opened


@pytest.fixture(scope="session")
def calibration(loaded: Generator, tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    """Solved on a part of the bundled text: fewer rows than are served with, by the same code."""
    path = tmp_path_factory.mktemp("text") / "few.txt"
    path.write_text("\n\n".join(BUNDLED.read_text().split("\n\n")[:20]))
    return loaded.fit(loaded.calibration_sample(path), SECRET)


@pytest.fixture(scope="session")
def loaded() -> Generator:
    return Generator.load(SPEC, torch.device("cpu"))


@pytest_asyncio.fixture(scope="session")
async def generator(loaded: Generator, calibration: Calibration) -> AsyncIterator[Generator]:
    loaded.install(calibration, SECRET)
    yield loaded
    loaded.close()


@pytest.fixture
def script() -> Script:
    return Script()


@pytest_asyncio.fixture
async def client(script: Script) -> AsyncIterator[openai.AsyncOpenAI]:
    transport = httpx.ASGITransport(build_api(script))  # type: ignore[arg-type]
    async with openai.AsyncOpenAI(
        base_url="http://gateway/v1", api_key="k", max_retries=0, http_client=httpx.AsyncClient(transport=transport)
    ) as made:
        yield made


@pytest_asyncio.fixture
async def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[TenantStore]:
    """A store of a test's own, on which keepers look and report often."""
    hurry(monkeypatch)
    with EmbeddedValkey(tmp_path / "store") as server:
        async with await TenantStore.connect(server.url, timeout_s=5.0) as connected:
            await installation.mark(connected)
            yield connected


@pytest_asyncio.fixture
async def keepers() -> AsyncIterator[list[Keeper]]:
    """Those that a test starts; they end with it."""
    started: list[Keeper] = []
    yield started
    for keeper in started:
        await keeper.aclose()


@pytest_asyncio.fixture
async def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    monkeypatch.delenv("REDIS_URL", raising=False)
    with EmbeddedValkey(tmp_path / "store") as valkey:
        # No model is served; the specification wants one to be named.
        spec = {"id": "m", "task": "image-classification", "source": "nowhere"}
        args = AppArgs(models=(spec,), store=StoreArgs(redis_url=valkey.url, data_dir=str(tmp_path)))  # type: ignore[arg-type]
        async with await TenantStore.connect(valkey.url, timeout_s=5.0) as store:
            admin = TenantAdmin(store, who="tester")
            await installation.create_secrets(store)
            granted = {"lower_utility": "yes", "focus_max": "0.9"}
            await admin.create_tier("silver", {"utility": "0.9", "rpm": "100", **granted})
            await admin.create_tenant("acme", tier="silver")
            parts = Running(valkey, await opened(args), admin, args)
            yield parts
            await parts.client.aclose()
        await TenantGateway.__del__(parts.gateway)


@pytest.fixture(scope="session")
def solved() -> Calibration:
    """The shipped classifier's levels, on a part of its sample."""
    return solve(1000)


@pytest.fixture
def invoke(store: TenantStore) -> Run:
    """The `tenants` command on that store."""

    async def run(*words: str) -> Result:
        environment = {"REDIS_URL": store.url, "COLUMNS": "200"}
        return await asyncio.to_thread(lambda: CliRunner().invoke(app, list(words), env=environment))

    return run
