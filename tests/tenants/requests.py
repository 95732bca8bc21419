"""Requests of a tenant with limits, for the tests of admission and settlement."""

import time
from typing import Any

from policies.errors import LimitExceeded
from policies.terms import Tier
from tenants.live.entitlements import Entitlements, Limits
from tenants.metering.admission import Admission
from tenants.metering.settlement import Settlement, Sold, State
from tenants.metering.usage import read_days
from tenants.records.schema import LimitFields
from tenants.store.store import TenantStore

MODEL = "m"


def tenant(name: str = "acme", /, *, key: dict[str, int] | None = None, **limits: Any) -> Entitlements:
    """A tenant with limits, and with `key` those of its API key beside them."""
    return Entitlements(
        tenant=name,
        name=name,
        tier=Tier(name="silver", utility=0.9),
        limits=Limits(**limits),
        key_limits=None if key is None else LimitFields(**key),
        key_id="ab" * 6,
        models=None,
        standing_focus={},
        key_prefix="",
        scopes=None,
        key_expires_at=None,
        status="active",
        version="0" * 12,
    )


def settlement(i: int, *, state: State = State.HELD, name: str = "acme", **amounts: int) -> Settlement:
    """The i-th of many settlements."""
    used = amounts or {"requests": 1, "images": 2, "tokens_in": 3, "tokens_out": 4}
    return Settlement(Sold(name, "ab" * 6, MODEL, "silver", 0.9), f"{i:024x}", int(time.time()), state, **used)


async def total(store: TenantStore, name: str = "acme") -> dict[str, int]:
    return dict((await read_days(store, name, 1))[0].total)


async def attempt(admission: Admission, own: Entitlements, **request: Any) -> bool:
    try:
        async with admission.admit(own, model=MODEL, **request):
            return True
    except LimitExceeded:
        return False
