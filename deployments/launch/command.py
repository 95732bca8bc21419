"""`make serve` and `make stop`: check first, start `serve run`, show what it is doing, and say how to call it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
import yaml
from pydantic import ValidationError

from deployments.config import AppArgs
from deployments.contracts.console import FAILED, MARK
from deployments.environment import is_embedded, noise_secret, store_url
from deployments.gateway.settings import checked
from deployments.launch.first_calls import first_calls
from policies.errors import Unavailable
from tenants.records.schema import RecordError
from tenants.store.store import TenantStore

app = typer.Typer(add_completion=False, help="Start and stop the application on this machine.")

END_TIMEOUT_S = 60.0
ENVIRONMENT = {
    # Ray's own 15 lets every other job of the machine go before the answers. Read when Ray starts, so not in the YAML.
    "RAY_worker_niceness": "0",
    "RAY_DEDUP_LOGS": "0",
    "PYTHONUNBUFFERED": "1",
}
GATEWAY = "TenantGateway"
HA_PROXY = "RAY_SERVE_ENABLE_HA_PROXY"


@dataclass(frozen=True)
class Plan:
    """A checked configuration."""

    path: Path
    args: AppArgs
    host: str
    port: int
    ha_proxy: bool = True

    @property
    def base_url(self) -> str:
        """Where this machine reaches the gateway."""
        return f"http://{'127.0.0.1' if self.host == '0.0.0.0' else self.host}:{self.port}"

    @property
    def data(self) -> Path:
        """Folder of demo.env, serve.log and serve.pid."""
        return self.args.store.folder


def fail(message: str) -> typer.Exit:
    """One clear line on stderr; raise what it returns."""
    typer.echo(f"✗ {message}", err=True)
    return typer.Exit(1)


def read_plan(path: Path) -> Plan:
    """Read and check a Serve configuration. Ends the command with one line a mistake."""
    try:
        config: dict[str, Any] = yaml.safe_load(path.read_text())
        application = config["applications"][0]
        http = config.get("http_options") or {}
        args = AppArgs.model_validate(application.get("args") or {})
        _check_deployments(application.get("deployments") or [], args)
        serves = (config.get("controller_options") or {}).get("runtime_env", {}).get("env_vars", {})
        ha_proxy = {**os.environ, **serves}.get(HA_PROXY) == "1"
        return Plan(path, args, str(http.get("host", "127.0.0.1")), int(http.get("port", 8000)), ha_proxy)
    except FileNotFoundError:
        raise fail(f"{path} does not exist.") from None
    except ValidationError as error:
        for detail in error.errors():
            field = ".".join(str(part) for part in detail["loc"])
            typer.echo(f"✗ {path}: applications[0].args.{field}: {detail['msg']}", err=True)
        raise typer.Exit(1) from None
    except (yaml.YAMLError, KeyError, TypeError, ValueError, IndexError) as error:
        raise fail(f"{path} is not a Serve configuration of this application: {' '.join(str(error).split())}") from None


def _check_deployments(entries: list[dict[str, Any]], args: AppArgs) -> None:
    """Raises ValueError: one is of no deployment, or the gateway's settings cannot be."""
    known = [GATEWAY, *(spec.deployment for spec in args.models)]
    for entry in entries:
        if entry["name"] not in known:
            raise ValueError(f"deployments: there is no '{entry['name']}'; there are {', '.join(known)}")
        if entry["name"] == GATEWAY:
            try:
                checked(args.gateway, entry.get("user_config") or {})
            except ValueError as error:
                raise ValueError(f"deployments.{GATEWAY}.user_config.{error}") from None


