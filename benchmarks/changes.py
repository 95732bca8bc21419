"""What changes while requests go on, and what of them fails: a real `serve run`, and `serve deploy` of changed files.

A model of the gateway's own application and one that is an application of its own are asked without a pause, by
several clients, while each of these is changed as an operator would (docs/operations.md, "What changes without a
restart"). A line for each: how long it took until it was seen, what was answered meanwhile, and which processes were
replaced.

    python -m benchmarks.changes
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

from benchmarks.tenancy_support import REPOSITORY, free_port, milliseconds
from tenants.seed import read_env

SOURCE = "models/resnet18-cifar10"
OWN, OTHER, THIRD = "own", "other", "third"
"""Copies of one model under different ids."""
SHIP = (REPOSITORY / "examples" / "ship.jpg").read_bytes()
LONG_ENOUGH_S = 180.0
AFTER_S = 3.0
"""Load goes on for so long after a change was seen."""
SLEEPS_AFTER_S = 5.0


def spec(model_id: str, **changes: Any) -> dict[str, Any]:
    """A model of the configuration."""
    calibration = f"{SOURCE}/calibration.safetensors"
    task = "image-classification"
    return {"id": model_id, "task": task, "source": SOURCE, "calibration": calibration, "threads": 1} | changes


@dataclass
class Server:
    """`serve run` of a configuration, from a bare environment but for the cluster's token.

    Attributes:
        config: what is deployed; `deploy` brings a change of it.
    """

    folder: Path
    config: dict[str, Any]
    token: str = field(default_factory=lambda: secrets.token_hex(32), repr=False)
    process: subprocess.Popen[bytes] | None = None

    @property
    def base_url(self) -> str:
        """Where the gateway answers."""
        return f"http://127.0.0.1:{self.config['http_options']['port']}"

    @property
    def _log(self) -> Path:
        return self.folder / "serve.log"

    def _command(self, *words: str) -> list[str]:
        path = self.folder / "serve.yaml"
        path.write_text(yaml.safe_dump(self.config))
        return [sys.executable, "-m", "ray.serve.scripts", *words, str(path)]

    @property
    def _env(self) -> dict[str, str]:
        away = ("RAY_ADDRESS", "REDIS_URL", "AIM_REPLICA_REDIS_URL")
        bare = {name: value for name, value in os.environ.items() if name not in away}
        return bare | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    def start(self) -> None:
        """`serve run`."""
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                self._command("run"),
                cwd=REPOSITORY,
                env=self._env,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    async def deploy(self) -> None:
        """`serve deploy` of the configuration as it is now."""
        found = re.search(r"dashboard at (?:\x1b\[[0-9;]*m)*(?:http://)?([\d.]+:\d+)", self._log.read_text())
        assert found, "serve run says no dashboard"
        command = self._command("deploy", "-a", f"http://{found[1]}")
        done = await asyncio.create_subprocess_exec(
            *command, cwd=REPOSITORY, env=self._env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        said, _ = await done.communicate()
        assert done.returncode == 0, said.decode()

    def stop(self) -> None:
        """End it as Ctrl-C does."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(timeout=90)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)

    def replicas(self, name: str) -> list[int]:
        """Processes of a deployment's replicas below this server: Ray names a worker's process after its actor."""
        import psutil

        assert self.process is not None
        below = psutil.Process(self.process.pid).children(recursive=True)
        found = []
        for child in below:
            try:
                command = " ".join(child.cmdline())
            except psutil.Error:
                continue
            if command.startswith("ray::ServeReplica") and f":{name}" in command:
                found.append(child.pid)
        return sorted(found)


@dataclass
class Clients:
    """Clients that ask for some models without a pause, and what they were answered."""

    base_url: str
    key: str
    models: list[str]
    each: int = 2
    answers: list[tuple[float, float, str]] = field(default_factory=list)
    """Began, took in seconds, "" or what was wrong."""
    _stop: bool = False

    @asynccontextmanager
    async def asking(self) -> Any:
        """Ask within."""
        self._stop = False
        tasks = [asyncio.create_task(self._ask(model)) for model in self.models for _ in range(self.each)]
        try:
            yield
        finally:
            self._stop = True
            await asyncio.gather(*tasks)

    async def _ask(self, model: str) -> None:
        headers = {"authorization": f"Bearer {self.key}"}
        async with httpx.AsyncClient(base_url=self.base_url, headers=headers, timeout=60.0) as client:
            while not self._stop:
                began = time.monotonic()
                try:
                    answer = await client.post(f"/models/{model}", content=SHIP)
                    wrong = "" if answer.status_code == 200 else f"{model}: {answer.status_code} {answer.text[:120]}"
                except httpx.HTTPError as error:
                    wrong = f"{model}: {type(error).__name__}"
                self.answers.append((began, time.monotonic() - began, wrong))
                if wrong:
                    await asyncio.sleep(0.05)


