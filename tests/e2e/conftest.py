"""The whole application, started once by a bare `serve run`: real Ray Serve, HAProxy, Valkey and default models."""

from __future__ import annotations

import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from deployments.config import REPOSITORY
from deployments.engines.text.calibration import BUNDLED, MIN_PARAGRAPHS
from tenants.admin.seed import read_env

SHARED = REPOSITORY.parent / "shared" / "data"
CLASSIFIER, SEGMENTER, TEXT = "resnet18-cifar10", "segformer-b0-camvid", "smollm2-135m-instruct"
START_TIMEOUT_S = 600.0
SERVE_RUN = (str(Path(sys.executable).parent / "serve"), "run")
MAKE_SERVE = (sys.executable, "-m", "deployments.launch", "serve")
NOISE_SECRET = "the noise secret of the end-to-end tests"
"""One fixed draw: what a level delivers scatters over secrets (benchmarks/RESULTS.md), and a test must not."""


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Application:
    """A running application and what a client of each tier needs."""

    config: Path
    base_url: str
    data: Path
    env: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    created: list[str] = field(default_factory=list)
    printed: list[str] = field(default_factory=list)
    page: str = ""
    """The origin whose pages may call, by `cors_origins`; nothing listens there."""
    met: dict[str, tuple[int, Any]] = field(default_factory=dict)
    """What was answered while `/readyz` said `partial`: status, and body or error code."""

    def start(self, command: Sequence[str] = SERVE_RUN) -> None:
        """Start and wait until every model answers, at every level.

        Args:
            command: takes the configuration as its last word.
        """
        # A bare shell: nothing that Serve, Ray or the application reads, but the noise that the tests are made for.
        env = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        env |= {"AIM_NOISE_SECRET": NOISE_SECRET, "PYTHONPATH": str(REPOSITORY)}
        # Of a test run in the background SIGINT is ignored, which the child would inherit and then never end in order.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with self.console.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, str(self.config)], cwd=REPOSITORY, env=env, stdout=log, stderr=subprocess.STDOUT
            )
        until = time.monotonic() + START_TIMEOUT_S
        while True:
            if self.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the application did not start:\n{self.output()}")
            state = self.readiness()
            if state == {"status": "ok", "reasons": []}:
                break
            if state.get("status") == "partial" and not self.met:
                self.env = read_env(self.data / "demo.env") | read_env(self.data / "admin.env")
                self.met = {"readiness": (200, state)} | {tier: self._asked(tier) for tier in ("gold", "free")}
            time.sleep(0.5)
        self.env = read_env(self.data / "demo.env") | read_env(self.data / "admin.env")

    def _asked(self, tier: str) -> tuple[int, Any]:
        body = {"model": TEXT, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "temperature": 0}
        with self.client(tier) as client:
            answer = client.post("/v1/chat/completions", json=body)
        return answer.status_code, answer.json().get("error", {}).get("code")

    def stop(self) -> None:
        """End it as Ctrl-C does."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(timeout=120)

    @property
    def console(self) -> Path:
        """What the person at the console saw."""
        return self.data.parent / "console.log"

    def output(self) -> str:
        """What is in `console`."""
        return self.console.read_text()

    def readiness(self) -> dict[str, Any]:
        """What /readyz says; nothing where nobody answers."""
        try:
            return dict(httpx.get(f"{self.base_url}/readyz", timeout=2.0).json())
        except (httpx.HTTPError, ValueError):
            return {}

    def key(self, tier: str) -> str:
        """The demo tenant's key."""
        return self.env[f"{tier.upper()}_KEY"]

    def client(self, tier: str) -> httpx.Client:
        """An HTTP client of a tier's demo tenant."""
        headers = {"Authorization": f"Bearer {self.key(tier)}"}
        return httpx.Client(base_url=self.base_url, headers=headers, timeout=180.0)

    def tenants(self, *arguments: str) -> str:
        """Run the `tenants` command against the application's store; its output."""
        command = [str(Path(sys.executable).parent / "tenants"), *arguments]
        done = subprocess.run(
            command, env=os.environ | {"REDIS_URL": self.env["REDIS_URL"]}, capture_output=True, text=True
        )
        # `check` says by its status what it found, such as a level that has drifted.
        assert done.returncode == 0 or arguments[0] == "check", done.stderr
        if arguments[:2] == ("key", "create"):
            self.created.append(done.stdout.strip())
            self.printed.append(done.stderr)
        else:
            self.printed.append(done.stdout + done.stderr)
        return done.stdout

    def redis(self, *command: str) -> str:
        """One command of `redis-cli`; skips where Debian's redis-tools is not installed."""
        if shutil.which("redis-cli") is None:
            pytest.skip("needs redis-cli (Debian: redis-tools)")
        done = subprocess.run(
            ["redis-cli", "-u", self.env["OWNER_REDIS_URL"], "--no-auth-warning", *command],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@pytest.fixture(scope="session")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    """The application of `serve_config.yaml`, on a port and a data folder of its own.

    Its text model is calibrated on as few paragraphs as one may be, which saves a minute and a half: how exactly a
    text's levels are met is not measured here, and that the shipped text is taken is in test_text_calibration.py.
    """
    folder = tmp_path_factory.mktemp("application")
    port = free_port()
    config: dict[str, Any] = yaml.safe_load((REPOSITORY / "serve_config.yaml").read_text())
    config["http_options"]["port"] = port
    base_url = f"http://127.0.0.1:{port}"
    config["applications"][0]["args"]["store"] |= {"data_dir": str(folder / "data"), "public_url": base_url}
    page = f"http://127.0.0.1:{free_port()}"
    config["applications"][0]["args"].setdefault("gateway", {})["cors_origins"] = [page]
    paragraphs = BUNDLED.read_text().split("\n\n")
    (folder / "few.txt").write_text("\n\n".join(paragraphs[:MIN_PARAGRAPHS]))
    (text,) = [model for model in config["applications"][0]["args"]["models"] if model["id"] == TEXT]
    text["calibration"] = str(folder / "few.txt")
    (folder / "serve_config.yaml").write_text(yaml.safe_dump(config))
    application = Application(folder / "serve_config.yaml", base_url, folder / "data", page=page)
    try:
        application.start()
        yield application
    finally:
        application.stop()


@pytest.fixture(scope="session")
def ship() -> bytes:
    """A drawn picture of a ship."""
    return (REPOSITORY / "examples" / "ship.jpg").read_bytes()


@pytest.fixture(scope="session")
def street() -> bytes:
    """A drawn picture of a street."""
    return (REPOSITORY / "examples" / "street.jpg").read_bytes()


def _archive(name: str) -> zipfile.ZipFile:
    if not (SHARED / name).exists():
        pytest.skip(f"needs {SHARED / name}, which is not part of the repository")
    return zipfile.ZipFile(SHARED / name)


@pytest.fixture(scope="session")
def cifar() -> list[tuple[bytes, str]]:
    """The 1,000 CIFAR-10 pictures that neither training nor calibration saw, with their classes."""
    with _archive("cifar10-train.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.startswith("train/") and name.endswith(".jpg"))
        order = torch.randperm(len(names), generator=torch.Generator().manual_seed(7))[4000:5000]
        return [(archive.read(names[i]), names[i].split("/")[1]) for i in order.tolist()]


@pytest.fixture(scope="session")
def camvid() -> list[tuple[bytes, np.ndarray]]:
    """The 50 CamVid validation pictures that did not calibrate, every other one, with their labels [360, 480]."""
    with _archive("camvid-trainval.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.startswith("val/images/") and name.endswith(".jpg"))
        return [
            (archive.read(name), np.asarray(Image.open(io.BytesIO(archive.read(_labels_of(name))))))
            for name in names[1::2]
        ]


def _labels_of(name: str) -> str:
    return name.replace("/images/", "/labels/").removesuffix(".jpg") + ".png"


def mask_of(answer: list[dict[str, Any]], classes: list[str]) -> np.ndarray:
    """A segmentation answer as one array of class indices."""
    import base64

    masks = {part["label"]: np.asarray(Image.open(io.BytesIO(base64.b64decode(part["mask"])))) > 0 for part in answer}
    out = np.full(next(iter(masks.values())).shape, -1)
    for name, mask in masks.items():
        out[mask] = classes.index(name)
    return out


@pytest.fixture(scope="session")
def street_classes(app: Application) -> list[str]:
    """The segmenter's class names, as GET /v1/models lists them."""
    with app.client("gold") as client:
        return list(client.get(f"/v1/models/{SEGMENTER}").json()["focus_classes"])


def within_a_second(condition: Callable[[], bool]) -> bool:
    """Whether a condition holds within a second from now: the bound is the product's, not the machine's."""
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.02)
    return condition()
