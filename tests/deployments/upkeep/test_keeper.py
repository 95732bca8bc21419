"""Replicas' keepers and the `tenants` command on one store: levels are solved once, drift is shown, refits spread."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
import torch

from deployments.config import REPOSITORY
from deployments.engines.errors import LoadError
from deployments.engines.images.classifier import ImageClassifier
from deployments.upkeep.calibrator import CalibrationFailed
from deployments.upkeep.keeper import Keeper, NotCalibrated
from policies.calibration.calibration import Calibration
from policies.errors import Unavailable
from tenants.reports.jobs import Job
from tenants.reports.replicas import ServedModels
from tenants.store.store import TenantStore
from tests.deployments import upkeep_support as support
from tests.deployments.upkeep_support import MODEL, SPEC, Run, keep, key_of, said, serve, until
from tests.deployments.vision_support import GOLD, at, mistaken, scenes


@pytest_asyncio.fixture
async def replicas(store: TenantStore, solved: Calibration, keepers: list[Keeper]) -> list[ImageClassifier]:
    """Two that find their calibration, a mistaken one, in the store; the second one has seen nothing."""
    engines = [ImageClassifier.load(SPEC) for _ in range(2)]
    await store.save_calibration(key_of(engines[0]), mistaken(solved).to_json())
    for number, engine in enumerate(engines):
        engine.least_live = 200  # type: ignore[misc]
        keepers.append(await keep(engine, store.url, f"replica-{number}"))
    while len((await ServedModels(store).reports()).get(MODEL, [])) < 2:
        await asyncio.sleep(0.05)
    return engines


async def test_four_replicas_that_start_together_calibrate_once_and_serve_level_1_meanwhile(
    store: TenantStore, keepers: list[Keeper], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two of them under another id: the field is the same, and so are its levels."""
    started = support.count_processes(monkeypatch)
    engines = [ImageClassifier.load(SPEC) for _ in range(4)]
    ids = {0: MODEL, 1: "another-id"}
    keepers += await asyncio.gather(
        *(keep(engine, store.url, f"replica-{n}", id=ids[n % 2]) for n, engine in enumerate(engines))
    )
    (picture,) = scenes(1, 32, 32)
    for engine, keeper in zip(engines, keepers, strict=True):
        assert not engine.calibrated and "levels below 1.0 are" in keeper.pending
        assert len(engine.predict([picture], [GOLD])[0]) == 10
        for refused in (at(0.7), at(1.0, cat=0.5)):
            with pytest.raises(Unavailable) as refusal:
                engine.predict([picture], [refused])
            assert refusal.value.code == "levels_pending"
    await until(lambda: all("being solved" in keeper.pending for keeper in keepers))
    assert not any(engine.calibrated for engine in engines)
    await until(lambda: all(engine.calibrated for engine in engines))
    assert not any(keeper.pending for keeper in keepers) and len(engines[3].predict([picture], [at(0.7)])[0]) == 1
    await asyncio.sleep(0.5)
    assert len(started) == 1 and await ServedModels(store).version(key_of(engines[0])) == 1

    later = ImageClassifier.load(SPEC)
    keepers.append(await keep(later, store.url, "replica-4"))
    assert later.calibrated and not keepers[-1].pending
    await asyncio.sleep(0.5)
    assert len(started) == 1
    told = capfd.readouterr().out
    assert "[aim] resnet18-cifar10: levels below 1.0 are served" in told
    assert "[aim] another-id: levels below 1.0 are served" in told and "calibrating: solving levels" in told


