"""Prompts in the gateway: where tokenizers come from, who waits for whom, and what a request is booked at."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from deployments.config import Task
from deployments.contracts.catalog import ModelInfo, TextDelta
from deployments.engines.text.loading.own_library import form_of
from deployments.gateway import prompts as module
from deployments.gateway.prompts import SHORT, Prompts
from deployments.prompts.encoder import Encoder
from deployments.prompts.form import Form
from deployments.prompts.library import Portable
from policies.errors import DeadlineExceeded, InvalidRequest, Unavailable
from policies.terms import Share
from tests.deployments.gateway_support import Running, Scripted
from tests.deployments.tokenizer_support import chat_tokenizer
from tests.tenants.conftest import until

CHAT = [{"role": "user", "content": "Hello <|im_end|> there"}]
OWN = Share(flow="own")


def _form() -> Form:
    tokenizer = chat_tokenizer()
    form = form_of(tokenizer, len(tokenizer), frozenset())
    assert form is not None
    return form


FORM = _form()


def info(model_id: str = "text", digest: str | None = FORM.digest) -> ModelInfo:
    return ModelInfo(id=model_id, task=Task.TEXT, classes=None, floor=0.1, context=1000, created=1, form=digest)


class Replica:
    """Hands its tokenizer on in parts, and encodes where it is asked to."""

    def __init__(self, packed: bytes = FORM.pack()) -> None:
        self.packed, self.handed, self.encoded = packed, 0, 0

    async def call(self, method: str, *args: Any, deadline: float) -> Any:
        assert method == "encode"
        self.encoded += 1
        return Encoder("text", Portable(FORM), FORM.vocabulary).prompts(args[0])[1]

    async def stream(self, method: str, *args: Any, deadline: float) -> AsyncGenerator[bytes]:
        assert method == "form"
        self.handed += 1
        for at in range(0, len(self.packed), 100):
            yield self.packed[at : at + 100]


@pytest_asyncio.fixture
async def prompts() -> AsyncIterator[Prompts]:
    made = Prompts()
    yield made
    await made.aclose()


async def encode(prompts: Prompts, replica: Replica, prompt: Any = CHAT, share: Share = OWN, **fields: Any) -> Any:
    deadline = fields.pop("deadline", asyncio.get_running_loop().time() + 60)
    return await prompts.encode(fields.pop("of", info()), replica, prompt, share, deadline=deadline)


async def fetched(prompts: Prompts, replica: Replica) -> None:
    prompts.want(info(), replica)

    async def there() -> bool:
        return prompts.has(info())

    await until(there)


async def test_a_tokenizer_comes_once_and_until_then_its_replica_encodes(prompts: Prompts) -> None:
    replica = Replica()
    first = await encode(prompts, replica)
    await fetched(prompts, replica)
    for of in (info(), info("a copy")):
        assert await encode(prompts, replica, of=of) == first
        prompts.want(of, replica)
    await encode(prompts, replica, "a" * (2 * SHORT))
    assert (replica.handed, replica.encoded) == (1, 1)
    with pytest.raises(InvalidRequest, match="no token of a copy"):
        await encode(prompts, replica, [[10**6]], of=info("a copy"))


async def test_what_a_model_cannot_hand_on_its_replica_encodes(prompts: Prompts) -> None:
    replica = Replica()
    for _ in range(2):
        await encode(prompts, replica, of=info(digest=None))
    assert (replica.handed, replica.encoded) == (0, 2)


@pytest.mark.parametrize("packed", [b"", b"no form", Form("{}", 3).pack(), FORM.pack()[:-9]])
async def test_a_tokenizer_that_cannot_be_read_is_asked_for_again_later(
    prompts: Prompts, monkeypatch: pytest.MonkeyPatch, packed: bytes
) -> None:
    replica = Replica(packed)
    for asked in (1, 1):
        await encode(prompts, replica)
        await asyncio.gather(*prompts._fetching.values())
        assert replica.handed == asked and not prompts.has(info())
    monkeypatch.setattr(module, "RETRY_S", 0.0)
    prompts._not_before.clear()
    await encode(prompts, replica)
    await asyncio.gather(*prompts._fetching.values())
    replica.packed = FORM.pack()
    await fetched(prompts, replica)


async def test_what_no_model_uses_any_more_is_dropped(prompts: Prompts) -> None:
    replica = Replica()
    await fetched(prompts, replica)
    await encode(prompts, replica)
    prompts.keep([info("another")])
    assert prompts.has(info()) and not prompts._encoders
    prompts.keep([info(digest="0" * 32)])
    assert not prompts.has(info())


class Slow:
    """An encoder that waits and computes, and remembers in which order and where it was asked."""

    def __init__(self) -> None:
        self.gate, self.order, self.threads = threading.Event(), list[str](), set[int]()

    def prompts(self, prompt: Any) -> tuple[str, list[list[int]]]:
        self.threads.add(threading.get_ident())
        if len(prompt[0]) > SHORT:
            self.gate.wait()
        self.order.append(prompt[0][0])
        until = time.thread_time() + len(prompt[0]) * 1e-7
        while time.thread_time() < until:
            pass
        return "prompt", [[1]]


@pytest_asyncio.fixture
async def slow(prompts: Prompts, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Slow]:
    made = Slow()
    monkeypatch.setattr(prompts, "_encoder", lambda _: made)
    yield made
    made.gate.set()


async def test_long_prompts_have_a_thread_and_a_flood_of_them_lets_others_by(prompts: Prompts, slow: Slow) -> None:
    replica, own = Replica(), threading.get_ident()
    await encode(prompts, replica, ["s"])
    assert slow.threads == {own}, "a short one is done at once"
    flood = [asyncio.create_task(encode(prompts, replica, ["f" * 90_000], Share(flow="flood"))) for _ in range(6)]
    await asyncio.sleep(0)
    quiet = [asyncio.create_task(encode(prompts, replica, ["q" * 2000], Share(flow="quiet"))) for _ in range(6)]
    await asyncio.sleep(0)
    await encode(prompts, replica, ["t"])
    slow.gate.set()
    await asyncio.gather(*flood, *quiet)
    assert "".join(slow.order) == "stf" + "q" * 6 + "f" * 5
    assert len(slow.threads) == 2


@pytest.mark.parametrize("prompt", [[{"role": "user", "content": ""}] * 100, ["a"] * 100, [[1] * 20_000]])
async def test_many_messages_or_texts_are_long_however_short_each_is(prompt: Any) -> None:
    assert module.size(prompt) > SHORT >= module.size(CHAT)


async def test_a_tenant_waits_with_so_many_and_until_its_deadline(prompts: Prompts, slow: Slow) -> None:
    replica, now = Replica(), asyncio.get_running_loop().time()
    waiting = [asyncio.create_task(encode(prompts, replica, ["w" * 2000])) for _ in range(1 + module.WAITING)]
    await asyncio.sleep(0)
    with pytest.raises(Unavailable):
        await encode(prompts, replica, ["w" * 2000])
    with pytest.raises(DeadlineExceeded):
        await encode(prompts, replica, ["o" * 2000], Share(flow="other"), deadline=now)
    slow.gate.set()
    await asyncio.gather(*waiting)
    assert "o" not in slow.order


async def test_the_event_loop_goes_on_while_a_long_prompt_is_encoded(prompts: Prompts) -> None:
    replica, turns = Replica(), 0
    await fetched(prompts, replica)
    task = asyncio.create_task(encode(prompts, replica, ["ab é" * 100_000]))
    while not task.done():
        await asyncio.sleep(0)
        turns += 1
    # With the interpreter's lock held by the library, there are some ten: before, and after.
    assert turns > 1000 and len((await task)[0]) > 100_000


PIECES = (TextDelta("Hello", 2, "length", 5, 2),)


class Handing(Scripted):
    """Models that hand their tokenizer on, and remember what they generate from."""

    def __init__(self) -> None:
        super().__init__(lambda *_: pytest.fail("a replica was asked to encode"))
        self.given: list[Any] = []

    async def stream(self, method: str, *args: Any, deadline: float) -> AsyncGenerator[Any]:
        if method == "form":
            yield FORM.pack()
            return
        self.given.append(args[:2])
        for piece in PIECES:
            yield piece


@pytest_asyncio.fixture
async def handing(running: Running) -> Handing:
    service = running.gateway.service
    service.models = models = Handing()
    models.add(info())

    async def there() -> bool:
        return service.prompts.has(info())

    await until(there)
    return models


async def test_a_model_whose_tokenizer_is_here_is_left_alone(
    running: Running, handing: Handing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may sleep, and to be asked would wake it."""
    service, asked, looked = running.gateway.service, list[str](), asyncio.Event()
    monkeypatch.setattr("deployments.gateway.service.FETCH_PERIOD_S", 0.0)
    monkeypatch.setattr(handing, "model", asked.append)
    monkeypatch.setattr(service.prompts, "keep", lambda _: looked.set())
    for _ in range(3):
        looked.clear()
        await looked.wait()
    assert not asked