class Drill:
    """The changes, one after the other."""

    def __init__(self, server: Server, key: str) -> None:
        self.server, self.key = server, key
        self.failed = 0
        (self.gateway,) = [d for d in self._application("default")["deployments"] if d["name"] == "TenantGateway"]

    def _application(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = next(app for app in self.server.config["applications"] if app["name"] == name)
        return found

    def _deployment(self, application: str, name: str) -> dict[str, Any]:
        entries: list[dict[str, Any]] = self._application(application).setdefault("deployments", [])
        if not any(entry["name"] == name for entry in entries):
            entries.append({"name": name})
        return next(entry for entry in entries if entry["name"] == name)

    async def get(self, path: str) -> httpx.Response:
        """Ask the gateway what needs no key; a status of 0 stands for no answer."""
        async with httpx.AsyncClient(timeout=60.0) as client:
            try:
                return await client.get(self.server.base_url + path)
            except httpx.HTTPError:
                return httpx.Response(0)

    async def until(self, seen: Callable[[], Awaitable[bool]]) -> None:
        """Wait until a change is seen."""
        async with asyncio.timeout(LONG_ENOUGH_S):
            while not await seen():
                await asyncio.sleep(0.1)

    async def phase(self, name: str, seen: Callable[[], Awaitable[bool]], models: list[str]) -> None:
        """Deploy the configuration as it is now under load, until a change is seen; one line."""
        before = {model: self.server.replicas(model) for model in ("TenantGateway", "EmbeddedStore", OWN, OTHER)}
        clients = Clients(self.server.base_url, self.key, models)
        began = time.monotonic()
        async with clients.asking():
            await self.server.deploy()
            try:
                await self.until(seen)
            except TimeoutError:
                self.failed += 1
                print(f"  {name}: not seen")
            took = time.monotonic() - began
            await asyncio.sleep(AFTER_S)
        gone = [model for model, pids in before.items() if set(pids) - set(self.server.replicas(model))]
        wrong = Counter(said for _, _, said in clients.answers if said)
        self.failed += sum(wrong.values())
        times = milliseconds([seconds for _, seconds, said in clients.answers if not said])
        good = len(clients.answers) - sum(wrong.values())
        print(f"| {name} | {took:.1f} | {good} of {len(clients.answers)} | {times} | {', '.join(gone) or 'none'} |")
        for said, count in wrong.most_common(5):
            print(f"  {count} x {said}")

    async def run(self) -> None:
        """All of them."""
        print("| change | seen after, s | answered with 200 | ms: median / p99 / most | processes that ended, of |")
        print("|---|---|---|---|---|")
        await self._settings()
        await self._model()
        await self._replicas(OWN, "default", OWN)
        await self._replicas("gateway", "default", "TenantGateway")
        await self._comes_and_goes()
        await self._upgrade()
        await self._sleeps()

    async def _settings(self) -> None:
        self.gateway["user_config"] = {"deadline_s": 100, "cors_origins": ["https://app.example.com"]}

        async def allowed() -> bool:
            async with httpx.AsyncClient() as client:
                answer = await client.get(
                    f"{self.server.base_url}/healthz", headers={"origin": "https://app.example.com"}
                )
            return "access-control-allow-origin" in answer.headers

        await self.phase("gateway setting", allowed, [OWN, OTHER])

        self.gateway["user_config"] = {"deadline_s": -1}

        async def refused() -> bool:
            return any("deadline_s" in reason for reason in (await self.get("/readyz")).json()["reasons"])

        await self.phase("gateway setting that is refused", refused, [OWN, OTHER])
        self.gateway["user_config"] = {"deadline_s": 120}
        await self.server.deploy()

    async def _model(self) -> None:
        self._application(f"model-{OTHER}")["args"]["model"]["max_batch_size"] = 8
        before = self.server.replicas(OTHER)

        async def replaced() -> bool:
            now = self.server.replicas(OTHER)
            return bool(now) and not set(now) & set(before)

        await self.phase("model of one replica", replaced, [OWN, OTHER])

    async def _replicas(self, title: str, application: str, name: str) -> None:
        for count, was in ((3, 1), (1, 3)):
            self._deployment(application, name)["num_replicas"] = count

            async def scaled(count: int = count) -> bool:
                return len(self.server.replicas(name)) == count

            await self.phase(f"{title}, {was} to {count} replicas", scaled, [OWN, OTHER])

    async def _comes_and_goes(self) -> None:
        applications, own = self.server.config["applications"], self._application(f"model-{OTHER}")
        third = copy.deepcopy(own) | {"name": f"model-{THIRD}"}
        third["args"]["model"]["id"] = THIRD
        third.pop("deployments", None)

        async def answers() -> bool:
            return (await self.get(f"/readyz/{THIRD}")).status_code == 200

        async def gone() -> bool:
            return (await self.get(f"/readyz/{THIRD}")).status_code == 404

        applications.append(third)
        await self.phase("model added", answers, [OWN, OTHER])
        applications.remove(third)
        await self.phase("model removed", gone, [OWN, OTHER])

    async def _upgrade(self) -> None:
        """Everything is replaced, as for new code; the embedded store is away in between."""
        for application in self.server.config["applications"]:
            application["runtime_env"] = {"env_vars": {"RELEASE": "2"}}
        names = ("TenantGateway", "EmbeddedStore", OWN, OTHER)
        before = {pid for name in names for pid in self.server.replicas(name)}

        async def replaced() -> bool:
            now = [self.server.replicas(name) for name in names]
            return all(now) and not before & {pid for pids in now for pid in pids}

        await self.phase("all code", replaced, [OWN, OTHER])

    async def _sleeps(self) -> None:
        """A model without a caller loses its last replica, stays ready, and wakes at the first request."""
        entry = self._deployment(f"model-{OTHER}", OTHER)
        entry["autoscaling_config"] = {"min_replicas": 0, "max_replicas": 1, "downscale_delay_s": SLEEPS_AFTER_S}

        async def asleep() -> bool:
            return not self.server.replicas(OTHER)

        await self.phase("model falls asleep", asleep, [OWN])
        await asyncio.sleep(4 * SLEEPS_AFTER_S)
        assert await asleep(), "something has woken it"
        ready = [(await self.get(path)).status_code for path in (f"/readyz/{OTHER}", "/readyz")]
        began = time.monotonic()
        async with httpx.AsyncClient(headers={"authorization": f"Bearer {self.key}"}, timeout=120.0) as client:
            answer = await client.post(f"{self.server.base_url}/models/{OTHER}", content=SHIP)
        took = time.monotonic() - began
        self.failed += answer.status_code != 200
        print(f"Asleep it is ready ({ready}); the first request is answered {answer.status_code} after {took:.1f} s.")
        began = time.monotonic()
        await self.until(asleep)
        print(f"It sleeps again {time.monotonic() - began:.1f} s later.")


def configuration(folder: Path) -> dict[str, Any]:
    """The shipped configuration with one model in it, and another as an application."""
    config: dict[str, Any] = yaml.safe_load((REPOSITORY / "serve_config.yaml").read_text())
    config["http_options"]["port"] = free_port()
    (default,) = config["applications"]
    store = default["args"]["store"] | {"data_dir": str(folder / "data")}
    default["args"] |= {"models": [spec(OWN)], "store": store}
    other = {"model": spec(OTHER), "store": store}
    imported = {"route_prefix": None, "import_path": "deployments.app:build_model"}
    config["applications"].append({"name": f"model-{OTHER}", "args": other} | imported)
    return config


async def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    with tempfile.TemporaryDirectory() as name:
        server = Server(Path(name), configuration(Path(name)))
        server.start()
        try:
            drill = Drill(server, "")

            async def ready() -> bool:
                assert server.process is not None and server.process.poll() is None, server._log.read_text()[-3000:]
                both = [(await drill.get(f"/readyz/{model}")).status_code for model in (OWN, OTHER)]
                return both == [200, 200]

            await drill.until(ready)
            drill.key = read_env(Path(name) / "data" / "demo.env")["GOLD_KEY"]
            await drill.run()
        finally:
            await asyncio.to_thread(server.stop)
    sys.exit(1 if drill.failed else 0)


if __name__ == "__main__":
    asyncio.run(main())
