import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from policies.errors import Unavailable
from tenants.admin import installation
from tenants.store.embedded import EmbeddedError, EmbeddedValkey, write_private
from tenants.store.store import TenantStore
from tests.tenants.conftest import is_open, until, wait_until_closed

OWNER = """
import sys, time
from tenants.store.embedded import EmbeddedValkey
server = EmbeddedValkey(sys.argv[1])
print(server.pid, flush=True)
time.sleep(600)
"""


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or a zombie where the container's first process reaps none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def owner_process(folder: Path) -> tuple[subprocess.Popen[str], int]:
    """Another process that owns a server on `folder`, and the server's process id."""
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    with owner.stdout as output:
        return owner, int(output.readline())


async def test_it_listens_on_loopback_and_lets_nobody_in_without_the_password(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path / "data") as server:
        async with await TenantStore.connect(server.url, timeout_s=5.0) as store:
            assert await store.execute("CONFIG", "GET", "bind") == [b"bind", b"127.0.0.1"]
        address = server.url.rpartition("@")[2]
        with pytest.raises(Unavailable):
            await TenantStore.connect(f"redis://{address}")
        with pytest.raises(Unavailable):
            await TenantStore.connect(f"redis://:wrong@{address}")
    wait_until_closed(server.url)


async def test_gateways_and_replicas_have_users_of_their_own(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path / "data") as server:
        urls = {user: server.url_of(user) for user in ("gateway", "replica")}
        async with (
            await TenantStore.connect(server.url, timeout_s=5.0) as owner,
            await TenantStore.connect(urls["gateway"], timeout_s=5.0) as gateway,
            await TenantStore.connect(urls["replica"], timeout_s=5.0) as replica,
        ):
            await installation.create_secrets(owner)
            assert await installation.noise_secret(replica) and await installation.receipt_secret(gateway)
            for store, command in (
                (gateway, ("GET", "secret:noise")),
                (gateway, ("SET", "secret:noise", "x")),
                (replica, ("HGETALL", "apikey:x")),
                (replica, ("SET", "secret:noise", "x")),
                (gateway, ("CONFIG", "GET", "requirepass")),
            ):
                with pytest.raises(Unavailable):
                    await store.execute(*command)
    with EmbeddedValkey(tmp_path / "data") as again:
        assert {user: again.url_of(user) for user in urls} == urls
        async with await TenantStore.connect(urls["replica"], timeout_s=5.0) as replica:
            assert await installation.noise_secret(replica)


async def test_folder_and_files_are_its_owners_alone(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path / "data") as server:
        assert mode(tmp_path / "data") == mode(tmp_path / "data" / "valkey") == 0o700
        assert mode(tmp_path / "data" / "store.json") == 0o600
        password = json.loads((tmp_path / "data" / "store.json").read_text())["password"]
        assert len(password) >= 40 and password in server.url
        for path in (tmp_path / "data" / "valkey").rglob("*"):
            assert path.is_dir() or path.suffix in (".aof", ".rdb", ".manifest") or password not in path.read_text()


async def test_a_restart_keeps_url_and_data(tmp_path: Path) -> None:
    server = EmbeddedValkey(tmp_path)
    url = server.url
    async with await TenantStore.connect(url, timeout_s=5.0) as store:
        await store.execute("SET", "k", "v")
    server.stop()
    server.stop()
    with EmbeddedValkey(tmp_path) as again:
        assert again.url == url
        async with await TenantStore.connect(url, timeout_s=5.0) as store:
            assert await store.execute("GET", "k") == b"v"


async def test_a_server_that_was_killed_starts_again_with_its_data(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path) as server:
        async with await TenantStore.connect(server.url, timeout_s=5.0) as store:
            await store.execute("SET", "k", "v")
            pid = server.pid
            os.kill(pid, signal.SIGKILL)
            while server.start().pid == pid:  # until the system has reaped it
                await asyncio.sleep(0.01)

            async def kept() -> bool:
                try:
                    return bool(await store.execute("GET", "k") == b"v")
                except Unavailable:
                    return False

            await until(kept)


async def test_after_its_owner_was_killed_the_next_owner_ends_the_orphan_and_keeps_the_data(tmp_path: Path) -> None:
    owner, orphan = owner_process(tmp_path)
    state = json.loads((tmp_path / "store.json").read_text())
    url = f"redis://default:{state['password']}@127.0.0.1:{state['port']}/0"
    async with await TenantStore.connect(url, timeout_s=5.0) as store:
        await store.execute("SET", "k", "v")
    owner.kill()
    owner.wait()
    assert is_open(url)
    with EmbeddedValkey(tmp_path) as server:
        assert server.url == url and server.pid != orphan
        assert has_ended(orphan)
        async with await TenantStore.connect(url, timeout_s=5.0) as store:
            assert await store.execute("GET", "k") == b"v"


async def test_a_second_owner_is_refused_and_does_not_disturb_the_first(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path) as server:
        pid = server.pid
        with pytest.raises(EmbeddedError, match="in use by another"):
            EmbeddedValkey(tmp_path, wait_s=0.0)
        async with await TenantStore.connect(server.url, timeout_s=5.0) as store:
            info = await store.execute("INFO", "server")
            assert info["process_id"] == pid


async def test_a_port_taken_by_a_stranger_is_left_for_another_which_is_kept(tmp_path: Path) -> None:
    server = EmbeddedValkey(tmp_path)
    url = server.url
    server.stop()
    wait_until_closed(url)
    port = int(url.rsplit(":", 1)[1].split("/")[0])
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        stranger.bind(("127.0.0.1", port))
        stranger.listen()
        with EmbeddedValkey(tmp_path) as moved:
            assert moved.url != url
            async with await TenantStore.connect(moved.url, timeout_s=5.0) as store:
                assert await store.execute("PING")
    with EmbeddedValkey(tmp_path) as again:
        assert again.url == moved.url


async def test_another_deployments_server_on_the_port_is_not_shut_down(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path / "theirs") as theirs:
        (tmp_path / "ours").mkdir()
        write_private(tmp_path / "ours" / "store.json", (tmp_path / "theirs" / "store.json").read_text())
        with EmbeddedValkey(tmp_path / "ours") as ours:
            assert ours.url != theirs.url
            async with await TenantStore.connect(theirs.url, timeout_s=5.0) as store:
                assert await store.execute("PING")


def test_a_damaged_state_file_says_what_to_do_and_lets_go_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "store.json").write_text("{")
    with pytest.raises(EmbeddedError, match="store.json is damaged; remove it"):
        EmbeddedValkey(tmp_path)
    (tmp_path / "store.json").unlink()
    EmbeddedValkey(tmp_path, wait_s=0.0).stop()


def test_starting_twice_keeps_the_server(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path) as server:
        pid = server.pid
        assert server.start().pid == pid
