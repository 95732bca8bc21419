"""What the drill of changes asks with and deploys to: a bare `serve run`, and clients without a pause."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from benchmarks.tenancy_support import REPOSITORY

SHIP = (REPOSITORY / "examples" / "ship.jpg").read_bytes()


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
    def log(self) -> Path:
        """What `serve run` says."""
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
        with self.log.open("wb") as log:
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
        found = re.search(r"dashboard at (?:\x1b\[[0-9;]*m)*(?:http://)?([\d.]+:\d+)", self.log.read_text())
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
    async def asking(self) -> AsyncIterator[None]:
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
