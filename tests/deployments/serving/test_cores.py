import os
from pathlib import Path

import pytest

from deployments.serving.cores import Threads, usable_cores


@pytest.mark.parametrize(
    ("said", "cores"), [("max 100000", 64), ("250000 100000", 3), ("50000 100000", 1), ("odd", 64)]
)
def test_cores_are_those_of_the_container_and_of_the_affinity(
    said: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    (tmp_path / "cpu.max").write_text(said + "\n")
    assert usable_cores(tmp_path) == cores
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    assert usable_cores(tmp_path) == min(2, cores)


def test_the_older_control_groups_are_read_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert usable_cores(tmp_path) == 64
    (tmp_path / "cpu").mkdir()
    for name, value in (("quota", "200000"), ("period", "100000")):
        (tmp_path / "cpu" / f"cpu.cfs_{name}_us").write_text(value)
    assert usable_cores(tmp_path) == 2


def test_models_share_the_cores_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.serving.cores.usable_cores", lambda: 8)
    assert [Threads(None, 3).count(), Threads(None, 16).count(), Threads(5, 3).count()] == [2, 1, 5]
