"""Refits that begin by themselves once a level has drifted, what holds them back, and how one is put back."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import pytest_asyncio
import torch

from deployments.config import Refit
from deployments.engines.images.classifier import ImageClassifier
from deployments.upkeep.calibrator import CalibrationFailed, Calibrator
from deployments.upkeep.keeper import Keeper
from policies.calibration.calibration import Calibration
from tenants.reports.replicas import ServedModels
from tenants.store.store import TenantStore
from tests.deployments.upkeep_support import MODEL, SPEC, Run, keep, key_of, said, serve
from tests.deployments.vision_support import mistaken


@pytest_asyncio.fixture
async def tended(store: TenantStore, solved: Calibration, keepers: list[Keeper]) -> ImageClassifier:
    """One whose refits begin by themselves."""
    engine = ImageClassifier.load(SPEC)
    engine.least_live = 200  # type: ignore[misc]
    await store.save_calibration(key_of(engine), mistaken(solved).to_json())
    keepers.append(await keep(engine, store.url, "replica", refit=Refit.AUTO))
    return engine


async def changes(invoke: Run) -> list[tuple[str, str, str]]:
    entries = json.loads((await invoke("audit", "--json")).stdout)
    return [(entry["who"], entry["action"], json.loads(entry["detail"])["source"]) for entry in entries]


async def test_levels_that_drift_are_solved_anew_by_themselves_once_and_can_be_put_back(
    tended: ImageClassifier, invoke: Run, store: TenantStore
) -> None:
    old, served, key = tended.head.calibration, ServedModels(store), key_of(tended)
    path = tended.head.matrix_at(old.position(0.7))
    await asyncio.to_thread(serve, tended, 640, 8)
    while await served.version(key) == 0:
        await asyncio.sleep(0.1)
    while (await served.job(MODEL)) is None or (await served.job(MODEL)).state != "done":  # type: ignore[union-attr]
        await asyncio.sleep(0.05)
    assert await changes(invoke) == [("auto", "model calibrate", "live rows")]
    refit = tended.head.calibration
    job = await served.job(MODEL)
    assert job is not None and (job.tenants, job.left_out, job.capped) == (8, 0, True)
    assert refit.curve != old.curve and (refit.favour_gap, refit.avoid_gap) == (old.favour_gap, old.avoid_gap)
    assert torch.equal(tended.head.matrix_at(old.position(0.7)), path)
    assert job.after["0.7"] == pytest.approx(0.7, abs=0.1) and abs(job.before["0.7"] - 0.7) > 0.05
    assert "levels were solved anew" in await served.resting(key)

    await store.execute("DEL", f"calibrate:{key}:rest")
    undone = json.loads((await invoke("calibrate", MODEL, "--undo", "--json")).stdout)
    assert undone["source"] == "before" and undone["replicas"] == 1
    assert tended.head.calibration == old and await served.version(key) == 2
    assert abs(undone["levels"]["0.7"]["after"] - 0.7) > 0.05
    assert (await changes(invoke))[0][1:] == ("model calibrate", "the calibration before")
    # The level has drifted again, and is left alone for a day.
    await asyncio.to_thread(serve, tended, 64, 8)
    while "left alone for a day" not in (shown := await invoke("levels")).stdout:
        await asyncio.sleep(0.1)
    assert f"{MODEL}: no refit begins by itself yet: " in shown.stdout
    checked = await invoke("check")
    assert checked.exit_code == 1 and "left alone for a day" in checked.stdout
    assert await store.execute("TTL", f"calibrate:{key}:rest") > 80_000
    assert len(await changes(invoke)) == 2 and await served.version(key) == 2


async def test_of_the_inputs_of_two_tenants_no_refit_begins_by_itself(
    tended: ImageClassifier, invoke: Run, store: TenantStore
) -> None:
    await asyncio.to_thread(serve, tended, 512, 2)
    while "it needs rows of 5 tenants" not in (shown := await invoke("levels")).stdout:
        await asyncio.sleep(0.1)
    assert "of 2 tenants" in shown.stdout and await changes(invoke) == []
    asked = await invoke("calibrate", MODEL, "--live")
    assert "answers of 2 tenants (too few to bound what one of them moves); 1 replica has it." in asked.stdout


async def test_a_refit_that_failed_by_itself_says_why_and_waits(
    tended: ImageClassifier, invoke: Run, store: TenantStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    async def refuse(*_: Any, strict: bool, **__: Any) -> None:
        asked.append(strict)
        raise CalibrationFailed("two tenants' live inputs")

    monkeypatch.setattr(Calibrator, "refit", refuse)
    await asyncio.to_thread(serve, tended, 640, 8)
    while "failed: two tenants" not in (shown := await invoke("levels")).stdout:
        await asyncio.sleep(0.1)
    assert "no refit begins by itself yet: the last, at 20" in shown.stdout
    assert "failed: two tenants' live inputs" in (await invoke("check")).stdout
    assert asked == [True] and await changes(invoke) == [("auto", "model calibrate", "live rows")]


async def test_a_model_without_live_refits_keeps_nothing_to_solve_on_and_has_nothing_to_put_back(
    store: TenantStore, solved: Calibration, keepers: list[Keeper], invoke: Run
) -> None:
    engine = ImageClassifier.load(SPEC.model_copy(update={"refit": Refit.OFF}))
    await store.save_calibration(key_of(engine), mistaken(solved).to_json())
    keepers.append(await keep(engine, store.url, "replica", refit=Refit.OFF))
    await asyncio.to_thread(serve, engine, 512, 8)
    assert not len(engine.live.kept().solved().rows) and 200 < engine.live.inputs < 312
    while (await invoke("check")).exit_code == 0:
        await asyncio.sleep(0.1)
    assert "keeps no live rows to refit on: its `refit` is off" in await said(
        await invoke("calibrate", MODEL, "--live")
    )
    assert "has no calibration to put back" in await said(await invoke("calibrate", MODEL, "--undo"))
