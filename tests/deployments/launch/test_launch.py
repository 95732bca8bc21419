"""`make serve` before anything starts: a mistake ends it with one clear line."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from typer import Exit

from deployments.config import REPOSITORY
from deployments.contracts.console import MARK, announce, announced
from deployments.launch.command import Console, _wait_for, read_plan
from tenants.store.embedded import EmbeddedValkey


def launch(command: str, config: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deployments.launch", command, str(config)],
        cwd=REPOSITORY,
        env={k: v for k, v in os.environ.items() if k not in ("REDIS_URL", "AIM_REPLICA_REDIS_URL")} | env,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Path]:
    """Writes the shipped configuration with changes, on a free port and its own data folder."""

    def write(
        change: Callable[[dict[str, Any]], None] = lambda _: None, port: int | None = None, deployments: Any = None
    ) -> Path:
        content = yaml.safe_load((REPOSITORY / "serve_config.yaml").read_text())
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            content["http_options"]["port"] = port or probe.getsockname()[1]
        content["applications"][0]["args"]["store"]["data_dir"] = str(tmp_path / "data")
        content["applications"][0]["deployments"] = deployments or content["applications"][0]["deployments"]
        change(content["applications"][0]["args"])
        (tmp_path / "serve.yaml").write_text(yaml.safe_dump(content))
        return tmp_path / "serve.yaml"

    return write


def one_line(done: subprocess.CompletedProcess[str], *says: str) -> None:
    assert done.returncode == 1, done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("✗ ") and all(part in line for part in says), line


def test_a_taken_port(config: Callable[..., Path]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        one_line(launch("serve", config(port=port)), str(port), "http_options.port")


def test_an_unreachable_store(config: Callable[..., Path]) -> None:
    done = launch("serve", config(), REDIS_URL="redis://:hunter2@127.0.0.1:1/0")
    one_line(done, "REDIS_URL")
    assert "hunter2" not in done.stderr


def test_a_store_without_the_noise_secret(config: Callable[..., Path], tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path / "store") as server:
        one_line(launch("serve", config(), REDIS_URL=server.url), "secret:noise", "tenants init")


def test_a_store_for_replicas_alone(config: Callable[..., Path]) -> None:
    one_line(launch("serve", config(), AIM_REPLICA_REDIS_URL="redis://127.0.0.1:1/0"), "REDIS_URL", "gateways")


def test_a_wrong_field(config: Callable[..., Path]) -> None:
    def misspell(args: dict[str, Any]) -> None:
        args["models"][1]["taks"] = "image-segmentation"

    one_line(launch("serve", config(misspell)), "models.1.taks")


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"name": "resnet", "num_replicas": 2}, "'resnet'"),
        ({"num_replicas": 2}, "name"),
        ({"name": "TenantGateway", "user_config": {"deadline_s": -1}}, "TenantGateway.user_config.deadline_s"),
        ({"name": "TenantGateway", "user_config": {"deadlines": 1}}, "TenantGateway.user_config.deadlines"),
    ],
)
def test_an_entry_that_no_deployment_takes(
    config: Callable[..., Path], entry: dict[str, Any], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Exit):
        read_plan(config(deployments=[entry]))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("✗ ") and says in line


def test_no_such_file(tmp_path: Path) -> None:
    one_line(launch("serve", tmp_path / "none.yaml"), "none.yaml")


def test_not_a_configuration(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("applications: 7\n")
    one_line(launch("serve", tmp_path / "bad.yaml"), "bad.yaml")


def test_stopping_what_does_not_run_says_so(config: Callable[..., Path]) -> None:
    done = launch("stop", config())
    assert done.returncode == 0 and "Nothing runs" in done.stdout


class Readiness(BaseHTTPRequestHandler):
    """Answers /readyz with one health after another; the last one stays."""

    said: ClassVar[list[tuple[int, dict[str, Any]]]]

    def do_GET(self) -> None:
        status, health = self.said.pop(0) if len(self.said) > 1 else self.said[0]
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(health).encode())

    def log_message(self, *_: Any) -> None:
        pass


def test_first_calls_come_as_soon_as_level_1_is_served_and_lower_levels_are_waited_for(
    config: Callable[..., Path], tmp_path: Path
) -> None:
    reasons = ["model m: levels below 1.0 are being solved (solving levels, 40%)"]
    Readiness.said = [
        (503, {"status": "unready", "reasons": ["model m is starting", *reasons]}),
        (200, {"status": "partial", "reasons": reasons}),
        (200, {"status": "partial", "reasons": reasons}),
        (200, {"status": "ok", "reasons": []}),
    ]
    with HTTPServer(("127.0.0.1", 0), Readiness) as server, ThreadPoolExecutor() as pool:
        serving = pool.submit(server.serve_forever, 0.05)
        plan = read_plan(config(port=server.server_port))
        with subprocess.Popen(["sleep", "60"], stdout=subprocess.PIPE, text=True) as child:
            console = Console(child, tmp_path / "serve.log")
            try:
                assert _wait_for(plan, child, console, "ok", "partial") == reasons
                assert _wait_for(plan, child, console, "ok") == []
                Readiness.said = [(200, {"status": "partial", "reasons": reasons})]
                console._judge(f"{MARK}m: failed: its levels cannot be solved: no room")
                with pytest.raises(Exit):
                    _wait_for(plan, child, console, "ok")
            finally:
                child.kill()
                server.shutdown()
        serving.result()


def test_a_replica_tells_the_console_how_it_goes(capfd: pytest.CaptureFixture[str]) -> None:
    announce("m", "hello")
    with pytest.raises(ValueError), announced("m", "models/m"):
        raise ValueError("no\nsuch file")
    said = capfd.readouterr().out.splitlines()
    assert said == [f"{MARK}m: hello", f"{MARK}m: loading models/m", f"{MARK}m: failed: no such file"]
