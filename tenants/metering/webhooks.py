"""Alerts on their way: signed by the Standard Webhooks specification, tried again for days, by one gateway of many."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import logging
import secrets
import time
from collections.abc import Callable

from policies.errors import Unavailable
from tenants.changes.audit import AuditLog, Entry
from tenants.metering import delivery
from tenants.metering.alerts import AUDIT
from tenants.metering.delivery import Refused, Undelivered
from tenants.metering.settler import Settler
from tenants.metering.watch import Watch
from tenants.records import keyspace
from tenants.records.schema import RecordError
from tenants.records.settings import parse_settings, parse_webhooks
from tenants.store import scripts, tasks
from tenants.store.store import TenantStore

logger = logging.getLogger(__name__)

POLL_S = 2.0
LEAD_S = 60
"""How long a gateway that fell silent goes on to be the one that delivers."""
AT_ONCE = 8
PAUSES_S = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""Before each further attempt, as the specification has it: three days in all."""
_SWAP = scripts.load("reports/swap")


def signed(secret: str, number: str, at: int, body: bytes) -> dict[str, str]:
    """The headers of a message. Raises ValueError where the secret is none.

    HMAC-SHA256 over `<id>.<unix second>.<body>`, https://www.standardwebhooks.com.
    """
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("the webhook's secret is not base 64") from None
    code = hmac.new(key, b"%s.%d.%s" % (number.encode(), at, body), hashlib.sha256).digest()
    return {
        "Content-Type": "application/json",
        "webhook-id": number,
        "webhook-timestamp": str(at),
        "webhook-signature": f"v1,{base64.b64encode(code).decode()}",
    }


class Alerts:
    """One gateway's part in alerts: what its requests show, and, while it leads, what is to be delivered.

    Args:
        settler: told how long usage and events are kept, as the installation's settings say.

    Attributes:
        watch: told of every admission.
    """

    def __init__(
        self,
        store: TenantStore,
        settler: Settler | None = None,
        *,
        now: Callable[[], float] = time.time,
        poll_s: float = POLL_S,
    ) -> None:
        self.watch = Watch(store, now)
        self._store, self._settler, self._now, self._poll_s = store, settler, now, poll_s
        self._log = AuditLog(store, who="alerts", via="gateway")
        self._http = delivery.client()
        self._name = secrets.token_hex(8)
        self._leads = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to watch and to deliver."""
        self._task = asyncio.create_task(self._run(), name="tenants-alerts")

    async def aclose(self) -> None:
        """End what `start` began."""
        task, self._task = self._task, None
        await tasks.end(task)
        if self._leads:
            try:
                await self._store.run(_SWAP, [keyspace.ALERTS_LEADER], [self._name, "", LEAD_S])
            except Unavailable:
                pass  # it expires
        await self._http.aclose()

    async def _run(self) -> None:
        while True:
            try:
                await self.turn()
            except Unavailable:
                pass  # the store's own client says so, and finds it again
            except Exception:
                logger.exception("alerts pause")
            await asyncio.sleep(self._poll_s)

    async def turn(self) -> None:
        """Read the settings, raise what is to be raised, and deliver what is due if this gateway leads."""
        try:
            self.watch.settings = parse_settings((await self._store.hashes(keyspace.SETTINGS))[0])
            if self._settler is not None:
                self._settler.kept = self.watch.settings
        except RecordError as error:
            logger.error("the settings stay as they were: %s", error)
        await self.watch.look()
        if await self._lead():
            await self._deliver()

    async def _lead(self) -> bool:
        """Whether this gateway is the one that delivers, for another `LEAD_S`."""
        for before in (self._name, ""):
            if await self._store.run(_SWAP, [keyspace.ALERTS_LEADER], [before, self._name, LEAD_S]) == 1:
                self._leads = True
                return True
        self._leads = False
        return False

    async def _deliver(self) -> None:
        due = await self._store.execute(
            "ZRANGEBYSCORE", keyspace.ALERTS_DUE, "-inf", int(self._now()), "LIMIT", 0, AT_ONCE
        )
        if due:
            await asyncio.gather(*(self._attempt(member.decode("utf-8", "replace")) for member in due))

    async def _attempt(self, member: str) -> None:
        number, _, name = member.partition(" ")
        body = await self._store.execute("GET", keyspace.alert_body(number))
        try:
            if body is None:
                return await self._done(member)
            if name == AUDIT:
                await self._log.append(_entry(body))
            else:
                await self._post(number, name, body)
            await self._done(member)
        except (Undelivered, Refused) as error:
            await self._again(member, body, str(error))

    async def _post(self, number: str, name: str, body: bytes) -> None:
        try:
            url = parse_webhooks((await self._store.hashes(keyspace.WEBHOOKS))[0]).get(name)
        except RecordError as error:
            raise Undelivered(f"{error}") from None
        if url is None:
            return  # it was removed: nobody waits for it
        secret = await self._store.execute("GET", keyspace.webhook_secret(name))
        try:
            headers = signed((secret or b"-").decode("ascii", "replace"), number, int(self._now()), body)
        except ValueError as error:
            raise Undelivered(f"webhook {name}: {error}") from None
        await delivery.post(self._http, url, body, headers)

    async def _done(self, member: str) -> None:
        await self._store.execute("ZREM", keyspace.ALERTS_DUE, member)
        await self._store.execute("HDEL", keyspace.ALERTS_TRIED, member)

    async def _again(self, member: str, body: bytes, problem: str) -> None:
        """Later, or never: then the audit log says so. A refusal may be a slip of the other side's, and is no end."""
        number, _, name = member.partition(" ")
        tried = int(await self._store.execute("HINCRBY", keyspace.ALERTS_TRIED, member, 1))
        logger.warning("alert %s to webhook %s, attempt %d: %s", number, name, tried, problem)
        if tried > len(PAUSES_S):
            told = f"{tried} attempts; the last: {problem}"
            entry = _entry(body)
            await self._log.append(Entry("alert undelivered", entry.subject, detail=f"{number} to {name}: {told}"))
            return await self._done(member)
        due = int(self._now()) + PAUSES_S[tried - 1]
        await self._store.execute("ZADD", keyspace.ALERTS_DUE, "XX", due, member)


def _entry(body: bytes) -> Entry:
    """An alert as an entry of the audit log."""
    try:
        found = json.loads(body)
        data = dict(found["data"])
        subject = str(data.pop("tenant", ""))
        told = ", ".join(f"{name}={value}" for name, value in data.items())
        return Entry(f"alert {found['type']}", subject, detail=told)
    except (ValueError, KeyError, TypeError):
        return Entry("alert", "?", detail="its message is damaged")
