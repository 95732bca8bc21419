"""Changes to tiers, tenants and keys: validated before they are written, and each noted in the audit log.

The one service behind the `tenants` command and the administration over HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TypeVar

from tenants.admin.plans import PlanAdmin
from tenants.admin.settings import invalid
from tenants.changes import edits, index
from tenants.changes.audit import Entry
from tenants.changes.edits import AdminError, Changes, Conflict, Edit, Found, Missing
from tenants.metering.usage import read_usage
from tenants.records import keyspace, schedule
from tenants.records.hashes import RawHash, parse_project, parse_tenant, parse_tier
from tenants.records.schema import ProjectRecord, RecordError, TenantRecord, TierRecord
from tenants.reports import catalog
from tenants.store.store import READ_BATCH

Record = TypeVar("Record")
LATEST = 253402300799.0
REMEMBERED_MONTHS = 14
"""Usage is kept for 400 days."""


class TenantAdmin(PlanAdmin):
    """What admins do. Methods raise AdminError, RecordError (key and field) or Unavailable; arguments as `KeyAdmin`."""

    async def create_tier(self, name: str, fields: Changes) -> TierRecord:
        """Create a tier; `utility` is required."""
        return await self._write(keyspace.tier(name), name, fields, parse_tier, create=True)

    async def set_tier(
        self, name: str, changes: Changes, *, expect: str | None = None, at: float | None = None
    ) -> TierRecord:
        """Change fields of a tier, at a moment (unix seconds) where one is given.

        Another plan is not that of its tenants who signed one, nor of those whom it had till then.
        """
        if "plan" in changes:
            await self._sign_all(name)
        return await self._write(keyspace.tier(name), name, _later(changes, at), parse_tier, expect=expect)

    async def create_tenant(
        self, tenant_id: str, *, tier: str, name: str = "", fields: Changes | None = None, reuse: bool = False
    ) -> TenantRecord:
        """Create a tenant of an existing tier.

        Args:
            reuse: whether the name may be one that a deleted tenant had, whose usage it then goes on with.
        """
        base = {"tier": tier, "name": name or tenant_id, "status": "active"}
        if not reuse and keyspace.is_name(tenant_id):
            await self._refuse_used_name(tenant_id)
        return await self._write_tenant(tenant_id, {**base, **(fields or {})}, create=True)

    async def set_tenant(
        self,
        tenant_id: str,
        changes: Changes,
        *,
        expect: str | None = None,
        at: float | None = None,
        until: float | None = None,
    ) -> TenantRecord:
        """Change fields of a tenant; a tier field is an override.

        Args:
            at: when, in unix seconds; None: now.
            until: when each field is again what it is before; None: never.
        """
        wanted = dict(_later(changes, at))
        if until is not None:
            if until <= (at or 0.0):
                raise AdminError("The end of a change must come after its beginning.", "until")
            found = await self.found(keyspace.tenant(tenant_id))
            expect = expect or found.version  # what each field is before must be so when this is written
            now = schedule.folded(edits.texts(found.whole))
            fields = {*changes, "plan"} if "tier" in changes else set(changes)  # whose plan comes and goes with it
            wanted |= _later({field: now.get(field) for field in sorted(fields)}, until)
        return await self._write_tenant(tenant_id, wanted, expect=expect)

    async def move_plan(self, tenants: Sequence[str], reference: str) -> str:
        """Have tenants sign a version of a plan; a plan's name is its newest. The version."""
        version = await self.plan_version(reference)
        for tenant_id in tenants:
            await self._write_tenant(tenant_id, {"plan": version})
        return version

    async def create_project(self, name: str, fields: Changes) -> ProjectRecord:
        """Create a project: limits that its tenants and keys share."""
        return await self._write(keyspace.project(name), name, fields, parse_project, create=True)

    async def set_project(self, name: str, changes: Changes, *, expect: str | None = None) -> ProjectRecord:
        """Change limits of a project."""
        return await self._write(keyspace.project(name), name, changes, parse_project, expect=expect)

    async def delete_project(self, name: str, *, expect: str | None = None) -> None:
        """Delete a project that nobody belongs to."""
        found = await self.found(keyspace.project(name))
        members = [keyspace.TENANT + own for own in await self.scan(keyspace.TENANT, where=("project", name))]
        members += [keyspace.APIKEY + own for own in await self.scan(keyspace.APIKEY, where=("project", name))]
        members = sorted({*members, *await index.belonging(self._store, found.key)})
        if members:
            kind, _, first = members[0].partition(":")
            whom = f"{kind} {first[:12] if kind == 'apikey' else first}"
            raise Conflict(f"Project '{name}' has {len(members)} members, such as {whom}; take them out first.")
        await self._delete(found.key, Entry("project delete", name), expect)

    async def set_focus(
        self, tenant_id: str, model: str, strengths: Mapping[str, float], *, expect: str | None = None
    ) -> TenantRecord:
        """Set a tenant's standing focus on a model, term by term; 0 removes one."""
        if not keyspace.is_model(model):
            raise AdminError(f"'{model}' is not a model id.", "model")
        for term, strength in strengths.items():
            if not term:
                raise AdminError("A class or a term must not be empty.", "focus")
            if not -1.0 < strength < 1.0:  # also catches NaN
                raise AdminError(
                    f"The strength of '{term}' must lie strictly between -1 and 1, not {strength:g}.", term
                )
        changes = {f"focus:{model}:{term}": repr(f) if f else None for term, f in strengths.items()}
        return await self._write_tenant(tenant_id, changes, expect=expect)

    async def delete_tenant(self, tenant_id: str, *, expect: str | None = None) -> int:
        """Delete a tenant, its keys, files and batches; its usage stays. How many keys there were."""
        # Not `tenant()`: one that does not validate must be deletable.
        found = await self.found(keyspace.tenant(tenant_id))
        edits.expect(found, expect, f"Tenant '{tenant_id}'")
        # Not `keys()`: one that does not validate now would be the next tenant's of that name, once it is mended. And
        # by a scan: one that was written by hand is in no index.
        digests = await self.scan(keyspace.APIKEY, where=("tenant", tenant_id))
        for digest in digests:
            await self._delete(keyspace.apikey(digest), Entry("key delete", tenant_id, detail=digest[:12]), None)
        # The next tenant of that name must not read them; their pieces expire by themselves.
        for key in (keyspace.files, keyspace.batches, keyspace.open_batches):
            await self._store.execute("DEL", key(tenant_id))
        await self._store.execute("HDEL", keyspace.FILE_BYTES, tenant_id)
        await self._delete(found.key, Entry("tenant delete", tenant_id, detail=f"{len(digests)} keys"), expect)
        return len(digests)

    async def delete_tier(self, name: str, *, expect: str | None = None) -> None:
        """Delete a tier that no tenant is of."""
        found = await self.found(keyspace.tier(name))
        users = await self.scan(keyspace.TENANT, where=("tier", name))
        soon = [key.removeprefix(keyspace.TENANT) for key in await index.belonging(self._store, found.key)]
        if users := sorted({*users, *soon}):
            raise Conflict(f"Tier '{name}' has {len(users)} tenants, such as '{users[0]}'; move them first.")
        await self._delete(found.key, Entry("tier delete", name), expect)

    async def delete_plan(self, reference: str, *, expect: str | None = None) -> None:
        """Delete a version of a plan that nobody has, now or later."""
        found = await self.found(keyspace.plan(reference))
        now = [await self.scan(prefix, where=("plan", reference)) for prefix in (keyspace.TENANT, keyspace.TIER)]
        soon = [whose for _, whose, field, value in await self.to_come() if (field, value) == ("plan", reference)]
        users = sorted({*(f"tenant {name}" for name in now[0]), *(f"tier {name}" for name in now[1]), *soon})
        if users:
            raise Conflict(f"Plan '{reference}' is that of {len(users)}, such as {users[0]}; move them first.")
        await self._delete(found.key, Entry("plan delete", reference), expect)

    async def check(self) -> list[RecordError]:
        """As `Directory.check`, with misspelt models and classes; what was written by hand is entered first."""
        await self.enter_edits_by_hand()
        problems = await super().check() + await invalid(self._store)
        served = await catalog.read(self._store)
        await self._write_down()
        for prefix in index.KINDS if served else ():
            for found in await self.all_found(prefix):
                wrong = catalog.misspelt(served, edits.texts(found.raw))
                problems += [RecordError(found.key, field, problem) for field, problem in wrong]
        return sorted(problems, key=lambda problem: (problem.key, problem.field))

    async def enter_edits_by_hand(self) -> int:
        """Put what somebody wrote, changed or deleted without a command in the audit log and the index; how many."""
        entered = 0
        for prefix in index.KINDS:
            listed = set((await index.beginning(self._store, prefix))[0])
            keys = sorted(listed | {prefix + name for name in await self.scan(prefix)})
            for start in range(0, len(keys), READ_BATCH):
                for found in await edits.read_many(self._store, keys[start : start + READ_BATCH]):
                    kept = edits.told(found.raw) == (found.known or {}) and (found.key in listed) == bool(found.raw)
                    if not kept:
                        entered += found.by_hand() is not None
                        await edits.edit(self._store, self.log, found.key, lambda now: Edit(now.raw, (), None))
        for found in await edits.read_many(self._store, [keyspace.SETTINGS, keyspace.WEBHOOKS]):
            if found.by_hand() is not None:
                entered += 1
                await edits.edit(self._store, self.log, found.key, lambda now: Edit(now.raw, (), None))
        return entered

    async def to_come(self) -> list[tuple[float, str, str, str | None]]:
        """Every change of a tier or a tenant that is still to come: when (unix seconds), whose, field, value."""
        found = []
        for prefix in (keyspace.TIER, keyspace.TENANT):
            for record in await self.all_found(prefix):
                for field, value in schedule.folded(edits.texts(record.raw)).items():
                    if parsed := schedule.parse(field):
                        at, changed, removed = parsed
                        found.append((at, record.key.replace(":", " ", 1), changed, None if removed else value))
        return sorted(found, key=lambda change: (change[0], change[1], change[2]))

    async def _write_down(self) -> None:
        """Put changes whose moment has come in their fields, where replicas look for the levels that are sold."""
        for prefix in (keyspace.TIER, keyspace.TENANT):
            for record in await self.all_found(prefix):
                if schedule.due(edits.texts(record.raw)):
                    kind, _, name = record.key.partition(":")
                    entry = Entry(f"{kind} set", name, detail="as scheduled")

                    def build(found: Found, entry: Entry = entry) -> Edit:
                        after, commands = edits.changed(found, {})
                        return Edit(after, commands, entry)

                    await edits.edit(self._store, self.log, record.key, build)

    async def _refuse_used_name(self, tenant_id: str) -> None:
        """Raises Conflict where a tenant had the name, whose usage, quotas included, the new one would go on with."""
        if (await edits.read(self._store, keyspace.tenant(tenant_id))).raw:
            return  # which is said by who writes
        now = datetime.now(UTC)
        ahead = [now.year * 12 + now.month - 1 - back for back in range(REMEMBERED_MONTHS)]
        months = [f"{number // 12:04d}-{number % 12 + 1:02d}" for number in ahead]
        used = [u.period for u in await read_usage(self._store, tenant_id, *months) if any(u.total.values())]
        if used:
            raise Conflict(
                f"A tenant '{tenant_id}' was deleted whose usage is kept (last of {used[0]}), and quotas would"
                " count it; choose another id, or go on with its usage by --reuse."
            )

    async def _delete(self, key: str, entry: Entry, expect: str | None) -> None:
        def build(found: Found) -> Edit:
            edits.expect(found, expect, f"{entry.action.partition(' ')[0].capitalize()} '{entry.subject}'")
            return Edit({}, (("DEL", key),), entry)

        await edits.edit(self._store, self.log, key, build)

    async def _write_tenant(
        self, tenant_id: str, changes: Changes, *, create: bool = False, expect: str | None = None
    ) -> TenantRecord:
        wanted, key = dict(changes), keyspace.tenant(tenant_id)
        for field in sorted(changes, key=lambda field: schedule.parse(field) is not None):  # what is now goes first
            tier = changes[field]
            if schedule.sets(field) == "tier" and tier:
                raw = (await self._store.hashes(keyspace.tier(tier)))[0] if keyspace.is_name(tier) else {}
                if not raw:
                    raise AdminError(f"There is no tier '{tier}'.", "tier")
                before = edits.texts((await edits.read(self._store, key)).raw)
                plan = schedule.folded(edits.texts(raw)).get("plan")
                wanted |= _signed(field, plan, {**before, **wanted}, changes)
        await self._known_project(changes)
        return await self._write(key, tenant_id, wanted, parse_tenant, create=create, expect=expect)

    async def _sign_all(self, tier: str) -> None:
        """Let the tenants of a tier who signed nothing keep the plan that it has now."""
        if not keyspace.is_name(tier) or not (
            plan := edits.texts((await edits.read(self._store, keyspace.tier(tier))).raw).get("plan")
        ):
            return
        for tenant_id in await self.scan(keyspace.TENANT, where=("tier", tier)):
            found = await edits.read(self._store, keyspace.tenant(tenant_id))
            if "plan" not in edits.texts(found.raw):
                await self._write_tenant(tenant_id, {"plan": plan})

    async def _write(
        self,
        key: str,
        name: str,
        changes: Changes,
        parse: Callable[[str, RawHash, float | None], Record],
        *,
        create: bool = False,
        expect: str | None = None,
    ) -> Record:
        kind = key.partition(":")[0]
        if not keyspace.is_name(name):
            raise AdminError(f"'{name}' is not a {kind}'s name: use letters, digits, '.', '_' and '-', 64 at most.")
        await self._spelt(key, changes)
        await self._check_plans(changes)
        written: list[Record] = []

        def build(found: Found) -> Edit:
            if create and (found.raw or not found.is_hash):
                raise Conflict(f"There already is a {kind} '{name}'.")
            if not create and found.is_hash and not found.raw:
                raise Missing(f"There is no {kind} '{name}'.")
            edits.expect(found, expect, f"{kind.capitalize()} '{name}'")
            after, commands = edits.changed(found, changes)
            written[:] = [parse(name, after, None)]
            for moment in schedule.moments(edits.texts(after)):
                parse(name, after, moment)  # what it will be must be valid too
            return Edit(after, commands, Entry(f"{kind} {'create' if create else 'set'}", name))

        await edits.edit(self._store, self.log, key, build)
        return written[0]


