import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tenants.metering.admission import Admission
from tenants.metering.journal import Journal
from tenants.store.store import TenantStore
from tests.tenants.conftest import Backend, until
from tests.tenants.requests import attempt, settlement, tenant, total

REPOSITORY = str(Path(__file__).parents[3])
GATEWAY = """
import asyncio, sys
from tenants.metering.admission import Admission
from tenants.store.store import TenantStore
from tests.tenants.requests import attempt, tenant

async def main():
    async with await TenantStore.connect(sys.argv[1]) as store:
        admission = Admission(store, held_dir=sys.argv[2])
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        for _ in range(7):
            assert await attempt(admission, tenant(), images=2)
        print("admitted", flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_usage_that_is_held_survives_a_graceful_end_and_is_booked_once(backend: Backend, tmp_path: Path) -> None:
    async with await TenantStore.connect(backend.url) as store:
        admission = Admission(store, held_dir=tmp_path / "held")
        backend.kill()
        assert all([await attempt(admission, tenant(), images=2) for _ in range(5)])
        await admission.aclose(0.0)
        backend.start()
        await until(lambda: store.servers.problem == "")

        async def booked() -> bool:
            return (await total(store))["requests"] == 5

        for _ in range(2):
            successor = Admission(store, held_dir=tmp_path / "held")
            await successor.start()
            await until(booked)
            await successor.aclose()
        assert (await total(store))["requests"] == 5 and (await total(store))["images"] == 10
        assert not list((tmp_path / "held").iterdir())


async def test_usage_that_a_killed_gateway_held_is_booked_by_the_next(backend: Backend, tmp_path: Path) -> None:
    command = [sys.executable, "-c", GATEWAY, backend.url, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": REPOSITORY}
    gateway = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert gateway.stdin is not None and gateway.stdout is not None
    with gateway.stdin, gateway.stdout:
        assert await asyncio.to_thread(gateway.stdout.readline) == "ready\n"
        backend.kill()
        gateway.stdin.write("go\n")
        gateway.stdin.flush()
        assert await asyncio.to_thread(gateway.stdout.readline) == "admitted\n"
        backend.start()
        async with await TenantStore.connect(backend.url) as store:
            admission = Admission(store, held_dir=tmp_path)
            # Its owner lives: its file is left alone.
            os.kill(gateway.pid, signal.SIGSTOP)
            assert list(Journal(tmp_path).orphans()) == []
            gateway.kill()
            gateway.wait()
            before = (await total(store))["requests"]
            await admission.start()

            async def booked() -> bool:
                return (await total(store))["requests"] == 7

            await until(booked)
            assert before in (0, 7) and (await total(store))["images"] == 14
            await admission.aclose()


def test_a_line_that_was_cut_off_is_left_out_and_the_others_are_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path)
    for i in range(3):
        journal.append(settlement(i))
    (path,) = tmp_path.glob("*.jsonl")
    path.write_bytes(path.read_bytes()[:-20])
    journal.close(keep=True)
    (entries,) = Journal(tmp_path).orphans()
    assert [entry.id for entry in entries] == [f"{i:024x}" for i in range(2)]
    assert "damaged" in caplog.text and not list(tmp_path.iterdir())


def test_it_is_emptied_bounded_and_private(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal(tmp_path / "held", most_lines=5)
    for i in range(9):
        journal.append(settlement(i))
    (path,) = (tmp_path / "held").glob("*.jsonl")
    assert len(path.read_text().splitlines()) == 5 and "full" in caplog.text
    assert path.stat().st_mode & 0o777 == 0o600
    journal.clear()
    assert path.read_bytes() == b""
    journal.append(settlement(1))
    assert len(path.read_text().splitlines()) == 1
    journal.close(keep=False)
    assert not list((tmp_path / "held").iterdir())


def test_a_folder_that_cannot_be_written_is_logged_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "held").write_text("a file")
    Journal(tmp_path / "held").append(settlement(1))
    assert "memory alone" in caplog.text
