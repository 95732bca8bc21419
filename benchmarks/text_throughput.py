"""Text generation against its peers: the same model, prompts, threads and dtype, in interleaved rounds.

- bare: transformers' continuous batching alone, without modulation, in this process;
- clean: this engine without HTTP, every request at level 1.0;
- engine: the same, requests at levels 1.0, 0.9 and 0.7 in turn;
- server: this application over HTTP, started as `make serve` starts it, keys of those three levels in turn;
- peer: `transformers serve` over HTTP with continuous batching.

    python -m benchmarks.text_throughput                         # all five, about eight minutes
    python -m benchmarks.text_throughput --kinds clean,engine    # without Ray
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import torch
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from benchmarks.tenancy_support import free_port, percentile, serving
from benchmarks.text_support import (
    LEVELS,
    TEXT_MODEL,
    Answer,
    Burst,
    Subject,
    ask_engine,
    ask_server,
    burst,
    load_engine,
    note,
    spread,
    text_spec,
)
from deployments.config import ModelSpec
from deployments.engines.text.loading.language_models import LanguageModel, load_language_model
from deployments.engines.text.manager import STEP_TOKENS
from deployments.engines.text.scheduler import PAGE
from tenants.store.embedded import EmbeddedValkey

KINDS = ("bare", "clean", "engine", "server", "peer")
CONCURRENT = (1, 4, 8, 16)
RATIOS = (("engine", "clean"), ("clean", "bare"), ("engine", "bare"), ("server", "bare"), ("server", "peer"))


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default=",".join(KINDS), help="which of them, by commas")
    parser.add_argument("--concurrent", default=",".join(map(str, CONCURRENT)), help="clients at once, by commas")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=32, help="most tokens of an answer")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of a forward, for each of them")
    parser.add_argument("--seats", type=int, default=16, help="most sequences of a batch, for each of them")
    parser.add_argument("--folder", type=Path, help="keeps the calibration and the model's folder between runs")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    kinds, concurrent = options.kinds.split(","), [int(number) for number in options.concurrent.split(",")]
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        spec = text_spec(max_batch_size=options.seats, threads=options.threads)
        async with AsyncExitStack() as stack:
            subjects = await start(stack, kinds, spec, folder)
            results = await measure(subjects, concurrent, options.rounds, options.tokens)
    report(results, kinds, sorted(set(concurrent)))


async def start(stack: AsyncExitStack, kinds: Sequence[str], spec: ModelSpec, folder: Path) -> dict[str, Subject]:
    """Start what is to be measured."""
    folder.mkdir(exist_ok=True)
    subjects: dict[str, Subject] = {}
    if {"clean", "engine"} & set(kinds):
        valkey = await asyncio.to_thread(EmbeddedValkey, folder / "store")
        engine = await load_engine(spec, valkey.url)
        valkey.stop()
        stack.callback(engine.close)
        subjects |= {"clean": Subject(ask_engine(engine, (1.0,))), "engine": Subject(ask_engine(engine, LEVELS))}
    if {"bare", "peer"} & set(kinds):
        model = await asyncio.to_thread(load_language_model, spec, torch.device("cpu"))
        if "peer" in kinds:
            subjects["peer"] = await stack.enter_async_context(peer(model, spec, folder))
        subjects["bare"] = await stack.enter_async_context(bare(model, spec))
    if "server" in kinds:
        subjects["server"] = await stack.enter_async_context(own_server(spec, folder))
    return {kind: subjects[kind] for kind in kinds}


@asynccontextmanager
async def bare(model: LanguageModel, spec: ModelSpec) -> AsyncIterator[Subject]:
    """Transformers' continuous batching as `generate_batch` runs it, but streamed and kept between bursts."""
    config = ContinuousBatchingConfig(
        page_size=PAGE,
        num_blocks=blocks(spec),
        max_batch_tokens=STEP_TOKENS["cpu"].alone,
        max_requests_per_batch=spec.max_batch_size,
        auto_switch_to_flash=False,
    )
    generation: Any = GenerationConfig(do_sample=False, eos_token_id=sorted(model.end_tokens))  # type: ignore[no-untyped-call]
    hub_model: Any = model.model
    tokenizer: Any = model.tokenizer
    manager = hub_model.init_continuous_batching(generation, continuous_batching_config=config)
    manager.start()

    async def ask(number: int, prompt: str, tokens: int) -> Answer:
        answer, done = Answer(time.perf_counter()), asyncio.Event()
        message = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False)
        name = f"{time.perf_counter_ns()}-{number}"

        def put(output: Any) -> None:
            if output.is_finished() or output.error is not None:
                answer.finish_reason = output.error or "done"
                done.set()
            note(answer, "", len(output.generated_tokens), len(ids), None)

        manager.register_result_handler(name, put)
        manager.add_request(ids, request_id=name, max_new_tokens=tokens, streaming=True)
        await done.wait()
        if answer.finish_reason != "done":
            raise RuntimeError(f"the bare loop failed: {answer.finish_reason}")
        return answer

    try:
        yield Subject(ask)
    finally:
        manager.stop(block=True, timeout=60)
        manager.destroy()


