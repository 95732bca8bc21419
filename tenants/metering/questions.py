"""Questions to `admit.lua`, sent together: those of one tenant under the same limits are read, judged and written once.

A busy tenant's requests come many at a time, and while two round trips to a node are under way, what comes waits for
the next: by so much is each of them cheaper, for the store and for the gateway.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from redis.exceptions import ResponseError

from policies.errors import Unavailable
from tenants.metering import limits, meters
from tenants.metering.limits import Judgement
from tenants.metering.meters import Counter, Limit
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
    held_to: Sequence[Limit]
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
        self._under_way: dict[str, set[asyncio.Task[None]]] = {}

    async def ask(
        self, tenant: str, held_to: Sequence[Limit], request_id: str, wanted: Wanted, lease_s: float
    ) -> Judgement:
        """What the store says of a request, which it counts if it may run. Raises Unavailable while it is away."""
        loop = asyncio.get_running_loop()
        request = _request(held_to, request_id, wanted, lease_s)
        question = _Question(tenant, held_to, request, loop.create_future())
        home = self._store.servers.home(keyspace.request(tenant))
        waiting = self._waiting.setdefault(home, [])
        waiting.append(question)
        if len(waiting) == 1:
            # The others of this turn of the loop go with it.
            loop.call_soon(self._send, home)
        return await question.answer

    async def look(self, tenant: str, held_to: Sequence[Limit], wanted: Wanted) -> Judgement:
        """What is used of limits. Raises Unavailable while the store is away."""
        argument = self._argument(tenant, held_to, [_request(held_to, "-", wanted, 0.0)], look=True)
        (answer,) = await self._store.run(_ADMIT, _keys(tenant), (argument,))
        return limits.read_answer(held_to, answer)

    async def aclose(self) -> None:
        """End what is under way; who waits for it is told that the store is away."""
        for task in [task for running in self._under_way.values() for task in running]:
            await tasks.end(task)

    def _send(self, home: str) -> None:
        running, waiting = self._under_way.setdefault(home, set()), self._waiting.get(home)
        if not waiting or len(running) >= UNDER_WAY:
            return
        batch, self._waiting[home] = waiting[:MOST_AT_ONCE], waiting[MOST_AT_ONCE:]
        task = asyncio.create_task(self._exchange(batch), name="tenants-admission")
        running.add(task)

        def sent(done: asyncio.Task[None]) -> None:
            running.discard(done)
            self._send(home)

        task.add_done_callback(sent)
        self._send(home)

    async def _exchange(self, batch: list[_Question]) -> None:
        """Send questions and hand out the answers. One that nobody waits for any more is not sent."""
        groups = _together(question for question in batch if not question.answer.done())
        calls = [
            (_keys(own[0].tenant), (self._argument(own[0].tenant, own[0].held_to, [q.request for q in own]),))
            for own in groups
        ]
        try:
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

    def _argument(self, tenant: str, held_to: Sequence[Limit], requests: Sequence[Any], *, look: bool = False) -> str:
        # Only a concurrency limit minds requests that have ended but are not settled yet.
        limited = any(limit.counter is Counter.RUNNING for limit in held_to)
        ended = json.dumps(self._ended(tenant)) if limited else "[]"
        common = _common(tuple(held_to))
        return f'{{"look":{"true" if look else "false"},{common},"ended":{ended},"requests":{json.dumps(requests)}}}'


def _keys(tenant: str) -> list[str]:
    return [stem(tenant) for stem in STEMS[:-1]]


def _request(held_to: Sequence[Limit], request_id: str, wanted: Wanted, lease_s: float) -> list[Any]:
    tokens, costs = wanted.tokens, [(cost.amount, cost.least) for cost in wanted.costs()]
    amounts = [wanted.requests, wanted.images, tokens.most, tokens.least]
    request = [request_id, round(lease_s * 1000), *amounts, costs]
    if any(rung.percent != 100 for rung in wanted.rungs):
        request.append([wanted.shares(limit) for limit in held_to])
    return request


@lru_cache(maxsize=4096)
def _common(held_to: tuple[Limit, ...]) -> str:
    """What all questions under the same limits have in common, as a part of the argument."""
    owners = meters.owners(held_to)
    of_limits = [(owners.index(limit.owner) + 1, limit.counter, limit.period, limit.most) for limit in held_to]
    of_owners = [(owner.part, owner.suffix) for owner in owners]
    return f'"owners":{json.dumps(of_owners)},"limits":{json.dumps(of_limits)}'


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