def _later(changes: Changes, at: float | None) -> Changes:
    """Changes as fields that make them at a moment; as they are where none is given."""
    if at is None:
        return changes
    if not 0.0 < at < LATEST:
        raise AdminError("A moment must lie before the year 10000.", "at")
    return {schedule.name(at, field, value): "-" if value is None else value for field, value in changes.items()}


def _signed(field: str, plan: str | None, record: Changes, changes: Changes) -> Changes:
    """What a tenant signs that comes to a tier: its plan, unless it has a version of that already, or is given one.

    Args:
        field: by which the tenant comes to the tier, now or later.
        plan: the tier's; None: it has none.
        record: the tenant's, with what else is changed.
    """
    parsed, held = schedule.parse(field), record.get("plan")
    now = parsed is None
    names = {"plan"} if parsed is None else {schedule.name(parsed[0], "plan", value) for value in (plan, None)}
    later = [name for name in record if name != "plan" and schedule.subject(name) == "plan"]
    same = plan is not None and held is not None and held.partition("@")[0] == plan.partition("@")[0]
    if names & changes.keys() or (same and (now or not later)) or not (plan or held or later):
        return {}
    if parsed is None:
        return {"plan": plan}
    return {schedule.name(parsed[0], "plan", plan): plan or "-"}
