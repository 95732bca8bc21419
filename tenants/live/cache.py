"""Who a key is and what it may do, from memory: dropped when the server announces an edit, kept while it is away."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from policies.errors import NotEntitled, ServiceError, Unauthenticated, Unavailable
from tenants.live.entitlements import Entitlements
from tenants.live.invalidation import InvalidationFeed
from tenants.live.resolution import Refusal, Resolution, resolve
from tenants.records import keyspace
from tenants.records.fields import iso
from tenants.store import tasks
from tenants.store.store import READ_BATCH, TenantStore

logger = logging.getLogger(__name__)

CAPACITY = 100_000
"""Most keys, and most unknown ones, that are remembered: about 150 MB if all are in use."""
LONGEST_KEY = 512
UNANNOUNCED_TTL_S = 1.0
"""How long an entry is used while nothing announces its edits."""
REREADS_PER_S = 100.0
"""How often entries are read again while edits are announced: behind announcements that is a net, not a need."""
TOUCH_EVERY_S = 300.0
TOUCH_FLUSH_S = 5.0
TOUCH_KEPT_S = 400 * 86400
_NEVER = float("-inf")
INVALID = "invalid_api_key"
NOTHING_THERE = "store_empty"
EMPTY = "the tenant store is empty: it has no installation in it; restore it from a backup, or run `tenants init`"


@dataclass(slots=True, weakref_slot=True)
class _Source:
    """A Redis key from which entries were resolved, shared by them: an edit marks it, however many they are."""

    edited: bool = False


@dataclass(slots=True, eq=False)
class _Session:
    """A time in which every edit is announced, shared by what was fetched in it; `until` is when it was last alive."""

    until: float = float("-inf")


@dataclass(slots=True)
class _Entry:
    """A resolution, what it came from, when it was fetched (monotonic seconds), and which session announces edits."""

    resolution: Resolution
    sources: tuple[_Source, ...]
    fetched_at: float
    session: _Session

    @property
    def edited(self) -> bool:
        return any(source.edited for source in self.sources)

    @property
    def outdated(self) -> bool:
        """Whether a record behind it was edited, or has changed by itself since."""
        changes_at = self.resolution.changes_at
        return self.edited or (changes_at is not None and time.time() >= changes_at)


class EntitlementCache:
    """Entitlements by API key, for one gateway replica.

    Args:
        ttl_s: how long an entry is used without asking the store again while edits are announced, longer where so many
            keys are in use that this would be more than `REREADS_PER_S`; while they are not, at most a second.
        stale_grace_s: how long known keys go on while the store is away.
    """

    def __init__(
        self, store: TenantStore, ttl_s: float = 60.0, stale_grace_s: float = 300.0, *, capacity: int = CAPACITY
    ) -> None:
        self._store = store
        self._ttl = ttl_s
        self._grace = stale_grace_s
        self._capacity = capacity
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._sources: weakref.WeakValueDictionary[str, _Source] = weakref.WeakValueDictionary()
        self._unknown: OrderedDict[str, float] = OrderedDict()
        self._fetching: dict[str, asyncio.Task[Resolution | None | Unavailable]] = {}
        self._session = _Session()
        self._epoch = 0
        self._last_tier: tuple[str, ...] = ()
        self._installed: bool | None = None
        self._touched: dict[str, float] = {}
        self._to_note: set[str] = set()
        self._feed = InvalidationFeed(store, self)
        self._toucher: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to listen for edits. Raises nothing while the store is away."""
        await self._feed.start()
        if self._toucher is None:
            self._toucher = asyncio.create_task(self._touch_loop(), name="tenants-last-used")

    async def aclose(self) -> None:
        """Stop listening. The store stays open."""
        toucher, self._toucher = self._toucher, None
        await tasks.end(toucher)
        await self._feed.aclose()
        for task in list(self._fetching.values()):
            await tasks.end(task)

    @property
    def healthy(self) -> tuple[bool, str]:
        """Whether the store answers, and what is wrong; for readiness, never for liveness."""
        if problem := self._store.servers.problem:
            return False, problem
        if self._installed is False:
            return False, EMPTY
        if not self._feed.connected:
            refused = self._feed.problem.startswith("the server refuses")
            return refused, f"edits of entitlements are not announced: {self._feed.problem}"
        return True, self._store.servers.partly_away or "ok"

    def _fresh_for(self, keys: Iterable[str] = ()) -> float:
        if not self._feed.hears(keys):
            return min(self._ttl, UNANNOUNCED_TTL_S)
        return max(self._ttl, len(self._entries) / REREADS_PER_S)

    async def authenticate(self, api_key: str) -> Entitlements:
        """The entitlements behind an API key.

        Raises:
            Unauthenticated: no key, or one that is unknown, revoked or expired (`invalid_api_key`).
            NotEntitled: the tenant is suspended (`tenant_suspended`), or its records are broken
                (`entitlements_invalid`; key and field are in the log).
            Unavailable: the store is away and the key not known, or the grace is over; or the store is empty
                (`store_empty`), so that nobody's key is known.
        """
        if not api_key:
            raise Unauthenticated("No API key was given; send it as `Authorization: Bearer <key>`.", code=INVALID)
        if len(api_key) > LONGEST_KEY:
            raise _unknown_key()
        return await self.known(keyspace.key_digest(api_key), keyspace.named_tenant(api_key))

    async def known(self, digest: str, tenant: str | None) -> Entitlements:
        """As `authenticate`, of a key whose SHA-256 alone is at hand: of work that goes on after its request.

        Args:
            tenant: whose it is likely to be; None: nobody knows.
        """
        resolution = self._cached(digest) or await self._refreshed(digest, tenant)
        # Asked at every use: a key may run out while it is cached.
        if resolution.expires_at is not None and time.time() >= resolution.expires_at:
            raise _unknown_key()
        if isinstance(resolution.outcome, Refusal):
            raise _error(resolution.outcome)
        self._touch(digest)
        return resolution.outcome

    def _cached(self, digest: str) -> Resolution | None:
        now = time.monotonic()
        entry = self._entries.get(digest)
        if entry is not None:
            self._entries.move_to_end(digest)
            fresh = entry.session is self._session and now - entry.fetched_at < self._fresh_for(entry.resolution.keys)
            return entry.resolution if fresh and not entry.outdated else None
        if self._unknown.get(digest, _NEVER) > now:
            raise _unknown_key()
        return None

    async def _refreshed(self, digest: str, tenant: str | None) -> Resolution:
        task = self._fetching.get(digest)
        if task is None:
            task = self._fetching[digest] = asyncio.create_task(self._fetch(digest, tenant))
            task.add_done_callback(lambda _: self._fetching.pop(digest, None))
        # One client that hangs up must not fail the others that wait for the same answer.
        found = await asyncio.shield(task)
        if isinstance(found, Unavailable):
            return self._despite(digest, found)
        if found is None:
            raise _unknown_key()
        return found

    async def _fetch(self, digest: str, named_tenant: str | None) -> Resolution | None | Unavailable:
        epoch = self._epoch
        known = self._entries.get(digest)
        likely = known.resolution.keys if known else ()
        if not known and named_tenant is not None:
            likely = (keyspace.apikey(digest), keyspace.tenant(named_tenant), *self._last_tier)
        try:
            found = await resolve(self._store, digest, likely)
            if found is None and not await self._is_installed():
                said = "The records of this service are not there; its operator must restore them."
                return Unavailable(said, retry_after=30, code=NOTHING_THERE)
        except Unavailable as error:
            return error
        now = time.monotonic()
        self._entries.pop(digest, None)
        if found is None:
            if epoch == self._epoch:  # else it may have been created meanwhile
                self._unknown[digest] = now + self._fresh_for([keyspace.apikey(digest)])
            while len(self._unknown) > self._capacity:
                self._unknown.popitem(last=False)
            return None
        self._log_refusal(known, found)
        self._last_tier = tuple(key for key in found.keys if key.startswith((keyspace.TIER, keyspace.PLAN)))
        # An edit announced while the answer was on its way may be newer than it: good for this request, not the next.
        session = self._session if epoch == self._epoch else _Session()
        sources = tuple(self._sources.setdefault(key, _Source()) for key in found.keys)
        self._entries[digest] = _Entry(found, sources, now, session)
        while len(self._entries) > self._capacity:
            self._entries.popitem(last=False)
        return found

    async def _is_installed(self) -> bool:
        """Whether the store is an installation's; else a key that it lacks may be good."""
        if self._installed is not True or not self._feed.hears([keyspace.INSTALLATION]):
            epoch = self._epoch
            found = await self._store.execute("GET", keyspace.INSTALLATION) is not None
            if not found and self._installed is not False:
                logger.error("%s", EMPTY)
            if epoch == self._epoch:  # else it may have been put there, or taken away, meanwhile
                self._installed = found
            return found
        return True

    def _despite(self, digest: str, error: Unavailable) -> Resolution:
        """What is known while the store is away."""
        entry = self._entries.get(digest)
        # What was edited is not even good for an outage.
        if entry is not None and not entry.outdated:
            announced = entry.session is self._session and self._feed.hears(entry.resolution.keys)
            current_until = max(entry.fetched_at, self._feed.alive_at if announced else entry.session.until)
            if time.monotonic() - current_until <= self._grace:
                return entry.resolution
        code = error.code if error.code == NOTHING_THERE else "store_unavailable"
        raise Unavailable(error.message, retry_after=error.retry_after, code=code)

    def _log_refusal(self, known: _Entry | None, found: Resolution) -> None:
        problem = found.problem
        if problem is not None and (known is None or str(known.resolution.problem) != str(problem)):
            logger.error("entitlements_invalid: %s field %r: %s", problem.key, problem.field, problem.problem)

    def changed(self, key: str | None) -> None:
        """`key` was edited, or everything (None): what came from it is not used again."""
        self._epoch += 1
        if key is None or key == keyspace.INSTALLATION:
            self._installed = None
        if key is None:
            self._entries.clear()
            self._unknown.clear()
            return
        self._unknown.pop(key.removeprefix(keyspace.APIKEY), None)
        if (source := self._sources.pop(key, None)) is not None:
            source.edited = True

    def resumed(self) -> None:
        """The feed is up again; what was edited meanwhile is not known, so every entry is asked for at its next use."""
        self._epoch += 1
        self._installed = None
        self._unknown.clear()
        self._session = _Session()

    def lost(self, alive_at: float) -> None:
        """The feed is down; every entry that was current then was so until `alive_at`."""
        self._session.until = alive_at

    def _touch(self, digest: str) -> None:
        now = time.time()
        if now - self._touched.get(digest, _NEVER) >= TOUCH_EVERY_S:
            self._touched[digest] = now
            self._to_note.add(digest)

    async def _touch_loop(self) -> None:
        while True:
            await asyncio.sleep(TOUCH_FLUSH_S)
            waiting = list(self._to_note)
            for start in range(0, len(waiting), READ_BATCH):
                batch = waiting[start : start + READ_BATCH]
                # Rough on purpose: a use costs the store one write in five minutes.
                notes = [("SET", keyspace.used(d), iso(self._touched[d]), "EX", TOUCH_KEPT_S) for d in batch]
                with contextlib.suppress(Unavailable):
                    await self._store.pipeline(notes)
                    self._to_note.difference_update(batch)
            if len(self._touched) > 2 * self._capacity:
                self._touched = {digest: self._touched[digest] for digest in self._to_note}


def _unknown_key() -> Unauthenticated:
    return Unauthenticated("The API key is not valid: it is unknown, revoked or expired.", code=INVALID)


def _error(refusal: Refusal) -> ServiceError:
    if refusal.code == INVALID:
        return _unknown_key()
    return NotEntitled(refusal.message, code=refusal.code)