async def test_replicas_are_given_ids_and_admission_books_exactly_those(running: Running, handing: Handing) -> None:
    tokenizer = chat_tokenizer()
    for text in ("Hello é", "a long one" * 80):
        messages = [{"role": "user", "content": text}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        body = {"model": "text", "messages": messages, "max_tokens": 10}
        answer = await running.client.post("/v1/chat/completions", json=body, headers=await running.key(tpm="3000"))
        assert handing.given[-1] == ([ids], "messages"), answer.text
        assert answer.headers["x-ratelimit-remaining-tokens"] == str(3000 - len(ids) - 10)
    messages = [{"role": "user", "content": "ab" * SHORT}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    body = {"model": "text", "messages": messages}
    answer = await running.client.post("/v1/chat/completions", json=body, headers=await running.key())
    assert answer.status_code == 400 and f"resulted in {len(ids)} tokens" in answer.text
    key = await running.key(tpm="3000")
    body = {"model": "text", "prompt": ["ab", [72, 101], "é"], "n": 2, "max_tokens": 10}
    answer = await running.client.post("/v1/completions", json=body, headers=key)
    assert handing.given[-1] == ([tokenizer("ab")["input_ids"], [72, 101], tokenizer("é")["input_ids"]], "prompt")
    assert answer.headers["x-ratelimit-remaining-tokens"] == str(3000 - (1 + 2 + 2) - 3 * 2 * 10)


async def test_what_a_tenant_may_not_have_is_not_encoded_first(running: Running, handing: Handing) -> None:
    key, slow = await running.key(rpm="2"), Slow()
    slow.gate.set()
    for text in ("short", "ab" * 300, "c" * 2 * SHORT, "short"):
        body = {"model": "text", "prompt": text, "max_tokens": 1}
        answer = await running.client.post("/v1/completions", json=body, headers=key)
        running.gateway.service.prompts._encoder = lambda _: slow  # type: ignore[method-assign,assignment,return-value]
    assert answer.status_code == 429 and answer.json()["error"]["code"] == "rate_limit_exceeded"
    assert slow.order == ["a", "s"], "the long one was not read"
