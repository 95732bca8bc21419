"""A batch that is killed twice, and a chat user beside it.

A batch of many lines runs on an application of its own while somebody chats: parts with the batch at work and parts
with it held (its tenant's rpm is 1 then) follow each other. Between them the gateway is killed (SIGKILL), and later the
whole application, every process of it, which is then started again on the same folder. At the end each line must stand
in the output once; what was under way at a kill may have been asked, and billed, twice.

    PYTHONPATH=$PWD python -m benchmarks.batches --folder /tmp/batches
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import signal
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import psutil
import yaml
from PIL import Image

from benchmarks.batches_local import LocalServer
from benchmarks.changes_support import Server
from benchmarks.running_support import CLASSIFIER, TEXT, Running, running
from benchmarks.tenancy_support import REPOSITORY, free_port, percentile

START_S = 600.0
CHAT = "/v1/chat/completions"


def configured(folder: Path) -> dict[str, Any]:
    """The shipped application with a text model and a classifier of one thread each, its store in a folder."""
    config: dict[str, Any] = yaml.safe_load((REPOSITORY / "serve_config.yaml").read_text())
    config["http_options"]["port"] = free_port()
    args = config["applications"][0]["args"]
    args["models"] = [model | {"threads": 1} for model in args["models"] if model["id"] in (CLASSIFIER, TEXT)]
    args["store"] = {"redis_url": "embedded", "data_dir": str(folder / "data"), "public_url": _url(config)}
    return config


def _url(config: dict[str, Any]) -> str:
    return f"http://127.0.0.1:{config['http_options']['port']}"


async def ready(server: Server | LocalServer) -> None:
    """Wait until everything is served."""
    until = time.monotonic() + START_S
    async with httpx.AsyncClient(timeout=5.0) as client:
        while time.monotonic() < until:
            with suppress(httpx.HTTPError, ValueError):
                if (await client.get(f"{server.base_url}/readyz")).json().get("status") == "ok":
                    return
            await asyncio.sleep(0.5)
    raise RuntimeError(f"not ready: {server.log.read_text()[-3000:]}")


def lines(kind: str, count: int) -> tuple[str, bytes]:
    """Endpoint and file of a batch: pictures of noise to classify, or chats of one token."""
    draw = np.random.default_rng(0)
    endpoint, rows = f"/models/{CLASSIFIER}" if kind == "pictures" else CHAT, []
    for at in range(count):
        if kind == "pictures":
            buffer = io.BytesIO()
            Image.fromarray(draw.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(buffer, "PNG")
            body: dict[str, Any] = {"inputs": base64.b64encode(buffer.getvalue()).decode()}
        else:
            said = [{"role": "user", "content": f"Say a number beyond {at}."}]
            body = {"model": TEXT, "messages": said, "max_tokens": 1}
        rows.append({"custom_id": f"line-{at}", "method": "POST", "url": endpoint, "body": body})
    return endpoint, b"\n".join(json.dumps(row).encode() for row in rows)


async def chats(client: openai.AsyncOpenAI, count: int, pause_s: float, tokens: int = 8) -> list[float]:
    """Seconds that each of some chats took, one after the other with pauses."""
    took = []
    for _ in range(count):
        began = time.perf_counter()
        await client.chat.completions.create(
            model=TEXT,
            messages=[{"role": "user", "content": "Tell me about the sea."}],
            max_tokens=tokens,
            temperature=0,
        )
        took.append(time.perf_counter() - began)
        await asyncio.sleep(pause_s)
    return took


def kill_gateway(server: Server) -> None:
    """SIGKILL to every gateway."""
    for pid in server.replicas("TenantGateway"):
        os.kill(pid, signal.SIGKILL)


def kill_application(server: Server) -> None:
    """SIGKILL to all that `serve run` has started, and to itself."""
    assert server.process is not None
    processes = psutil.Process(server.process.pid).children(recursive=True)
    server.process.kill()
    for process in processes:
        with suppress(psutil.Error):
            process.kill()
    server.process.wait()
    psutil.wait_procs(processes, timeout=30)


def kill_process(server: LocalServer) -> None:
    """SIGKILL to a gateway with its models in it."""
    server.kill()


class Drill:
    """One run: the application, the batch's tenant and the chatting one."""

    def __init__(self, server: Server | LocalServer, options: argparse.Namespace) -> None:
        self.server, self.options = server, options
        self.alone: list[float] = []
        self.beside: list[float] = []
        self.progress: list[int] = []

    async def run(self) -> None:
        """Make the batch, chat with and without it, kill twice, and judge the output."""
        env = self.server.folder / "data" / "demo.env"
        async with running(env) as app:
            self.tenant, key = await app.tenant("batches", {"utility": "1.0", "rpm": "1"})
            chatter = await app.tenant("chats", {"utility": "1.0"})
            app.made.clear()  # the store is killed with the application; they stay in its folder
        self.client, self.chat = self._client(key), self._client(chatter[1])
        endpoint, data = lines(self.options.kind, self.options.lines)
        file = await self.client.files.create(file=("in.jsonl", data), purpose="batch")
        made: Any = endpoint
        self.batch = await self.client.batches.create(input_file_id=file.id, endpoint=made, completion_window="24h")
        await chats(self.chat, 3, 0.0)
        kills: list[Any] = [kill_gateway, kill_application]
        if isinstance(self.server, LocalServer):
            kills = [kill_process] * 2
        for _ in range(self.options.rounds):
            await self._round(env)
            if kills:
                await self._kill(kills.pop(0))
        await self._judge(env, await self._ended(env))

    def _client(self, key: str) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.server.base_url}/v1", api_key=key, timeout=120.0, max_retries=5)

    async def _round(self, env: Path) -> None:
        await self._limit(env, "1")
        await asyncio.sleep(2.0)
        self.alone += await chats(self.chat, self.options.chats, self.options.pause, self.options.tokens)
        await self._limit(env, "unlimited")
        await asyncio.sleep(6.0)  # a held runner looks again within five seconds
        before = await self._done()
        self.beside += await chats(self.chat, self.options.chats, self.options.pause, self.options.tokens)
        self.progress.append(await self._done() - before)
        print(f"{self.options.chats} chats beside {self.progress[-1]} lines; done: {await self._done()}", flush=True)
        self._tell_chats()

    def _tell_chats(self) -> None:
        ratio = percentile(self.beside, 0.95) / percentile(self.alone, 0.95)
        for what, took in (("alone", self.alone), ("beside the batch", self.beside)):
            print(f"chats {what}: p50 {percentile(took, 0.5) * 1e3:.0f} ms, p95 {percentile(took, 0.95) * 1e3:.0f} ms")
        print(f"p95 beside the batch over alone: {ratio:.2f} (at most 1.5)", flush=True)

    async def _limit(self, env: Path, rpm: str) -> None:
        async with running(env) as app:
            await app.admin.set_tier("bench-batches", {"rpm": rpm})

    async def _done(self) -> int:
        counts = (await self.client.batches.retrieve(self.batch.id)).request_counts
        assert counts is not None
        return counts.completed + counts.failed

    async def _kill(self, kill: Any) -> None:
        print(f"{kill.__name__} at {await self._done()} lines", flush=True)
        await asyncio.to_thread(kill, self.server)
        if kill is not kill_gateway:
            await asyncio.to_thread(self.server.start)
        else:
            await asyncio.sleep(10.0)  # until Serve has noticed
        await ready(self.server)
        await chats(self.chat, 3, 0.0)

    async def _ended(self, env: Path) -> Any:
        await self._limit(env, "unlimited")
        began, before = time.perf_counter(), await self._done()
        while (now := await self.client.batches.retrieve(self.batch.id)).status in ("in_progress", "finalizing"):
            await asyncio.sleep(1.0)
        spent = time.perf_counter() - began
        print(f"alone: {(self.options.lines - before) / spent:.1f} lines a second", flush=True)
        return now

    async def _judge(self, env: Path, batch: Any) -> None:
        out = [json.loads(line) for line in (await self.client.files.content(batch.output_file_id)).text.splitlines()]
        names = Counter(line["custom_id"] for line in out)
        expected = {f"line-{at}" for at in range(self.options.lines)}
        print(f"status {batch.status}, {batch.request_counts}")
        print(f"lines of output {len(out)}, of the input {len(expected)}; missing {len(expected - set(names))}")
        print(
            f"twice {sum(count > 1 for count in names.values())}, in order {list(names) == sorted(names, key=_number)}"
        )
        async with running(env) as app:
            print(f"requests billed {await self._billed(app)}, lines {self.options.lines}")
        self._tell_chats()

    async def _billed(self, app: Running) -> int:
        await asyncio.sleep(2.0)
        return (await app.usage(self.tenant)).get("requests", 0)


def _number(name: str) -> int:
    return int(name.partition("-")[2])


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=2000)
    parser.add_argument("--kind", choices=["pictures", "text"], default="pictures")
    parser.add_argument("--rounds", type=int, default=3, help="parts without and with the batch; two kills after them")
    parser.add_argument("--chats", type=int, default=30, help="of each part")
    parser.add_argument("--tokens", type=int, default=24, help="of a chat's answer")
    parser.add_argument("--pause", type=float, default=0.3, help="seconds between two chats")
    parser.add_argument("--local", action="store_true", help="no Ray: one process has the gateway and the models")
    parser.add_argument("--folder", type=Path, help="keeps calibrations from run to run")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="batches-"))
    folder.mkdir(parents=True, exist_ok=True)
    server: Server | LocalServer = LocalServer(folder) if options.local else Server(folder, configured(folder))
    if isinstance(server, LocalServer):
        await server.prepare()
    await asyncio.to_thread(server.start)
    try:
        await ready(server)
        await Drill(server, options).run()
    finally:
        server.stop()


if __name__ == "__main__":
    asyncio.run(main())
