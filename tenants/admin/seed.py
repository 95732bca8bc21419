"""Three tiers with a demo tenant each, once, the file of their keys, and apart from it that of the store's address."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Awaitable, Mapping
from pathlib import Path

from tenants.admin.admin import TenantAdmin
from tenants.changes.edits import AdminError
from tenants.records import keyspace
from tenants.store.embedded import write_private
from tenants.store.store import TenantStore

ENV_FILE = "demo.env"
"""What a client needs: BASE_URL and the demo tenants' keys."""
ADMIN_FILE = "admin.env"
"""What the `tenants` command needs: REDIS_URL, of a user that may edit; OWNER_REDIS_URL, of one that may do all."""
TIERS: Mapping[str, Mapping[str, str]] = {
    "gold": {"utility": "1.0", "weight": "4"},
    "silver": {"utility": "0.9", "weight": "2", "focus_max": "0.9"},
    "free": {"utility": "0.7", "weight": "1", "rpm": "6000"},
}


async def seed_demo(
    store: TenantStore, data_dir: str | Path, base_url: str, *, redis_url: str = "", admin_url: str = ""
) -> Path:
    """Seed the store unless it was before, and write `demo.env` and `admin.env` in a folder (mode 0600).

    A later call rewrites the addresses and keeps the keys. A key is made anew only where the file lost it.

    Args:
        redis_url: what OWNER_REDIS_URL shall say; default: what the store was reached by.
        admin_url: what REDIS_URL shall say; default: as OWNER_REDIS_URL.

    Returns:
        The path of demo.env.

    Raises:
        Unavailable: the store is away.
        RecordError: an admin's edit broke a demo record.
    """
    path = Path(data_dir) / ENV_FILE
    kept = read_env(path)
    admin = TenantAdmin(store, who="seed", unchecked=True)
    if not await store.execute("EXISTS", keyspace.SEED_GUARD):
        for name, fields in TIERS.items():
            # A seed that was cut short, or an admin before it, may have made some of them.
            await _unless_there(admin.create_tier(name, fields))
            await _unless_there(admin.create_tenant(f"demo-{name}", tier=name, name=f"Demo {name}", reuse=True))
        await store.execute("SET", keyspace.SEED_GUARD, "1", "NX")
    for name in TIERS:
        variable = f"{name.upper()}_KEY"
        if not await _known(store, kept.get(variable, "")) and (await store.hashes(keyspace.tenant(f"demo-{name}")))[0]:
            kept[variable] = (await admin.create_key(f"demo-{name}", label="demo"))[0]
    values = {"BASE_URL": base_url, **{k: v for k, v in kept.items() if k.endswith("_KEY")}}
    owner = redis_url or store.url
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _write(path, values)
    _write(path.with_name(ADMIN_FILE), {"REDIS_URL": admin_url or owner, "OWNER_REDIS_URL": owner})
    return path


def _write(path: Path, values: Mapping[str, str]) -> None:
    write_private(path, "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items()))


def read_env(path: Path) -> dict[str, str]:
    """The variables of a file of `NAME=value` lines, as a shell would read them; none where there is no file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    values = {}
    for line in lines:
        name, _, value = line.removeprefix("export ").partition("=")
        words = shlex.split(value, comments=True)
        if name.strip().isidentifier() and words:
            values[name.strip()] = words[0]
    return values


async def _known(store: TenantStore, secret: str) -> bool:
    return bool(secret) and bool((await store.hashes(keyspace.apikey(keyspace.key_digest(secret))))[0])


async def _unless_there(creation: Awaitable[object]) -> None:
    with contextlib.suppress(AdminError):
        await creation