@app.command()
def serve(config: Annotated[Path, typer.Argument(help="Serve configuration.")] = Path("serve_config.yaml")) -> None:
    """Check the configuration, start the application, and print keys and first calls once it is up."""
    plan = read_plan(config)
    if _answers(plan.base_url):
        typer.echo(f"Already running at {plan.base_url}; `make stop` ends it.\n")
        typer.echo(first_calls(plan.args, plan.base_url))
        return
    _check_port(plan)
    _check_store(plan)
    plan.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not plan.ha_proxy:
        typer.echo(
            f"{config} lacks the controller_options of the shipped serve_config.yaml: a slower server.", err=True
        )
    typer.echo(f"Starting {len(plan.args.models)} models at {plan.base_url} (log: {plan.data / 'serve.log'})")
    # A shell's background job starts with SIGINT ignored, which the child would inherit and then never end in order.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    command = [str(Path(sys.executable).parent / "serve"), "run", str(config)]
    child = subprocess.Popen(
        command,
        env=ENVIRONMENT | dict(os.environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    (plan.data / "serve.pid").write_text(f"{os.getpid()} {child.pid}")
    try:
        console = Console(child, plan.data / "serve.log")
        pending = _wait_for(plan, child, console, "ok", "partial")
        typer.echo("\n" + first_calls(plan.args, plan.base_url) + "\n\nCtrl-C or `make stop` ends it.")
        if pending:
            typer.echo("\nLevel 1.0 is served; other calls are answered with 503 until their levels are solved:")
            typer.echo("\n".join(f"  {reason}" for reason in pending))
            _wait_for(plan, child, console, "ok")
            typer.echo("Every level of every model is served.")
        child.wait()
        raise fail(f"The application ended by itself; see {plan.data / 'serve.log'}.")
    except KeyboardInterrupt:
        typer.echo("\nStopping ...")
    finally:
        _end(child)
        (plan.data / "serve.pid").unlink(missing_ok=True)


@app.command()
def stop(config: Annotated[Path, typer.Argument(help="Serve configuration.")] = Path("serve_config.yaml")) -> None:
    """End what `make serve` started in this folder."""
    pid_file = read_plan(config).data / "serve.pid"
    pids = [int(pid) for pid in pid_file.read_text().split()] if pid_file.exists() else []
    running = [pid for pid in pids if _is_ours(pid)]
    if not running:
        typer.echo("Nothing runs that `make serve` started here.")
        return
    # The launcher first: it ends its child in order. The child alone is left where the launcher was killed.
    os.kill(running[0], signal.SIGTERM if running[0] == pids[0] else signal.SIGINT)
    waited = time.monotonic()
    while any(_is_ours(pid) for pid in running):
        if time.monotonic() - waited > END_TIMEOUT_S + 10.0:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pids[1], signal.SIGKILL)
        time.sleep(0.2)
    typer.echo("Stopped.")


class Console:
    """Keeps a child's output in a file, shows the lines meant for a person, and remembers a failure."""

    def __init__(self, child: subprocess.Popen[str], log: Path) -> None:
        self.failure: str | None = None
        self.tail: deque[str] = deque(maxlen=200)
        self._building_failed = False
        self._thread = threading.Thread(target=self._read, args=(child, log), daemon=True)
        self._thread.start()

    def _read(self, child: subprocess.Popen[str], log: Path) -> None:
        assert child.stdout is not None
        with log.open("w") as file:
            for line in child.stdout:
                file.write(line)
                file.flush()
                self.tail.append(line.rstrip())
                self._judge(line.rstrip())

    def _judge(self, line: str) -> None:
        _, mark, text = line.partition(MARK)
        if mark and FAILED in text:
            self.failure = self.failure or text
        elif mark and not self.failure:
            typer.echo(f"  {text}")
        # Serve retries a graph that cannot be built for minutes; the exception follows a few lines below.
        self._building_failed |= "build_serve_application failed" in line
        if self._building_failed and re.match(r"[\w.]*(Error|Exception)\b", line):
            self.failure = self.failure or f"the graph cannot be built: {line}"

    def last_error(self) -> str:
        """The last line that looks like an exception, or the last line."""
        self._thread.join(timeout=2.0)
        errors = [line for line in self.tail if "Error" in line or "Exception" in line]
        return (errors or list(self.tail) or ["no output"])[-1].strip()


def _wait_for(plan: Plan, child: subprocess.Popen[str], console: Console, *statuses: str) -> list[str]:
    """Wait until `/readyz` tells one of some statuses; the reasons that it gives for it."""
    while True:
        if console.failure:
            raise fail(console.failure)
        if child.poll() is not None:
            raise fail(f"{console.last_error()} (see {plan.data / 'serve.log'})")
        try:
            health = httpx.get(f"{plan.base_url}/readyz", timeout=2.0).json()
            if health["status"] in statuses:
                return list(health["reasons"])
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            pass
        time.sleep(0.5)


def _answers(base_url: str) -> bool:
    """Whether this application is up at the address."""
    try:
        return bool(httpx.get(f"{base_url}/healthz", timeout=2.0).json() == {"status": "ok", "reasons": []})
    except (httpx.HTTPError, ValueError):
        return False


def _check_port(plan: Plan) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((plan.host, plan.port))
        except OSError as error:
            raise fail(
                f"Port {plan.port} on {plan.host} cannot be used ({error.strerror}); end what uses it, or change"
                f" http_options.port in {plan.path}."
            ) from None


def _check_store(plan: Plan) -> None:
    try:
        if is_embedded(plan.args.store):
            return
    except ValueError as error:
        raise fail(str(error)) from None
    logging.getLogger("tenants").setLevel(logging.ERROR)  # the one line below says it

    async def look() -> None:
        async with await TenantStore.connect(store_url(plan.args.store)):
            pass
        async with await TenantStore.connect(store_url(plan.args.store, replica=True)) as store:
            await noise_secret(plan.args.store, store)

    try:
        asyncio.run(look())
    except (Unavailable, ValueError) as error:
        raise fail(
            f"The store that REDIS_URL, AIM_REPLICA_REDIS_URL or store.redis_url names cannot be used: {error}"
        ) from None
    except (RecordError, OSError) as error:
        raise fail(f"The noise secret cannot be used: {error}") from None


def _is_ours(pid: int) -> bool:
    """Whether a process of this id still is a launcher or a `serve run`: ids are recycled."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
        return b"deployments.launch serve" in command or b"serve run" in command
    except (FileNotFoundError, ProcessLookupError):
        return False


def _end(child: subprocess.Popen[str]) -> None:
    """Serve's own shutdown first; what does not end by itself is killed."""
    if child.poll() is None:
        child.send_signal(signal.SIGINT)
        try:
            child.wait(timeout=END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
