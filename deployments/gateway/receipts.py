"""The gateway's signature under its answers: the installation's secret, read at start and again now and then."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from policies.errors import Unavailable
from policies.terms import Modulation
from tenants.live.entitlements import Entitlements
from tenants.records.receipts import Said, Signer, now
from tenants.records.schema import RecordError
from tenants.store import tasks

logger = logging.getLogger("deployments.gateway.receipts")

READ_AGAIN_S = 60.0
"""So soon a secret that was changed is signed with."""
TRY_AGAIN_S = 5.0


class Receipts:
    """Signs what a request was answered at. Answers without a secret to sign with go out without a receipt: it proves
    what was given, and decides nothing.

    Made by `start`.

    Attributes:
        problem: why answers are not signed, for readiness; "" where they are.
    """

    def __init__(self, secret: Callable[[], Awaitable[bytes]]) -> None:
        self._secret = secret
        self._signer: Signer | None = None
        self.problem = ""
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, secret: Callable[[], Awaitable[bytes]]) -> Receipts:
        """Read the secret once by `secret`, and keep at it from now on."""
        receipts = cls(secret)
        await receipts.read()
        receipts._task = asyncio.create_task(receipts._run(), name="receipts")
        return receipts

    def sign(self, number: str, own: Entitlements, model: str, modulation: Modulation, reason: str = "") -> str | None:
        """The receipt of an answer that begins now to the request of an id; None: there is no secret to sign with."""
        if self._signer is None:
            return None
        said = Said(number, now(), own.tenant, model, modulation.utility, own.version, dict(modulation.focus), reason)
        return self._signer.sign(said)

    async def read(self) -> None:
        """Take the secret that is there now. One that cannot be read leaves the one in use."""
        try:
            self._signer, self.problem = Signer(await self._secret()), ""
        except (RecordError, Unavailable, OSError, ValueError) as error:
            # One that has been read goes on: the store may be away for a while.
            problem = "" if self._signer else f"answers carry no receipt: {error}"
            if problem and problem != self.problem:
                logger.warning("%s", problem)
            self.problem = problem

    async def aclose(self) -> None:
        """End the task."""
        await tasks.end(self._task)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(TRY_AGAIN_S if self._signer is None else READ_AGAIN_S)
            await self.read()
