"""The servers of one store: one, or the nodes of a Cluster, each behind a breaker of its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ResponseError

from policies.errors import Unavailable
from tenants.store import errors
from tenants.store.connection import describe
from tenants.store.link import Command, open_link
from tenants.store.node import LONGEST_PROBE_S, SETTING_UP, Node

logger = logging.getLogger(__name__)

MAP = "(map)"
"""Stands for a Cluster as a whole, while it is not known which node serves what."""
T = TypeVar("T")


class Servers:
    """Sends each command to its node. Raises Unavailable where that is away, at once as soon as that is known.

    Args:
        timeout_s: bound of each answer.
        locate: asked for the URL while a server is away, where it can move.
    """

    def __init__(self, url: str, timeout_s: float, locate: Callable[[], Awaitable[str]] | None) -> None:
        self._timeout_s = timeout_s
        self._locate = locate
        self._nodes: dict[str, Node] = {}
        self._open(url)

    def _open(self, url: str) -> None:
        self.url = url
        self.address = describe(url)
        # The client's own limit comes after ours, which knows of an event loop that was late.
        self._link = open_link(url, 50 * self._timeout_s)

    async def connect(self) -> None:
        """Reach the server; of a Cluster one node at least: it is there while one is, whose tenants need it."""
        names = await self.primaries()
        pings = (self._guarded(name, partial(self._link.ping, name), SETTING_UP) for name in names)
        outcomes = await asyncio.gather(*pings, return_exceptions=True)
        failures = [error for error in outcomes if isinstance(error, BaseException)]
        if len(failures) == len(outcomes) or not all(isinstance(error, Unavailable) for error in failures):
            raise failures[0]

    async def aclose(self) -> None:
        """Close all connections."""
        for node in self._nodes.values():
            await node.aclose()
        await self._link.aclose()

    @property
    def clustered(self) -> bool:
        """Whether keys live on several nodes."""
        return self._link.clustered

    @property
    def problem(self) -> str:
        """What is wrong with the store, for readiness; "" where nothing is, or one node of a Cluster alone is away."""
        known = self._known()
        if known and all(away := [node.breaker.open_for() for node in known]):
            return f"the tenant store has been away for {max(away):.0f} s; known keys go on under local limits"
        if refusing := next((node.refusing for node in known if node.refusing), ""):
            return f"the tenant store refuses to count ({refusing}); known keys go on under local limits"
        return ""

    @property
    def partly_away(self) -> str:
        """Which nodes of a Cluster do not answer while others do; "" where all answer."""
        away = {node.address: node.breaker.open_for() for node in self._known() if not node.breaker.closed}
        if not away or self.problem:
            return ""
        names = ", ".join(sorted(away))
        return f"{names} is away for {max(away.values()):.0f} s: what lives there goes on under local limits"

    def home(self, key: str) -> str:
        """The node on which a key lives, by name."""
        return self._link.home(key)

    def away_for(self, key: str) -> float:
        """Seconds since the node of a key stopped to answer; 0 while it answers."""
        return max(self._node(name).breaker.open_for() for name in (MAP, self.home(key)))

    async def note_refusals(self, keys: Sequence[str], answers: Sequence[Any]) -> None:
        """Remember which nodes refuse to count, by what they answered for each key."""
        refused = any(isinstance(answer, ResponseError) for answer in answers)
        if not refused and not any(node.refusing for node in self._nodes.values()):
            return  # as nearly always
        said: dict[str, str] = {}
        for key, answer in zip(keys, answers, strict=True):
            if not isinstance(answer, Unavailable):
                word = errors.code(answer) if isinstance(answer, ResponseError) and errors.passes(answer) else ""
                said[self.home(key)] = said.get(self.home(key)) or word
        for name, word in said.items():
            self._node(name).refusing = word
            if word == "READONLY":
                # A name may lead to another server since a failover: new connections ask for it again.
                await self._link.drop_idle(name)

    async def push_connections(self) -> dict[str, AbstractConnection]:
        """RESP3 connections of their own, for server-side invalidation, by node: to each that answers, one at least."""
        return await self._link.push_connections()

    async def release_push_connections(self, connections: Sequence[AbstractConnection]) -> None:
        """Close what `push_connections` gave."""
        await self._link.release_push_connections(connections)

    async def primaries(self) -> list[str]:
        """The nodes that serve something, by name."""
        await self._learn()
        return sorted(self._link.primaries())

    def absent(self, connections: Mapping[str, AbstractConnection]) -> frozenset[str]:
        """The nodes to which `push_connections` could not give one, or that began to serve something since."""
        return self._link.primaries() - connections.keys()

    def _node(self, name: str) -> Node:
        node = self._nodes.get(name)
        if node is None:
            address = f"{self.address} node {name}" if name else self.address
            ping = partial(self._ping, name)
            node = self._nodes[name] = Node(address, self._timeout_s, ping, self._follow)
        return node

    async def _ping(self, name: str) -> None:
        await (self._link.learn() if name == MAP else self._link.ping(name))

    def _known(self) -> list[Node]:
        """The nodes that matter: of a Cluster those that serve something, and the map where it could not be had."""
        primaries = self._link.primaries()
        mapless = [node for name, node in self._nodes.items() if name == MAP and not node.breaker.closed]
        return mapless if mapless else [node for name, node in self._nodes.items() if name in primaries]

    async def _guarded(self, name: str, operation: Callable[[], Awaitable[T]], patience: float = 1.0) -> T:
        try:
            return await self._node(name).guarded(operation, lambda: self._link.cold(name), patience)
        except ResponseError as error:
            raise self.refused(error) from error

    def refused(self, error: ResponseError) -> Unavailable:
        """A server's refusal as an error of a request; the log says which."""
        logger.error("tenant store %s refused a command: %s", self.address, errors.code(error))
        return errors.unavailable(error)

    async def _learn(self) -> None:
        """Find out which node serves what, once."""
        if not self._link.mapped:
            await self._guarded(MAP, self._link.learn, SETTING_UP)

    async def send(
        self, commands: Sequence[Command], homes: Sequence[str] | None = None, *, partial: bool = False
    ) -> list[Any]:
        """Run each command where it belongs, or on the node named for it; a ResponseError stands in its answer's place.

        Args:
            partial: so does Unavailable where a node is away, which otherwise fails them all.
        """
        if not self._link.mapped:
            await self._learn()
        homes = homes or self._link.homes(commands)
        if len(set(homes)) == 1:
            try:
                return await self._on(homes[0], commands)
            except Unavailable as error:
                if not partial:
                    raise
                return [error] * len(commands)
        groups: dict[str, list[int]] = {}
        for number, home in enumerate(homes):
            groups.setdefault(home, []).append(number)
        answers: list[Any] = [None] * len(commands)
        shares = [self._on(home, [commands[number] for number in numbers]) for home, numbers in groups.items()]
        outcomes = await asyncio.gather(*shares, return_exceptions=True)
        for numbers, outcome in zip(groups.values(), outcomes, strict=True):
            if isinstance(outcome, BaseException):
                if not partial or not isinstance(outcome, Unavailable):
                    raise outcome
                outcome = [outcome] * len(numbers)
            for number, answer in zip(numbers, outcome, strict=True):
                answers[number] = answer
        return answers

    async def ask(self, name: str) -> None:
        """Ask a node for an answer. Raises Unavailable while it gives none."""
        await self._guarded(name, partial(self._link.ping, name))

    async def _on(self, home: str, commands: Sequence[Command]) -> list[Any]:
        return await self._guarded(home, lambda: self._link.pipeline(commands, home))

    async def _follow(self) -> None:
        """Go where the store has moved to."""
        if self._locate is None:
            return
        try:
            async with asyncio.timeout(LONGEST_PROBE_S):
                url = await self._locate()
        except Exception as error:  # whoever knows the address may be restarting too
            logger.debug("the store's address is not known now: %s", type(error).__name__)
            return
        if url != self.url:
            link = self._link
            self._open(url)
            logger.warning("tenant store has moved to %s", self.address)
            await link.aclose()
