"""What the tenancy benchmarks share: a store of their own, a real `serve run` of two gateways, and counting clients."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

from deployments.launch.command import ENVIRONMENT
from tenants.admin.admin import TenantAdmin
from tenants.store.embedded import EmbeddedValkey
from tenants.store.store import TenantStore

REPOSITORY = Path(__file__).resolve().parent.parent
MODEL = "resnet18-cifar10"
TEXT = "counting"
"""The text model of `benchmarks.tenancy_graph`."""
NOISE_SECRET = "the noise secret of the benchmarks"
TIMEOUT_S = 30.0


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of `values` do not exceed; NaN of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def milliseconds(values: Sequence[float]) -> str:
    """Seconds as 'median / p99 / maximum' in ms."""
    if not values:
        return "none"
    figures = (statistics.median(values), percentile(values, 0.99), max(values))
    return " / ".join(f"{value * 1000:.1f}" for value in figures)


Ask = Callable[[httpx.AsyncClient, bytes], Awaitable[tuple[httpx.Response, "Counter[str]"]]]


@asynccontextmanager
async def serving(
    folder: Path, *, gateways: int = 2, grace_s: float = 300.0, model: str = MODEL, counting: bool = False, **spec: Any
) -> AsyncIterator[Server]:
    """`serve run` with one model and an external store, started as `make serve` starts it.

    Args:
        folder: for the log and the store, of which calibrations are kept from run to run.
        model: its id in serve_config.yaml; `spec` goes before its fields there.
        counting: serve `tenancy_graph`, whose text model `TEXT` costs nothing, beside it.
    """
    valkey = await asyncio.to_thread(EmbeddedValkey, folder / "store")
    server = Server(folder, valkey, free_port(), model, {"threads": 1} | spec)
    server.counting = counting
    await asyncio.to_thread(server.start, gateways, grace_s)
    try:
        await server.until_ready()
        await _forget(valkey.url)
        async with await TenantStore.connect(valkey.url, timeout_s=5.0) as store:
            server.admin = TenantAdmin(store, who="benchmark")
            await server.admin.create_tier("gold", {"utility": "1.0"})
            yield server
    finally:
        await asyncio.to_thread(server.stop)
        valkey.stop()


async def _forget(url: str) -> None:
    """Delete all of a store but its calibrations."""
    async with await TenantStore.connect(url, timeout_s=5.0) as store:
        names: list[bytes] = await store.execute("KEYS", "*")
        if gone := [name for name in names if not name.startswith(b"calibration")]:
            await store.execute("DEL", *gone)


class Server:
    """A running application, its store and its admin."""

    admin: TenantAdmin
    counting = False

    def __init__(self, folder: Path, valkey: EmbeddedValkey, port: int, model: str, spec: dict[str, Any]) -> None:
        self.folder, self.valkey, self.model = folder, valkey, model
        self.base_url = f"http://127.0.0.1:{port}"
        self._port, self._spec = port, spec
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, gateways: int, grace_s: float) -> None:
        """Start `serve run`."""
        config: dict[str, Any] = yaml.safe_load((REPOSITORY / "serve_config.yaml").read_text())
        config["http_options"]["port"] = self._port
        args = config["applications"][0]["args"]
        args["models"] = [model | self._spec for model in args["models"] if model["id"] == self.model]
        if self.counting:
            config["applications"][0]["import_path"] = "benchmarks.tenancy_graph:build_app"
            args["models"].append({"id": TEXT, "task": "text-generation", "source": "none"})
        args["store"] |= {"data_dir": str(self.folder / "data"), "stale_grace_s": grace_s}
        (gateway,) = config["applications"][0]["deployments"]
        gateway["num_replicas"] = gateways
        path = self.folder / "serve_config.yaml"
        path.write_text(yaml.safe_dump(config))
        env = ENVIRONMENT | {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        env |= {
            "REDIS_URL": self.valkey.url,
            "AIM_NOISE_SECRET": NOISE_SECRET,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(REPOSITORY),
        }
        with (self.folder / "serve.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ray.serve.scripts", "run", str(path)],
                cwd=REPOSITORY,
                env=env,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    async def until_ready(self) -> None:
        """Wait until the application is ready."""
        until = time.monotonic() + 600
        async with httpx.AsyncClient(timeout=2.0) as client:
            while time.monotonic() < until:
                try:
                    if (await client.get(f"{self.base_url}/readyz")).status_code == 200:
                        return
                except httpx.HTTPError:
                    pass
                assert self._process is not None and self._process.poll() is None, "serve run ended"
                await asyncio.sleep(0.5)
        tail = (self.folder / "serve.log").read_text(errors="replace")[-3000:]
        raise RuntimeError(f"the application is not ready after ten minutes:\n{tail}")

    def stop(self) -> None:
        """End it as Ctrl-C does."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(timeout=90)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)

    @property
    def pid(self) -> int:
        """The process that all others of the application descend from."""
        assert self._process is not None
        return self._process.pid

    def gateway_pids(self) -> list[int]:
        """Processes of the gateway's replicas: Ray names a worker's process after its actor."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                command = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
            except (FileNotFoundError, ProcessLookupError):
                continue
            if command.startswith(b"ray::ServeReplica") and b"TenantGateway" in command:
                found.append(int(entry.name))
        return sorted(found)

    def gateway_seconds(self) -> list[float]:
        """Processor seconds that each gateway has used: both have, where both serve."""
        ticks = os.sysconf("SC_CLK_TCK")
        stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in self.gateway_pids()]
        return [(int(words[11]) + int(words[12])) / ticks for words in stats]


async def image_request(client: httpx.AsyncClient, image: bytes) -> tuple[httpx.Response, Counter[str]]:
    """Classify a picture: the answer, and what it must have used."""
    return await client.post(f"/models/{MODEL}", content=image), Counter(requests=1, images=1)


async def text_request(client: httpx.AsyncClient, image: bytes) -> tuple[httpx.Response, Counter[str]]:
    """Complete a prompt, as a stream every other time: the answer, and what it says it has used."""
    stream = random.random() < 0.5
    body: dict[str, Any] = {
        "model": TEXT,
        "prompt": "word " * random.randint(1, 60),
        "max_tokens": random.randint(1, 20),
    }
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    response = await client.post("/v1/completions", json=body)
    used = Counter(requests=1)
    if response.status_code == 200:
        # The last event but [DONE] has the usage of a stream.
        text = response.text.split("data: ")[-2] if stream else response.text
        usage = json.loads(text)["usage"]
        used.update(tokens_in=usage["prompt_tokens"], tokens_out=usage["completion_tokens"])
    return response, used


@dataclass
class Load:
    """Clients of known keys that ask without a pause, pictures and texts, and what they counted."""

    base_url: str
    keys: dict[str, str]
    clients_per_key: int = 2
    answered: Counter[str] = field(default_factory=Counter)
    used: dict[str, Counter[str]] = field(default_factory=dict)
    failed: list[tuple[float, str, str]] = field(default_factory=list)
    times: list[tuple[float, float]] = field(default_factory=list)
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def start(self) -> None:
        """Begin."""
        image = (REPOSITORY / "examples" / "ship.jpg").read_bytes()
        for tenant, key in self.keys.items():
            self.used[tenant] = Counter()
            for number in range(self.clients_per_key):
                ask = text_request if number % 2 else image_request
                self._tasks.append(asyncio.create_task(self._client(tenant, key, image, ask)))

    async def stop(self) -> None:
        """Let every client finish its last request."""
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def _client(self, tenant: str, key: str, image: bytes, ask: Ask) -> None:
        headers = {"authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(base_url=self.base_url, headers=headers, timeout=TIMEOUT_S) as client:
            while not self._stop.is_set():
                started = time.monotonic()
                try:
                    response, used = await ask(client, image)
                    outcome = "" if response.status_code == 200 else f"{response.status_code} {response.text[:200]}"
                except httpx.HTTPError as error:
                    outcome = f"{type(error).__name__} {error}"
                if outcome:
                    self.failed.append((started, tenant, outcome))
                    await asyncio.sleep(0.05)
                else:
                    self.answered[tenant] += 1
                    self.used[tenant].update(used)
                    self.times.append((started, time.monotonic() - started))

    def between(self, start: float, end: float) -> list[float]:
        """Seconds that the requests took which began in a span of monotonic time."""
        return [took for started, took in self.times if start <= started < end]
