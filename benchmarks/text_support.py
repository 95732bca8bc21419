"""What the text benchmarks share: prompts, clients that note when each piece came, and the calibrated model."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import torch
import yaml

from benchmarks.tenancy_support import NOISE_SECRET, REPOSITORY, percentile
from deployments.config import ModelSpec
from deployments.engines.text.generator import Generator, SamplingParams
from deployments.upkeep.fields import calibration_key
from policies.calibration.calibration import Calibration
from policies.terms import Modulation, Share
from tenants.store.store import TenantStore

TEXT_MODEL = "smollm2-135m-instruct"
LEVELS = (1.0, 0.9, 0.7)
TOPICS = (
    *("the moon", "the price of bread", "learning to swim", "an old clock", "a lighthouse", "a busy kitchen"),
    *("growing tomatoes", "a lost key", "how bridges stand", "the colour green", "a winter morning", "sleep"),
    *("a long journey", "the sea", "a market", "making music"),
)
PROMPTS = tuple(f"Write a long text about {topic}." for topic in TOPICS)


@dataclass
class Answer:
    """One request as its client saw it. Times are of `time.perf_counter`.

    Attributes:
        pieces: when each piece of text came.
        tokens: of the answer.
        prompt_tokens: of the prompt; 0 where the engine does not say.
    """

    asked: float
    pieces: list[float] = field(default_factory=list)
    text: str = ""
    tokens: int = 0
    prompt_tokens: int = 0
    finish_reason: str | None = None

    @property
    def first(self) -> float:
        """Seconds to the first piece."""
        return self.pieces[0] - self.asked

    @property
    def gaps(self) -> list[float]:
        """Seconds between pieces."""
        return [later - earlier for earlier, later in zip(self.pieces, self.pieces[1:], strict=False)]


Ask = Callable[[int, str, int], Awaitable[Answer]]
"""Number of the request, prompt and most tokens, to its answer."""


@dataclass(frozen=True)
class Subject:
    """What is measured: how to ask it, and the root of the processes that it runs in (this process alone: None)."""

    ask: Ask
    root: int | None = None

    def cpu_seconds(self) -> float:
        """Processor time spent so far."""
        if self.root is None:
            return time.process_time()
        ticks = sum(_stat(pid)[1] for pid in tree(self.root))
        return ticks / os.sysconf("SC_CLK_TCK")


def tree(root: int) -> list[int]:
    """A process and all that descend from it."""
    parents = {int(entry.name): _stat(int(entry.name))[0] for entry in Path("/proc").iterdir() if entry.name.isdigit()}
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def _stat(pid: int) -> tuple[int, int]:
    """Parent, and clock ticks of processor time; zeros of a process that has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0, 0
    return int(fields[1]), int(fields[11]) + int(fields[12])


@dataclass(frozen=True)
class Burst:
    """Requests sent by so many clients at once, what they were answered, and the processor time that it took."""

    answers: list[Answer]
    seconds: float
    cpu_seconds: float

    @property
    def tokens(self) -> int:
        """Of all answers."""
        return sum(answer.tokens for answer in self.answers)

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds

    @property
    def cpu_rate(self) -> float:
        """Tokens a second of processor time: what other work on the machine disturbs least."""
        return self.tokens / self.cpu_seconds


async def burst(subject: Subject, concurrent: int, requests: int, tokens: int) -> Burst:
    """Send `requests` prompts, `concurrent` of them at any time."""
    numbers: Iterator[int] = iter(range(requests))

    async def client() -> list[Answer]:
        return [await subject.ask(number, PROMPTS[number % len(PROMPTS)], tokens) for number in numbers]

    started, used = time.perf_counter(), subject.cpu_seconds()
    done = await asyncio.gather(*(client() for _ in range(concurrent)))
    seconds, cpu = time.perf_counter() - started, subject.cpu_seconds() - used
    return Burst([answer for answers in done for answer in answers], seconds, cpu)


