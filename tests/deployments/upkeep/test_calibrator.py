"""Levels solved in a process of their own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deployments.config import REPOSITORY
from deployments.engines.errors import LoadError
from deployments.engines.images.classifier import ImageClassifier
from deployments.upkeep.calibrator import CalibrationFailed, Calibrator, check_source, pack
from tests.deployments.upkeep_support import SAMPLE, SPEC, calibrators, is_alive, serve, solve, until
from tests.deployments.vision_support import SECRET, scenes

CALIBRATOR = Calibrator(SPEC, SECRET, threads=1)


async def test_the_bundled_sample_gives_what_it_gives_in_this_process() -> None:
    engine = ImageClassifier.load(SPEC)
    told: list[tuple[str, float]] = []
    solved = await CALIBRATOR.solve(str(SAMPLE), lambda step, share: told.append((step, share)))
    own = engine.fit(engine.calibration_sample(SAMPLE), SECRET)
    assert solved.answers == own.answers == 4000 and solved.same_field(own)
    assert [value for _, value in solved.curve] == pytest.approx([value for _, value in own.curve], abs=0.001)
    assert told[0] == ("loading the model", 0.0) and told[-1][0] == "solving levels"


async def test_a_folder_of_pictures_moves_the_levels_along_the_same_noise(tmp_path: Path) -> None:
    stored = solve(500)
    for number, picture in enumerate(scenes(120, 32, 32)):
        picture.save(tmp_path / f"{number}.png")
    told: list[tuple[str, float]] = []
    refit = await CALIBRATOR.solve(str(tmp_path), lambda step, share: told.append((step, share)), stored=stored)
    assert refit.answers == 120 and refit.curve != stored.curve and refit.same_field(stored)
    assert [step for step, _ in told][0] == "loading the model" and "reading images" in dict(told)


async def test_live_rows_give_what_they_give_in_the_replica() -> None:
    engine, stored = ImageClassifier.load(SPEC), solve(500)
    engine.install(stored, SECRET)
    with pytest.raises(LoadError, match="has live rows of 0 inputs; a refit on them needs 1000"):
        pack(engine)
    serve(engine, 1100)
    own = engine.fit(engine.sample_of(engine.live_rows())[0], SECRET, stored=stored)
    told = await CALIBRATOR.refit(pack(engine), lambda *_: None, stored=stored, levels=[0.7], least=500, strict=False)
    refit = told.calibration
    assert (told.tenants, told.left_out, told.capped) == (1, 0, False)
    assert refit.answers == own.answers > 500 and refit.same_field(own)
    assert [value for _, value in refit.curve] == pytest.approx([value for _, value in own.curve], abs=0.002)


async def test_a_file_that_is_no_sample_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no sample")
    with pytest.raises(CalibrationFailed) as refused:
        await CALIBRATOR.solve(str(tmp_path / "notes.txt"), lambda *_: None)
    assert "notes.txt" in str(refused.value) and "\n" not in str(refused.value)
    with pytest.raises(LoadError, match=r"notes\.txt"):
        check_source(str(tmp_path / "notes.txt"), SPEC)


async def test_one_that_is_called_off_ends_its_process() -> None:
    solving = asyncio.create_task(CALIBRATOR.solve(str(SAMPLE), lambda *_: None))
    await until(lambda: calibrators(os.getpid()))
    (child,) = calibrators(os.getpid())
    solving.cancel()
    await asyncio.wait({solving}, timeout=5.0)
    assert solving.cancelled() and not is_alive(child)


async def test_the_process_ends_with_the_replica_that_started_it() -> None:
    """Killed, as the machine kills what takes too much memory."""
    code = (
        "import asyncio, json, sys; from deployments.config import ModelSpec\n"
        "from deployments.upkeep.calibrator import Calibrator\n"
        "spec, path = json.loads(sys.argv[1]), sys.argv[2]\n"
        "made = Calibrator(ModelSpec.model_validate(spec), b'secret', 1)\n"
        "asyncio.run(made.solve(path, lambda step, share: print(step, flush=True)))\n"
    )
    words = [sys.executable, "-c", code, json.dumps(SPEC.model_dump(mode="json")), str(SAMPLE)]
    replica = subprocess.Popen(words, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert replica.stdout is not None
    try:
        assert await asyncio.to_thread(replica.stdout.readline) == "loading the model\n"
        (child,) = calibrators(replica.pid)
        assert os.getpriority(os.PRIO_PROCESS, child) >= 10
    finally:
        replica.send_signal(signal.SIGKILL)
        replica.wait()
        replica.stdout.close()
    await until(lambda: not is_alive(child), 5.0)