async def test_another_replica_takes_over_from_one_that_was_killed(
    store: TenantStore, keepers: list[Keeper], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenants.reports.replicas.JOB_TTL_S", 2)
    code = (
        "import asyncio, sys, tenants.reports.replicas\n"
        "from deployments.engines.images.classifier import ImageClassifier\n"
        "from tests.deployments.upkeep_support import SPEC, keep\n"
        "tenants.reports.replicas.JOB_TTL_S = 2\n"
        "async def main():\n"
        "    await keep(ImageClassifier.load(SPEC), sys.argv[1], 'gone')\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, store.url], cwd=REPOSITORY)
    engine, served = ImageClassifier.load(SPEC), ServedModels(store)
    started = support.count_processes(monkeypatch)
    try:
        while (job := await served.job(key_of(engine))) is None or job.state != "running":
            assert holder.poll() is None
            await asyncio.sleep(0.02)
        assert job.replica == "gone"
        keepers.append(await keep(engine, store.url, "next"))
        await until(lambda: keepers[0].pending)
        assert not started
        await until(lambda: support.calibrators(holder.pid))
        (calibrator,) = support.calibrators(holder.pid)
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    await until(lambda: not support.is_alive(calibrator), 5.0)
    await until(lambda: engine.calibrated)
    assert len(started) == 1 and await served.version(key_of(engine)) == 1


async def test_a_calibration_that_fails_is_named_and_begun_again_after_a_while(
    store: TenantStore, keepers: list[Keeper], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tenants.reports.replicas.RETRY_S", 3)
    started = support.count_processes(monkeypatch)
    engine = ImageClassifier.load(SPEC)
    other = str(REPOSITORY / "models" / "segformer-b0-camvid" / "calibration.safetensors")
    keepers.append(await keep(engine, store.url, "replica", calibration=other))
    await until(lambda: "cannot be solved" in keepers[0].pending)
    assert "was made with other weights" in keepers[0].pending and not engine.calibrated
    (line,) = [line for line in capfd.readouterr().out.splitlines() if "failed:" in line]
    assert line.startswith("[aim] resnet18-cifar10: failed: its levels cannot be solved: ")
    assert len(started) == 1
    await until(lambda: len(started) == 2)
    assert "cannot be solved" not in keepers[0].pending


async def test_mistakes_that_are_seen_without_the_model_are_refused_at_the_start(
    store: TenantStore, tmp_path: Path
) -> None:
    engine = ImageClassifier.load(SPEC)
    (tmp_path / "empty").mkdir()
    for source, kind, says in (
        (None, NotCalibrated, "has no calibration: name a folder"),
        (str(tmp_path / "none"), CalibrationFailed, "does not exist"),
        (str(tmp_path / "empty"), LoadError, "holds 0"),
        (str(REPOSITORY / "pyproject.toml"), LoadError, "is not a calibration sample"),
    ):
        with pytest.raises(kind, match=says) as refused:
            await keep(engine, store.url, "replica", calibration=source)
        assert "\n" not in str(refused.value)
    assert await ServedModels(store).job(key_of(engine)) is None


async def test_the_levels_that_records_sell_are_kept(
    store: TenantStore, solved: Calibration, keepers: list[Keeper], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[set[float]] = []
    engine = ImageClassifier.load(SPEC)
    monkeypatch.setattr(engine, "keep", lambda levels: kept.append(set(levels)))
    await store.save_calibration(key_of(engine), solved.to_json())
    await store.execute("HSET", "tier:free", "utility", "0.7", f"utility:{MODEL}", "0.6")
    keepers.append(await keep(engine, store.url, "replica"))
    await until(lambda: kept == [{0.6}])
    await store.execute("HSET", "tenant:a", "tier", "free", "utility", "0.8")
    await until(lambda: kept[-1] == {0.6, 0.8})


async def test_drift_is_shown_and_a_live_refit_reaches_every_replica(
    replicas: list[ImageClassifier], invoke: Run, store: TenantStore
) -> None:
    assert (await invoke("check")).exit_code == 0
    old = replicas[0].head.calibration
    path = replicas[0].head.matrix_at(old.position(0.7))
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
    assert 200 < answer["answers"] < 312 and answer["replicas"] == 2
    assert abs(answer["levels"]["0.7"]["before"] - 0.7) > 0.05
    # Two and a half standard errors of as many rows to judge by.
    assert answer["levels"]["0.7"]["after"] == pytest.approx(0.7, abs=0.1)
    for engine in replicas:
        assert engine.head.calibration.curve != old.curve
        assert torch.equal(engine.head.matrix_at(old.position(0.7)), path)
    stored = await store.load_calibration(key_of(replicas[0]))
    assert stored is not None and stored["answers"] == answer["answers"]
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


async def test_what_has_no_levels_yet_is_not_calibrated_anew(
    store: TenantStore, keepers: list[Keeper], invoke: Run
) -> None:
    engine = ImageClassifier.load(SPEC)
    held = Job(MODEL, "another", "sample", "first start", state="running", step="solving levels", first=key_of(engine))
    await ServedModels(store).claim(replace(held, share=0.4))
    keepers.append(await keep(engine, store.url, "replica"))
    while MODEL not in await ServedModels(store).reports():
        await asyncio.sleep(0.05)
    assert keepers[0].pending == "levels below 1.0 are being solved (solving levels, 40%)"
    told = await said(await invoke("calibrate", MODEL, "--live"))
    assert "cannot be calibrated anew yet: levels below 1.0 are being solved" in told


async def test_a_refit_ends_when_it_is_called_off(replicas: list[ImageClassifier], store: TenantStore) -> None:
    served = ServedModels(store)
    old = replicas[0].head.calibration
    job = await served.ask(MODEL, str(support.SAMPLE))
    await until(lambda: support.calibrators(os.getpid()))
    (process,) = support.calibrators(os.getpid())
    await served.call_off(job)
    await until(lambda: not support.is_alive(process), 5.0)
    await asyncio.sleep(0.2)
    assert await served.job(MODEL) is None and await served.version(key_of(replicas[0])) == 0
    assert replicas[0].head.calibration is old