def spread(values: Sequence[float], unit: float = 1000.0) -> str:
    """'median / p95', by default seconds in ms."""
    return f"{statistics.median(values) * unit:.0f} / {percentile(values, 0.95) * unit:.0f}" if values else "none"


def text_spec(**changes: Any) -> ModelSpec:
    """The text model as serve_config.yaml has it, with changes."""
    config = yaml.safe_load((REPOSITORY / "serve_config.yaml").read_text())
    models = config["applications"][0]["args"]["models"]
    return ModelSpec.model_validate(next(model for model in models if model["id"] == TEXT_MODEL) | changes)


async def load_engine(spec: ModelSpec, store_url: str) -> Generator:
    """The engine in this process, with the calibration that the store has, or solved now and left there.

    So a server on the same store answers with the same noise.
    """
    os.environ["AIM_NOISE_SECRET"] = NOISE_SECRET
    secret = NOISE_SECRET.encode()
    engine = await asyncio.to_thread(Generator.load, spec, torch.device("cpu"))
    async with await TenantStore.connect(store_url) as store:
        key = calibration_key(engine, secret)
        stored = await store.load_calibration(key)
        if stored is None:
            solved = await asyncio.to_thread(lambda: engine.fit(engine.calibration_sample(), secret))
            stored = json.loads(await store.save_calibration(key, solved.to_json()))
    engine.install(Calibration.from_json(json.dumps(stored)), secret)
    return engine


def ask_engine(engine: Generator, levels: Sequence[float], flow: str = "benchmark", weight: float = 1.0) -> Ask:
    """Greedy answers of an engine in this process, the n-th at the n-th of `levels`."""

    async def ask(number: int, prompt: str, tokens: int) -> Answer:
        answer = Answer(time.perf_counter())
        ids = engine.encode_chat([{"role": "user", "content": prompt}])
        params = SamplingParams(max_tokens=tokens, temperature=0.0)
        modulation = Modulation(utility=levels[number % len(levels)])
        async for delta in engine.generate(ids, params, modulation, Share(flow=flow, weight=weight)):
            note(answer, delta.text, delta.completion_tokens, delta.prompt_tokens, delta.finish_reason)
        return answer

    return ask


def note(answer: Answer, text: str, tokens: int, prompt_tokens: int, finish_reason: str | None) -> None:
    """One more piece of an answer; `tokens` counts all so far."""
    if tokens > answer.tokens:
        answer.pieces.append(time.perf_counter())
    answer.text += text
    answer.tokens, answer.prompt_tokens = tokens, prompt_tokens
    answer.finish_reason = finish_reason or answer.finish_reason


def ask_server(client: httpx.AsyncClient, model: str, keys: Sequence[str], **extra: Any) -> Ask:
    """Greedy, streamed chat answers of a server with OpenAI's API, the n-th with the n-th of `keys`.

    Raises:
        RuntimeError: any other answer than a stream, or an error event in it.
    """

    async def ask(number: int, prompt: str, tokens: int) -> Answer:
        body = {"model": model, "messages": [{"role": "user", "content": prompt}], "temperature": 0, "stream": True}
        headers = {"authorization": f"Bearer {keys[number % len(keys)]}"}
        answer = Answer(time.perf_counter())
        sent = body | {"max_tokens": tokens} | extra
        async with client.stream("POST", "/v1/chat/completions", json=sent, headers=headers) as response:
            if response.status_code != 200:
                raise RuntimeError(f"{response.status_code} {(await response.aread()).decode()[:500]}")
            async for line in response.aiter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    read_event(answer, json.loads(line[6:]))
        return answer

    return ask


def read_event(answer: Answer, event: dict[str, Any]) -> None:
    """One server-sent event of a chat answer.

    Raises:
        RuntimeError: it is an error.
    """
    if "error" in event:
        raise RuntimeError(str(event["error"]))
    for choice in event["choices"]:
        if text := choice["delta"].get("content"):
            answer.pieces.append(time.perf_counter())
            answer.text += text
        answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
    if usage := event.get("usage"):
        answer.tokens, answer.prompt_tokens = usage["completion_tokens"], usage["prompt_tokens"]
