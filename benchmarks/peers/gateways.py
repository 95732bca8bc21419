"""Gateways side by side before the same stub: requests a second of one core, and what each adds to an answer's time.

LiteLLM's proxy (one worker, a master key, a limit of requests a minute; its virtual keys need PostgreSQL), npm's
@portkey-ai/gateway (which has neither keys nor limits of its own), and this gateway with keys, limits of every kind,
usage and receipts. Rounds alternate. Processor time is of a gateway's whole tree of processes, its store included.

Peers are installed apart, and left out where they are not:

    python3 -m venv /tmp/peers/litellm && /tmp/peers/litellm/bin/pip install 'litellm[proxy]'
    npm install --prefix /tmp/peers/portkey @portkey-ai/gateway

Usage: python -m benchmarks.peers.gateways [--peers /tmp/peers] [--rounds 7] [--seconds 4] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

STUB = 9300
BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "Count to eight."}], "max_tokens": 8}
START_S = 300.0
AT_ONCE = 8


@dataclass
class Peer:
    """A gateway that runs.

    Attributes:
        model: what it calls the stub.
        headers: of a request.
    """

    name: str
    port: int
    model: str
    headers: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def seconds(self) -> float:
        """Processor time of its processes so far."""
        root = psutil.Process(self.process.pid) if self.process else None
        total = 0.0
        for one in [root, *root.children(recursive=True)] if root else []:
            times = one.cpu_times()
            total += times.user + times.system
        return total


@contextmanager
def started(words: list[str], env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process, ended at the end."""
    process = subprocess.Popen(
        words, env=os.environ | (env or {}), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        # A store that it has started would outlive it.
        tree = [*psutil.Process(process.pid).children(recursive=True), process] if process.poll() is None else []
        for one in tree:
            with suppress(psutil.NoSuchProcess):
                one.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


async def ask(peer: Peer, count: int, until: float, times: list[float]) -> None:
    """Requests one after another over one connection, until a time or so many."""
    reader, writer = await asyncio.open_connection("127.0.0.1", peer.port)
    body = json.dumps({**BODY, "model": peer.model}).encode()
    own = "".join(f"{name}: {value}\r\n" for name, value in peer.headers.items())
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: peer\r\ncontent-type: application/json\r\n{own}"
    request = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
    while time.perf_counter() < until and count:
        began, count = time.perf_counter(), count - 1
        writer.write(request)
        answer = await reader.readuntil(b"\r\n\r\n")
        lower = answer.lower()
        if b"content-length:" in lower:
            await reader.readexactly(int(lower.split(b"content-length:")[1].split(b"\r\n")[0]))
        else:
            while size := int(await reader.readline(), 16):
                await reader.readexactly(size + 2)
            await reader.readline()
        if b" 200 " not in answer[:16]:
            raise RuntimeError(f"{peer.name} answered {answer[:200]!r}")
        times.append(time.perf_counter() - began)
    writer.close()


async def ready(peer: Peer) -> None:
    """Wait until it answers."""
    until = time.monotonic() + START_S
    while True:
        try:
            return await ask(peer, 1, time.perf_counter() + 60.0, [])
        except (OSError, RuntimeError, asyncio.IncompleteReadError):
            if time.monotonic() > until or (peer.process and peer.process.poll() is not None):
                raise
            await asyncio.sleep(1.0)


async def round_of(peer: Peer, seconds: float) -> tuple[float, float, list[float]]:
    """Requests a second at eight at once, milliseconds of processor time a request, seconds of each when alone."""
    times: list[float] = []
    began, spent = time.perf_counter(), peer.seconds()
    await asyncio.gather(*(ask(peer, 10**9, began + seconds, times) for _ in range(AT_ONCE)))
    rate = len(times) / (time.perf_counter() - began)
    cost = (peer.seconds() - spent) / len(times) * 1e3
    alone: list[float] = []
    await ask(peer, 60, time.perf_counter() + seconds, alone)
    return rate, cost, alone


def litellm(folder: Path, stack: ExitStack, work: Path) -> tuple[Peer, str] | None:
    """LiteLLM's proxy and its version."""
    command = folder / "litellm" / "bin" / "litellm"
    if not command.exists():
        return None
    served = {"model": "openai/stub", "api_base": f"http://127.0.0.1:{STUB}/v1", "api_key": "none", "rpm": 10**8}
    key = f"sk-{secrets.token_hex(24)}"  # it starts with no weak one
    config = {
        "model_list": [{"model_name": "stub", "litellm_params": served}],
        "general_settings": {"master_key": key},
    }
    (work / "litellm.json").write_text(json.dumps(config))  # which is YAML as well
    words = [str(command), "--config", str(work / "litellm.json"), "--port", "9301", "--num_workers", "1"]
    process = stack.enter_context(started(words, {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}))
    asked = [str(command.with_name("python")), "-c", "import importlib.metadata as m; print(m.version('litellm'))"]
    version = subprocess.run(asked, capture_output=True, text=True).stdout.strip()
    return Peer("LiteLLM proxy", 9301, "stub", {"authorization": f"Bearer {key}"}, process), version


def portkey(folder: Path, stack: ExitStack, work: Path) -> tuple[Peer, str] | None:
    """Portkey's gateway and its version."""
    package = folder / "portkey" / "node_modules" / "@portkey-ai" / "gateway"
    if not package.exists():
        return None
    words = ["node", str(package / "build" / "start-server.js"), "--port=9302", "--headless"]
    process = stack.enter_context(started(words))
    headers = {"x-portkey-provider": "openai", "authorization": "Bearer none"}
    headers["x-portkey-custom-host"] = f"http://127.0.0.1:{STUB}/v1"
    version = json.loads((package / "package.json").read_text())["version"]
    return Peer("@portkey-ai/gateway", 9302, "stub", headers, process), version


def own(folder: Path, stack: ExitStack, work: Path) -> tuple[Peer, str]:
    """This gateway."""
    key = work / "key"
    words = [sys.executable, "-m", "benchmarks.peers.own", "--stub", f"http://127.0.0.1:{STUB}", "--key", str(key)]
    process = stack.enter_context(started(words))
    while not key.exists() or not key.read_text():
        if process.poll() is not None:
            raise RuntimeError("this gateway did not start")
        time.sleep(0.2)
    version = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return Peer("this gateway", 9303, "text", {"authorization": f"Bearer {key.read_text()}"}, process), version


async def compare(folder: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """Start all, and measure them in turns."""
    with ExitStack() as stack, tempfile.TemporaryDirectory() as work:
        stack.enter_context(started([sys.executable, "-m", "benchmarks.peers.stub", "--port", str(STUB)]))
        bare = Peer("the stub alone", STUB, "stub")
        await ready(bare)
        peers = [bare]
        for make in (litellm, portkey, own):
            if (made := make(folder, stack, Path(work))) is not None:
                print(f"{made[0].name} {made[1]}", file=sys.stderr)
                await ready(made[0])
                peers.append(made[0])
        found: dict[str, Any] = {peer.name: {"rate": [], "cost": [], "alone": []} for peer in peers}
        for at in range(rounds + 1):
            for peer in peers:
                rate, cost, alone = await round_of(peer, seconds)
                if at:  # the first is for warmth
                    found[peer.name]["rate"].append(rate)
                    found[peer.name]["cost"].append(cost)
                    found[peer.name]["alone"].append([value * 1e3 for value in alone])
        return found


def _cell(values: list[float], digits: int) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, default=Path("/tmp/peers"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = asyncio.run(compare(given.peers, given.rounds, given.seconds))
    print(
        "| gateway | processor ms a request | requests/s of a core | requests/s at 8 | added p50, p95, p99 ms, alone |"
    )
    print("|---|---|---|---|---|")
    bare = sorted(value for one in found["the stub alone"]["alone"] for value in one)
    for name, own in found.items():
        alone = sorted(value for one in own["alone"] for value in one)
        added = [alone[int(len(alone) * q)] - bare[int(len(bare) * q)] for q in (0.5, 0.95, 0.99)]
        cost = own["cost"]
        core = f"{1e3 / statistics.median(cost):.0f}" if any(cost) else ""
        said = _cell(cost, 2) if any(cost) else ""
        print(f"| {name} | {said} | {core} | {_cell(own['rate'], 0)} | {', '.join(f'{ms:.1f}' for ms in added)} |")
    if given.json:
        given.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
