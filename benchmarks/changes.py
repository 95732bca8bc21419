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
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import yaml

from benchmarks.changes_support import SHIP, Clients, Server
from benchmarks.tenancy_support import REPOSITORY, free_port, milliseconds
from tenants.admin.seed import read_env

SOURCE = "models/resnet18-cifar10"
OWN, OTHER, THIRD = "own", "other", "third"
"""Copies of one model under different ids."""
LONG_ENOUGH_S = 180.0
AFTER_S = 3.0
"""Load goes on for so long after a change was seen."""
SLEEPS_AFTER_S = 5.0
PHASES = ("settings", "model", "replicas", "gateways", "comes", "upgrade", "sleeps")


def spec(model_id: str, **changes: Any) -> dict[str, Any]:
    """A model of the configuration."""
    calibration = f"{SOURCE}/calibration.safetensors"
    task = "image-classification"
    return {"id": model_id, "task": task, "source": SOURCE, "calibration": calibration, "threads": 1} | changes


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

    async def run(self, chosen: Sequence[str]) -> None:
        """Those that are chosen of `PHASES`."""
        print("| change | seen after, s | answered with 200 | ms: median / p99 / most | processes that ended, of |")
        print("|---|---|---|---|---|")
        phases = (
            self._settings,
            self._model,
            lambda: self._replicas(OWN, "default", OWN),
            lambda: self._replicas("gateway", "default", "TenantGateway"),
            self._comes_and_goes,
            self._upgrade,
            self._sleeps,
        )
        for name, change in zip(PHASES, phases, strict=True):
            if name in chosen:
                await change()

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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PHASES, default=PHASES, help="what is changed; default: all")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        server = Server(Path(name), configuration(Path(name)))
        server.start()
        try:
            drill = Drill(server, "")

            async def ready() -> bool:
                assert server.process is not None and server.process.poll() is None, server.log.read_text()[-3000:]
                both = [(await drill.get(f"/readyz/{model}")).status_code for model in (OWN, OTHER)]
                return both == [200, 200]

            await drill.until(ready)
            drill.key = read_env(Path(name) / "data" / "demo.env")["GOLD_KEY"]
            await drill.run(options.only)
        finally:
            await asyncio.to_thread(server.stop)
    sys.exit(1 if drill.failed else 0)


if __name__ == "__main__":
    asyncio.run(main())
