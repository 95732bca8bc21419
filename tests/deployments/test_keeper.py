"""Two replicas' keepers and the `tenants` command on one store: drift is shown, a refit reaches both."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
from typer.testing import CliRunner, Result

from deployments import keeper as module
from deployments.calibrating import InPlace
from deployments.config import REPOSITORY, Task
from deployments.engines.classifier import ImageClassifier
from deployments.keeper import Keeper
from policies.calibration import Calibration
from tenants import tasks
from tenants.cli import app
from tenants.embedded import EmbeddedValkey
from tenants.served import Job, ServedModels
from tenants.store import TenantStore
from tests.deployments.vision_support import SECRET, at, scenes, shipped

MODEL = "resnet18-cifar10"
SPEC = shipped(MODEL, Task.CLASSIFICATION)
Run = Callable[..., Any]


@dataclass
class Access:
    """As `StoreAccess`, without Ray."""

    url: str

    async def connect(self) -> TenantStore:
        return await TenantStore.connect(self.url, timeout_s=5.0)


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    engine = ImageClassifier.load(SPEC)
    sample = engine.calibration_sample(REPOSITORY / "models" / MODEL / "calibration.safetensors")
    return engine.fit(replace(sample, features=sample.features[:1000], logits=sample.logits[:1000]), SECRET)


@pytest_asyncio.fixture
async def store(tmp_path: Path) -> AsyncIterator[TenantStore]:
    with EmbeddedValkey(tmp_path / "store") as server:
        async with await TenantStore.connect(server.url, timeout_s=5.0) as connected:
            yield connected


@pytest_asyncio.fixture
async def replicas(
    store: TenantStore, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[list[ImageClassifier]]:
    """The second one has seen nothing."""
    for name, seconds in (("POLL_S", 0.05), ("REPORT_S", 0.2), ("JUDGE_S", 0.2)):
        monkeypatch.setattr(module, name, seconds)
    engines = [ImageClassifier.load(SPEC) for _ in range(2)]
    keepers = []
    for number, engine in enumerate(engines):
        engine.install(calibration, SECRET)
        engine.least_live = 200  # type: ignore[misc]
        access: Any = Access(store.url)
        keepers.append(Keeper(engine, SPEC, access, InPlace("key", 0, SECRET), f"replica-{number}", 1))
    while len((await ServedModels(store).reports()).get(MODEL, [])) < 2:
        await asyncio.sleep(0.05)
    yield engines
    for keeper in keepers:
        await tasks.end(keeper._task)


@pytest.fixture
def invoke(store: TenantStore) -> Run:
    async def run(*words: str) -> Result:
        environment = {"REDIS_URL": store.url, "COLUMNS": "200"}
        return await asyncio.to_thread(lambda: CliRunner().invoke(app, list(words), env=environment))

    return run


def serve(engine: ImageClassifier, images: int) -> None:
    pictures = scenes(images, 32, 32)
    for start in range(0, images, 64):
        batch = pictures[start : start + 64]
        engine.predict(batch, [at(0.7)] * len(batch))


async def said(result: Result) -> str:
    assert result.exit_code == 1 and result.stdout == ""
    assert len(result.stderr.splitlines()) == 1, result.stderr
    return result.stderr


async def test_drift_is_shown_and_a_live_refit_reaches_every_replica(
    replicas: list[ImageClassifier], invoke: Run, store: TenantStore
) -> None:
    assert (await invoke("check")).exit_code == 0
    old = replicas[0].layer.calibration
    path = replicas[0].layer.ladder.matrix(old.position(0.7))
    await asyncio.to_thread(serve, replicas[0], 512)
    while not (await invoke("check")).exit_code:
        await asyncio.sleep(0.1)
    assert "resnet18-cifar10 at 0.7: delivers 0." in (await invoke("check")).stdout
    assert json.loads((await invoke("check", "--json")).stdout)[0]["field"] == "0.7"
    while True:  # reports follow each other
        (level,) = json.loads((await invoke("levels", "--json")).stdout)[MODEL]
        if level["delivered"]["inputs"] == 512:
            break
    assert (level["level"], level["state"]) == (0.7, "drifted")

    done = await invoke("calibrate", MODEL, "--live", "--json")
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert 200 < answer["rows"] < 312 and answer["replicas"] == 2
    assert abs(answer["levels"]["0.7"]["before"] - 0.7) > 0.05
    # Two and a half standard errors of as many rows to judge by.
    assert answer["levels"]["0.7"]["after"] == pytest.approx(0.7, abs=0.1)
    for engine in replicas:
        assert engine.layer.calibration.curve != old.curve
        assert torch.equal(engine.layer.ladder.matrix(old.position(0.7)), path)
    stored = await store.load_calibration("key")
    assert stored is not None and stored["rows"] == answer["rows"]
    entry = json.loads((await invoke("audit", "--json")).stdout)[0]
    assert (entry["action"], entry["subject"]) == ("model calibrate", MODEL)
    assert json.loads(entry["detail"]) == {"source": "live rows"}
    assert (await invoke("check")).exit_code == 0


async def test_mistakes_are_one_line_each(
    replicas: list[ImageClassifier], invoke: Run, store: TenantStore, tmp_path: Path
) -> None:
    assert "No replica serves a model 'none'; those that run: resnet18-cifar10" in await said(
        await invoke("calibrate", "none", "--live")
    )
    assert "live rows of 0 inputs; a refit on them needs 400" in await said(await invoke("calibrate", MODEL, "--live"))
    assert "folder or a text file" in await said(await invoke("calibrate", MODEL))
    assert "folder or a text file" in await said(await invoke("calibrate", MODEL, str(tmp_path), "--live"))
    assert "does not exist on the machine of resnet18-cifar10" in await said(
        await invoke("calibrate", MODEL, str(tmp_path / "none"))
    )
    (tmp_path / "empty").mkdir()
    assert "holds 0" in await said(await invoke("calibrate", MODEL, str(tmp_path / "empty")))
    for key in (f"levels:{MODEL}:odd", "levels:odd"):
        await store.execute("SET", key, '{"model": 3}')
    assert (await invoke("levels")).exit_code == 0
    await ServedModels(store).ask(MODEL, "live", who="Ann")
    other = Job(MODEL, "gone", "live", "Ann")
    await store.execute("SET", f"calibrate:{MODEL}", json.dumps(other.__dict__))
    assert "under way, asked for by Ann" in await said(await invoke("calibrate", MODEL, "--live"))


async def test_a_refit_ends_when_it_is_called_off(
    replicas: list[ImageClassifier], store: TenantStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = replicas[0].fit

    def slow_fit(*arguments: Any, progress: Callable[[float], None], **named: Any) -> Calibration:
        for _ in range(100):
            progress(0.0)
            time.sleep(0.05)
        return fit(*arguments, progress=progress, **named)

    monkeypatch.setattr(replicas[0], "fit", slow_fit)
    served = ServedModels(store)
    await asyncio.to_thread(serve, replicas[0], 512)
    while (await served.reports())[MODEL][0].inputs < 512:
        await asyncio.sleep(0.05)
    old = replicas[0].layer.calibration
    job = await served.ask(MODEL, "live")
    while job.state == "asked":
        await asyncio.sleep(0.01)
        job = await served.job(MODEL) or job
    await served.call_off(job)
    await asyncio.sleep(2.0)
    assert await served.job(MODEL) is None and await served.version("key") == 0
    assert replicas[0].layer.calibration is old
