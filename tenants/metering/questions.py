"""Questions to `admit.lua`, sent together: those of one tenant under the same limits are read, judged and written once.

A busy tenant's requests come many at a time, and while two round trips to a node are under way, what comes waits for
the next: by so much is each of them cheaper, for the store and for the gateway.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from redis.exceptions import ResponseError

from policies.errors import Unavailable
from tenants.metering import limits
from tenants.metering.limits import Judgement
from tenants.metering.meters import HeldTo
from tenants.metering.settlement import STEMS
from tenants.metering.wanted import Wanted
from tenants.records import keyspace
from tenants.store import scripts, tasks
from tenants.store.store import TenantStore

MOST_AT_ONCE = 256
"""Questions in one round trip."""
MOST_OF_ONE = 32
"""Questions of one tenant in one script, which nothing else runs beside."""
UNDER_WAY = 2
"""Round trips to a node at a time."""
_ADMIT = scripts.load("metering/meters", "metering/admit")


@dataclass(frozen=True, slots=True, eq=False)
class _Question:
    tenant: str
    held_to: HeldTo
    request: list[Any]
    answer: asyncio.Future[Judgement]


class Questions:
    """Asks the store whether requests may run.

    Args:
        ended: requests of a tenant that have ended here and are not settled yet.
    """

    def __init__(self, store: TenantStore, ended: Callable[[str], list[str]]) -> None:
        self._store = store
        self._ended = ended
        self._waiting: dict[str, list[_Question]] = {}
        self._under_way: dict[str, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def ask(self, tenant: str, held_to: HeldTo, request_id: str, wanted: Wanted, lease_s: float) -> Judgement:
        """What the store says of a request, which it counts if it may run. Raises Unavailable while it is away."""
        request = _request(held_to, request_id, wanted, lease_s)
        question = _Question(tenant, held_to, request, asyncio.get_running_loop().create_future())
        home = self._store.servers.home(keyspace.request(tenant))
        waiting = self._waiting.setdefault(home, [])
        waiting.append(question)
        if len(waiting) == 1:
            try:
                await asyncio.sleep(0)  # the others of this turn of the loop go with it
            except BaseException:
                question.answer.cancel()
                self._send(home)
                raise
            if self._waiting[home] == [question] and self._under_way.get(home, 0) < UNDER_WAY:
                self._waiting[home] = []
                return await self._ask_alone(home, question)
            self._send(home)
        return await question.answer

    async def _ask_alone(self, home: str, question: _Question) -> Judgement:
        """Ask in the caller's own task: nobody shares the answer, and a caller that leaves undoes its admission."""
        argument = self._argument(question.tenant, question.held_to, [question.request])
        self._begin(home)
        try:
            (answer,) = await self._store.run(_ADMIT, _keys(question.tenant), (argument,))
        finally:
            self._end(home)
        return limits.read_answer(question.held_to, answer)

    async def look(self, tenant: str, held_to: HeldTo, wanted: Wanted) -> Judgement:
        """What is used of limits. Raises Unavailable while the store is away."""
        argument = self._argument(tenant, held_to, [_request(held_to, "-", wanted, 0.0)], look=True)
        (answer,) = await self._store.run(_ADMIT, _keys(tenant), (argument,))
        return limits.read_answer(held_to, answer)

    async def aclose(self) -> None:
        """End what is under way; who waits for it is told that the store is away."""
        for task in [*self._tasks]:
            await tasks.end(task)

    def _send(self, home: str) -> None:
        """Send what waits for a node, as much as may be under way."""
        while (waiting := self._waiting.get(home)) and self._under_way.get(home, 0) < UNDER_WAY:
            batch, self._waiting[home] = waiting[:MOST_AT_ONCE], waiting[MOST_AT_ONCE:]
            self._begin(home)
            task = asyncio.create_task(self._exchange(batch), name="tenants-admission")
            self._tasks.add(task)
            task.add_done_callback(partial(self._sent, home))

    def _sent(self, home: str, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._end(home)

    def _begin(self, home: str) -> None:
        self._under_way[home] = self._under_way.get(home, 0) + 1

    def _end(self, home: str) -> None:
        self._under_way[home] -= 1
        self._send(home)

    async def _exchange(self, batch: list[_Question]) -> None:
        """Send questions and hand out the answers. One that nobody waits for any more is not sent."""
        try:
            groups = _together(question for question in batch if not question.answer.done())
            calls = [
                (_keys(own[0].tenant), (self._argument(own[0].tenant, own[0].held_to, [q.request for q in own]),))
                for own in groups
            ]
            answers = await self._store.run_many(_ADMIT, calls, partial=True) if calls else []
            for own, answer in zip(groups, answers, strict=True):
                self._hand_out(own, answer)
        except BaseException as error:
            for question in batch:
                _fail(question, error)
            if not isinstance(error, Exception):
                raise

    def _hand_out(self, own: Sequence[_Question], answer: Any) -> None:
        if isinstance(answer, ResponseError):
            answer = self._store.servers.refused(answer)
        if isinstance(answer, Unavailable):
            for question in own:
                _fail(question, answer)
            return
        for question, text in zip(own, answer, strict=True):
            if question.answer.done():
                continue
            try:
                question.answer.set_result(limits.read_answer(question.held_to, text))
            except Unavailable as error:
                question.answer.set_exception(error)

    def _argument(self, tenant: str, held_to: HeldTo, requests: Sequence[Any], *, look: bool = False) -> str:
        # Only a concurrency limit minds requests that have ended but are not settled yet.
        ended = json.dumps(self._ended(tenant)) if held_to.running else "[]"
        head = f'{{"look":{"true" if look else "false"},{held_to.argument},"ended":{ended},"requests":'
        return f"{head}{json.dumps(requests)}}}"


def _keys(tenant: str) -> list[str]:
    return [stem(tenant) for stem in STEMS[:-1]]


def _request(held_to: HeldTo, request_id: str, wanted: Wanted, lease_s: float) -> list[Any]:
    tokens, costs = wanted.tokens, [(cost.amount, cost.least) for cost in wanted.costs()]
    amounts = [wanted.requests, wanted.images, tokens.most, tokens.least]
    request = [request_id, round(lease_s * 1000), *amounts, costs]
    if any(rung.percent != 100 for rung in wanted.rungs):
        request.append([wanted.shares(limit) for limit in held_to])
    return request


def _together(questions: Iterable[_Question]) -> list[list[_Question]]:
    """Questions of the same tenant and limits together, in their order, a few dozen at most."""
    groups: dict[tuple[str, int], list[list[_Question]]] = {}
    for question in questions:
        own = groups.setdefault((question.tenant, hash(question.held_to)), [])
        same = next((g for g in reversed(own) if len(g) < MOST_OF_ONE and g[0].held_to == question.held_to), None)
        if same is None:
            own.append([question])
        else:
            same.append(question)
    return [group for own in groups.values() for group in own]


def _fail(question: _Question, error: BaseException) -> None:
    """Each gets an error of its own: one that several raise would gather all their tracebacks."""
    if question.answer.done():
        return
    if isinstance(error, Unavailable):
        own = Unavailable(error.message, retry_after=error.retry_after, code=error.code)
        own.__cause__ = error.__cause__
        for note in getattr(error, "__notes__", ()):
            own.add_note(note)
        question.answer.set_exception(own)
    elif isinstance(error, Exception):
        question.answer.set_exception(error)
    else:
        question.answer.cancel()
