"""Three nodes on one machine: gateways and a model spread over them, and what is lost when one of them dies."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from deployments.config import REPOSITORY
from tenants.admin import installation
from tenants.admin.seed import read_env, seed_demo
from tenants.store.embedded import EmbeddedValkey
from tenants.store.store import TenantStore
from tests.e2e.conftest import free_port

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's own, at import
    from ray.cluster_utils import Cluster

# Of the cluster utilities, which leave files and sockets open.
pytestmark = pytest.mark.filterwarnings("ignore")

MODEL, GATEWAY = "resnet18-cifar10", "TenantGateway"
SHIP = (REPOSITORY / "examples" / "ship.jpg").read_bytes()
START_S = 300.0
CLIENTS = 4


def configuration(port: int) -> dict[str, Any]:
    """The shipped one with one model; two of everything, on two nodes."""
    config: dict[str, Any] = yaml.safe_load((REPOSITORY / "serve_config.yaml").read_text())
    config["http_options"]["port"] = port
    (application,) = config["applications"]
    models = [model | {"threads": 1} for model in application["args"]["models"] if model["id"] == MODEL]
    application["args"]["models"] = models
    spread = {"num_replicas": 2, "max_replicas_per_node": 1}
    application["deployments"] = [{"name": name} | spread for name in (GATEWAY, MODEL)]
    return config


def raylet(node: Any) -> psutil.Process:
    """The process that all replicas of a node descend from."""
    (info,) = node.all_processes["raylet"]
    return psutil.Process(info.process.pid)


def replicas(node: Any) -> list[str]:
    """Names of the deployments that have a replica on a node, one each: Ray names a process after its actor."""
    found = []
    for child in raylet(node).children():
        with suppress(psutil.Error):
            title = child.cmdline()[0]
            found += [name for name in (GATEWAY, MODEL) if title.startswith("ray::ServeReplica") and name in title]
    return sorted(found)


def kill(node: Any) -> None:
    """Everything of a node at once, as when its power goes; until then its sockets take requests that are lost."""
    top = raylet(node)
    processes = [top, *top.children(recursive=True)]
    for process in processes:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(processes, timeout=60)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """A store that is none of the application's, in the environment of all nodes; what `demo.env` says."""

    async def seed(url: str) -> None:
        async with await TenantStore.connect(url, timeout_s=5.0) as connected:
            await installation.create_secrets(connected, outside=False, who="test")
            await seed_demo(connected, tmp_path, "")

    with EmbeddedValkey(tmp_path / "store") as valkey:
        asyncio.run(seed(valkey.url))
        monkeypatch.setenv("REDIS_URL", valkey.url)
        monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        yield read_env(tmp_path / "demo.env")


@pytest.fixture
def cluster(store: dict[str, str]) -> Iterator[Cluster]:
    """A head without room for replicas, and two nodes for them."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(2):
            made.add_node(num_cpus=1)
        yield made
    finally:
        made.shutdown()


def serve_run(cluster: Cluster, folder: Path, port: int) -> subprocess.Popen[bytes]:
    """A bare `serve run` of it on the cluster."""
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump(configuration(port)))
    command = [str(Path(sys.executable).parent / "serve"), "run", "--address", cluster.address, str(path)]
    with (folder / "serve.log").open("wb") as log:
        return subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=subprocess.STDOUT)


def test_of_a_node_that_dies_only_what_was_under_way_on_it_is_lost(
    cluster: Cluster, store: dict[str, str], tmp_path: Path
) -> None:
    port = free_port()
    running = serve_run(cluster, tmp_path, port)
    # Level 1.0: which of two new replicas has its lower levels already is not what is tested here.
    base_url, headers = f"http://127.0.0.1:{port}", {"Authorization": f"Bearer {store['GOLD_KEY']}"}
    answers: list[tuple[float, str]] = []
    """When each request began, and "" or what was wrong with its answer."""
    stop = False

    def ready() -> bool:
        with suppress(httpx.HTTPError, ValueError):
            return httpx.get(f"{base_url}/readyz", timeout=5.0).json() == {"status": "ok", "reasons": []}
        return False

    def ask() -> None:
        with httpx.Client(base_url=base_url, headers=headers, timeout=60.0) as client:
            while not stop:
                began = time.monotonic()
                try:
                    answer = client.post(f"/models/{MODEL}", content=SHIP)
                    wrong = "" if answer.status_code == 200 else f"{answer.status_code} {answer.text[:200]}"
                except httpx.HTTPError as error:
                    wrong = repr(error)
                answers.append((began, wrong))

    try:
        one, other = cluster.worker_nodes
        until = time.monotonic() + START_S
        while not (ready() and replicas(one) == replicas(other) == [GATEWAY, MODEL]):
            assert running.poll() is None and time.monotonic() < until, (tmp_path / "serve.log").read_text()[-5000:]
            time.sleep(0.3)
        with ThreadPoolExecutor(CLIENTS) as pool:
            clients = [pool.submit(ask) for _ in range(CLIENTS)]
            time.sleep(2.0)
            kill(one)
            killed = time.monotonic()
            time.sleep(6.0)
            stop = True
            for client in clients:
                client.result()
        lost = [(began - killed, wrong) for began, wrong in answers if wrong]
        # Each client has one request under way at a time: at most that one is lost, and none that began after the node.
        assert len(lost) <= CLIENTS and all(began < 0.0 for began, _ in lost), lost
        assert min(sum(began < killed for began, _ in answers), sum(began > killed for began, _ in answers)) > CLIENTS
        assert replicas(other) == [GATEWAY, MODEL]
    finally:
        running.send_signal(signal.SIGINT)
        running.wait(timeout=120)
