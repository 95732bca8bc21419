"""How gateways and replicas find the store and the noise secret, and what the embedded store is seeded with."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from deployments.config import AppArgs, ModelArgs, ModelSpec, StoreArgs, Task
from tenants.admin import installation
from tenants.changes.edits import AdminError
from tenants.command.app import app
from tenants.records.schema import RecordError
from tenants.store.embedded import EmbeddedValkey
from tenants.store.store import TenantStore

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's own, at import
    from deployments.app import build_app, build_model
    from deployments.environment import is_embedded, store_url
    from deployments.serving.store import EmbeddedStore, StoreAccess


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REDIS_URL", "AIM_REPLICA_REDIS_URL", "AIM_NOISE_SECRET"):
        monkeypatch.delenv(name, raising=False)


@asynccontextmanager
async def started(args: StoreArgs) -> AsyncIterator[TenantStore]:
    """What a start of the embedded store leaves in it."""
    embedded = EmbeddedStore.__new__(EmbeddedStore)
    try:
        await EmbeddedStore.__init__(embedded, args)
        async with await TenantStore.connect(embedded.url("replica"), timeout_s=5.0) as store:
            yield store
    finally:
        embedded._valkey.stop()


def test_replicas_may_have_a_url_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = StoreArgs(redis_url="redis://file", data_dir=str(tmp_path))
    assert store_url(args) == store_url(args, replica=True) == "redis://file"
    monkeypatch.setenv("REDIS_URL", "redis://gateway@host")
    assert store_url(args) == store_url(args, replica=True) == "redis://gateway@host"
    monkeypatch.setenv("AIM_REPLICA_REDIS_URL", "redis://replica@host")
    assert (store_url(args), store_url(args, replica=True)) == ("redis://gateway@host", "redis://replica@host")


def test_a_store_for_replicas_alone_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = StoreArgs(data_dir=str(tmp_path))
    assert is_embedded(args)
    monkeypatch.setenv("AIM_REPLICA_REDIS_URL", "redis://replica@host")
    with pytest.raises(ValueError, match="REDIS_URL names none for gateways"):
        is_embedded(args)
    monkeypatch.setenv("REDIS_URL", "redis://gateway@host")
    assert not is_embedded(args)


async def test_a_fresh_embedded_store_gets_its_secrets_and_a_later_start_keeps_them(tmp_path: Path) -> None:
    args = StoreArgs(data_dir=str(tmp_path))
    found = []
    for _ in range(2):
        async with started(args) as store:
            found.append(await StoreAccess(None, args, replica=True).noise_secret(store))
    assert len(found[0]) == 64 and found[0] == found[1]


async def test_an_embedded_store_that_has_lost_its_secret_does_not_start(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    args = StoreArgs(data_dir=str(tmp_path))
    async with started(args) as store:
        await store.execute("SET", "calibration:f", "{}")
    with EmbeddedValkey(tmp_path) as server:
        async with await TenantStore.connect(server.url, timeout_s=5.0) as owner:
            await owner.execute("DEL", "secret:noise")
    capfd.readouterr()
    with pytest.raises(AdminError):
        async with started(args):
            pass
    (line,) = [line for line in capfd.readouterr().out.splitlines() if "failed:" in line]
    assert "calibration:f" in line and "tenants init --new-secret" in line and f"--embedded {tmp_path}" in line
    command = ["init", "--new-secret", "--yes", "--embedded", str(tmp_path)]
    done = await asyncio.to_thread(CliRunner().invoke, app, command)
    assert done.exit_code == 0, done.output
    async with started(args) as store:
        assert await installation.noise_secret(store)
    assert "is not the data folder" in CliRunner().invoke(app, [*command[:-1], str(tmp_path / "none")]).stderr


async def test_a_secret_from_outside_is_used_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text("a secret in a file\n")
    args = StoreArgs(data_dir=str(tmp_path / "data"), noise_secret_file=str(tmp_path / "secret"))
    access = StoreAccess(None, args, replica=True)
    async with started(args) as store:
        assert await access.noise_secret(store) == b"a secret in a file"
        monkeypatch.setenv("AIM_NOISE_SECRET", "a secret of the environment")
        assert await access.noise_secret(store) == b"a secret of the environment"
        monkeypatch.delenv("AIM_NOISE_SECRET")
        with pytest.raises(RecordError, match="tenants init"):
            await StoreAccess(None, StoreArgs()).noise_secret(store)


class Elsewhere:
    """The embedded store's handle, seen from another node."""

    def __init__(self) -> None:
        self.node = self.url = self

    async def remote(self, *_: str) -> str:
        return "a node of the cluster"


async def test_an_embedded_store_on_another_node_is_refused_at_once_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("deployments.serving.store.own_node", lambda: "another")
    handle: Any = Elsewhere()
    with pytest.raises(ValueError, match="several nodes; name a store"):
        await StoreAccess(handle, StoreArgs(data_dir=str(tmp_path))).connect()
    (line,) = capfd.readouterr().out.splitlines()
    assert "failed: redis_url: embedded" in line and "REDIS_URL" in line


def test_an_embedded_store_is_refused_where_the_cluster_has_several_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [{"Alive": True}, {"Alive": False}]
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.cluster_resources", dict)
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    model = ModelSpec(id="m", task=Task.CLASSIFICATION, source="torchvision:resnet18")
    store = StoreArgs(data_dir=str(tmp_path))
    build_app(AppArgs(models=(), store=store))
    nodes.append({"Alive": True})
    with pytest.raises(ValueError, match="several nodes"):
        build_app(AppArgs(models=(), store=store))
    with pytest.raises(ValueError, match="several nodes"):
        build_model(ModelArgs(model=model, store=store))
    build_app(AppArgs(models=(), store=StoreArgs(redis_url="redis://host", data_dir=str(tmp_path))))
