"""What is read of all records at once."""

from __future__ import annotations

from tenants.admin.directory import Directory
from tenants.store.store import TenantStore


async def test_the_levels_that_records_name_for_a_model(store: TenantStore) -> None:
    for key, fields in {
        "tier:gold": {"utility": "1.0"},
        "tier:silver": {"utility": "0.9", "utility:m": "0.876"},
        "tier:free": {"utility": "0.7", "utility:other": "0.3"},
        "tenant:a": {"tier": "gold", "utility": "0.5"},
        "tenant:b": {"tier": "gold", "utility:m": "0.29"},
        "tenant:c": {"tier": "free", "when_exhausted": "step(0.6:5%, 0.45)", "when_busy": "step(0.44:3)"},
        "tenant:odd": {"utility": "much"},
        "tenant:odder": {"utility": "-3"},
        "tenant:oddest": {"utility": "nan", "when_exhausted": "step(0.1", "when_busy": "often"},
    }.items():
        await store.execute("HSET", key, *(word for pair in fields.items() for word in pair))
    await store.execute("SET", "tenant:none", "not a hash")
    assert await Directory(store).levels("m") == {0.87, 0.7, 0.5, 0.29, 0.6, 0.45, 0.44}
    assert await Directory(store).levels("other") == {0.9, 0.3, 0.5, 0.6, 0.45, 0.44}
