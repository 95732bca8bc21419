"""Changes to price lists: each makes a new version, which nobody is moved to unasked."""

from __future__ import annotations

from tenants.admin.keys import KeyAdmin
from tenants.changes import edits
from tenants.changes.audit import Entry
from tenants.changes.edits import AdminError, Changes, Conflict, Edit, Found, Missing
from tenants.records import completeness, keyspace, schedule
from tenants.records.prices import Plan, parse_plan
from tenants.records.schema import RecordError


class PlanAdmin(KeyAdmin):
    """What is done to plans. Methods raise AdminError, RecordError (key and field) or Unavailable."""

    async def plans(self, references: list[str] | None = None) -> dict[str, Plan | RecordError]:
        """All versions of all plans, or those named; one that does not validate is its error."""
        named = await self.names(keyspace.PLAN) if references is None else references
        return await self._all(keyspace.PLAN, parse_plan, named)

    async def plan_version(self, name: str) -> str:
        """The version that a name means: itself, `standard@1`, or the newest of a plan, `standard`.

        Raises Missing where there is none.
        """
        if "@" in name:
            await self.found(keyspace.plan(name))
            return name
        numbers = [
            int(own.partition("@")[2]) for own in await self.names(keyspace.PLAN, f"{name}@") if keyspace.is_plan(own)
        ]
        if not numbers:
            raise Missing(f"There is no plan '{name}'.")
        return f"{name}@{max(numbers)}"

    async def create_plan(self, reference: str, fields: Changes, detail: str = "") -> Plan:
        """A version of a plan, such as standard@1, with these prices; Conflict where there is one."""
        if not keyspace.is_plan(reference):
            raise AdminError(f"'{reference}' is no version of a plan; name it as standard@1.", "plan")
        key, written = keyspace.plan(reference), list[Plan]()
        await self._spelt(key, fields)

        def build(found: Found) -> Edit:
            if found.raw or not found.is_hash:
                raise Conflict(f"There already is a plan '{reference}', and a version is not changed.")
            after, commands = edits.changed(found, fields)
            written[:] = [parse_plan(reference, after)]
            return Edit(after, commands, Entry("plan create", reference, detail=detail))

        await edits.edit(self._store, self.log, key, build)
        return written[0]

    async def set_prices(self, name: str, changes: Changes, *, expect: str | None = None) -> Plan:
        """The next version of a plan: its newest with changes, or its first.

        Args:
            expect: version (`Found.version`) of the newest that somebody read; another one is Changed.
        """
        if not keyspace.is_name(name):
            raise AdminError(f"'{name}' is no plan's name: use letters, digits, '.', '_' and '-', 64 at most.", "plan")
        try:
            newest = await self.plan_version(name)
        except Missing:
            if expect is not None:
                raise
            return await self.create_plan(f"{name}@1", changes)
        found = await self.found(keyspace.plan(newest))
        edits.expect(found, expect, f"Plan '{newest}'")
        before = {field: value for field, value in edits.texts(found.whole).items() if field != completeness.FIELD}
        after = {field: value for field, value in (before | dict(changes)).items() if value is not None}
        if after == before:
            raise AdminError(f"That is what '{newest}' says already.", "plan")
        following = f"{name}@{int(newest.partition('@')[2]) + 1}"
        return await self.create_plan(following, after, f"after {newest}")

    async def _check_plans(self, fields: Changes) -> None:
        """Raises AdminError where a record is to name a version of a plan that there is not."""
        for reference in {value for field, value in fields.items() if schedule.sets(field) == "plan" and value}:
            if not (keyspace.is_plan(reference) and (await self._store.hashes(keyspace.plan(reference)))[0]):
                raise AdminError(f"There is no plan '{reference}'; name a version of one, such as standard@1.", "plan")