def blocks(spec: ModelSpec) -> int:
    """Cache pages for every sequence at full context."""
    return spec.max_batch_size * -(-(spec.max_context or 2048) // PAGE)


@asynccontextmanager
async def own_server(spec: ModelSpec, folder: Path) -> AsyncIterator[Subject]:
    """This application, with a tenant of each level."""
    seats, threads = spec.max_batch_size, spec.threads
    async with serving(folder, gateways=1, model=TEXT_MODEL, max_batch_size=seats, threads=threads) as server:
        keys = []
        for level in LEVELS:
            name = f"level-{level:g}"
            await server.admin.create_tier(name, {"utility": str(level)})
            await server.admin.create_tenant(name, tier=name)
            keys.append((await server.admin.create_key(name))[0])
        async with httpx.AsyncClient(base_url=server.base_url, timeout=300.0) as client:
            yield Subject(ask_server(client, TEXT_MODEL, keys, stream_options={"include_usage": True}), server.pid)


@asynccontextmanager
async def peer(model: LanguageModel, spec: ModelSpec, folder: Path) -> AsyncIterator[Subject]:
    """`transformers serve` on the same weights, its cache and step as large as ours."""
    path, port = folder / "model", free_port()
    if not path.exists():
        await asyncio.to_thread(save, model, path)
    command = [sys.executable, "-c", "from transformers.cli.transformers import app; app()", "serve", str(path)]
    command += ["--continuous-batching", "--device", "cpu", "--dtype", "float32", "--attn-implementation", "sdpa"]
    command += ["--cb-block-size", str(PAGE), "--cb-num-blocks", str(blocks(spec)), "--port", str(port)]
    command += ["--cb-max-batch-tokens", str(STEP_TOKENS["cpu"].alone), "--host", "127.0.0.1", "--log-level", "error"]
    env = os.environ | {"OMP_NUM_THREADS": str(spec.threads), "HF_HUB_OFFLINE": "1"}
    env.pop("TRANSFORMERS_SDPA_FORCE_GQA", None)  # this engine's choice, not the peer's
    with (folder / "peer.log").open("wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=300.0) as client:
            await until_healthy(client, process, folder / "peer.log")
            yield Subject(ask_server(client, str(path), ("none",)), process.pid)
    finally:
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def save(model: LanguageModel, path: Path) -> None:
    """The dequantised weights as a folder: transformers writes no model that was read from a GGUF file."""
    config = copy.deepcopy(model.model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain: Any = type(model.model)(config)
    plain.load_state_dict(model.model.state_dict())
    plain.generation_config = model.model.generation_config
    plain.save_pretrained(path)
    model.tokenizer.save_pretrained(path)


async def until_healthy(client: httpx.AsyncClient, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until `transformers serve` answers."""
    until = time.monotonic() + 180
    while time.monotonic() < until and process.poll() is None:
        try:
            if (await client.get("/health")).status_code == 200:
                return
        except httpx.HTTPError:
            await asyncio.sleep(0.5)
    raise RuntimeError(f"transformers serve did not start:\n{log.read_text(errors='replace')[-3000:]}")


Results = dict[tuple[str, int], list[Burst]]


async def measure(subjects: dict[str, Subject], concurrent: Sequence[int], rounds: int, tokens: int) -> Results:
    """Bursts of each kind at each concurrency, the kinds next to each other and each of them first in turn."""
    for subject in subjects.values():
        await burst(subject, 3, 3, 4)
    results: Results = defaultdict(list)
    names = deque(subjects)
    for number in range(rounds):
        for clients in concurrent:
            for kind in names:
                done = await burst(subjects[kind], clients, max(2, clients), tokens)
                results[kind, clients].append(done)
            rates = " ".join(f"{kind} {results[kind, clients][-1].rate:.1f}" for kind in subjects)
            print(f"round {number + 1}, {clients} at once, tokens/s: {rates}", file=sys.stderr, flush=True)
            names.rotate()
    return results


def report(results: Results, kinds: Sequence[str], concurrent: Sequence[int]) -> None:
    """Print figures, and ratios of neighbouring bursts."""
    print("| | at once | tokens/s | tokens per s of CPU | first token, ms | between tokens, ms |")
    print("|---|---|---|---|---|---|")
    for clients in concurrent:
        for kind in kinds:
            bursts = results[kind, clients]
            rate, cpu = (
                statistics.median(values) for values in zip(*((b.rate, b.cpu_rate) for b in bursts), strict=True)
            )
            answers = [answer for done in bursts for answer in done.answers]
            first, gaps = [answer.first for answer in answers], [gap for answer in answers for gap in answer.gaps]
            print(f"| {kind} | {clients} | {rate:.1f} | {cpu:.1f} | {spread(first)} | {spread(gaps)} |")
    for above, below in RATIOS:
        if above in kinds and below in kinds:
            for clients in concurrent:
                print(
                    f"{above} / {below}, {clients} at once: {ratio(results[above, clients], results[below, clients])}"
                )


def ratio(above: Sequence[Burst], below: Sequence[Burst]) -> str:
    """Ratios of tokens a second, and a second of processor time, of the bursts of a round: medians and quartiles."""
    texts = []
    for name in ("rate", "cpu_rate"):
        ratios = [getattr(one, name) / getattr(other, name) for one, other in zip(above, below, strict=True)]
        quartiles = f"{percentile(ratios, 0.25):.3f} to {percentile(ratios, 0.75):.3f}"
        texts.append(f"{statistics.median(ratios):.3f} ({quartiles})")
    return f"{texts[0]} of wall time, {texts[1]} of processor time"


if __name__ == "__main__":
    asyncio.run(main())
