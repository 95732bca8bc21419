"""Alerts: raised once for all gateways when a quota comes near its end or a key grows old, and kept until delivered."""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tenants.metering.meters import Limit
from tenants.records import keyspace
from tenants.records.fields import iso
from tenants.records.settings import parse_webhooks
from tenants.store import scripts
from tenants.store.store import TenantStore

KEPT_S = 5 * 86_400
"""Longer than a delivery is tried."""
AUDIT = "-"
"""The delivery to the audit log; a webhook's name begins with a letter or a digit."""
THRESHOLDS = (50, 80, 100)
_ALERT = scripts.load("metering/alert")


@dataclass(frozen=True, slots=True)
class Alert:
    """What is to be told.

    Attributes:
        type: `limit.threshold`, `key.rotation_due` or `test`.
        subject: what is told once; of the same it is told again after `again_s` seconds.
        tenant: whose it is.
        data: for the receiver.
    """

    type: str
    subject: str
    tenant: str
    data: dict[str, Any]
    again_s: int

    def body(self) -> str:
        """The message, in the form that Standard Webhooks recommends."""
        return json.dumps(
            {"type": self.type, "timestamp": iso(time.time()), "data": {"tenant": self.tenant, **self.data}}
        )


def threshold(tenant: str, limit: Limit, label: str, percent: int, used: int, again_s: int) -> Alert:
    """So much of a limit is used in the period of that name."""
    owner = limit.owner
    whose = {} if owner.kind == "tenant" else {owner.kind: owner.name}
    # Who is given more is told again of that.
    subject = f"{tenant}{owner.part}:{limit.field}:{label}:{limit.most}:{percent}"
    data = {**whose, "limit": limit.field, "period": label, "percent": percent, "used": used, "of": limit.most}
    return Alert("limit.threshold", subject, tenant, data, again_s)


def rotation_due(tenant: str, key_id: str, prefix: str, created_at: float, days: int) -> Alert:
    """A key that is in use is older than it should be; told once a month."""
    month = datetime.now(UTC).strftime("%Y-%m")
    data = {"key": key_id, "prefix": prefix, "created_at": iso(created_at), "max_age_days": days}
    return Alert("key.rotation_due", f"{tenant}:rotation:{key_id}:{month}", tenant, data, 32 * 86_400)


async def raise_alert(store: TenantStore, alert: Alert) -> bool:
    """Have an alert delivered to every webhook and to the audit log, unless it was raised; whether it is now.

    Raises RecordError (webhooks do not validate), Unavailable.
    """
    names = parse_webhooks((await store.hashes(keyspace.WEBHOOKS))[0])
    return await _raise(store, alert, secrets.token_hex(12), [AUDIT, *names])


async def test(store: TenantStore, name: str) -> str:
    """Have a test delivered to one webhook; its id. Raises RecordError, Unavailable, and ValueError without such."""
    if name not in parse_webhooks((await store.hashes(keyspace.WEBHOOKS))[0]):
        raise ValueError(f"there is no webhook '{name}'")
    number = secrets.token_hex(12)
    await _raise(store, Alert("test", f"test:{number}", "", {"webhook": name}, 60), number, [name])
    return number


async def _raise(store: TenantStore, alert: Alert, number: str, names: list[str]) -> bool:
    keys = [keyspace.alert_seen(alert.subject), keyspace.alert_body(number), keyspace.ALERTS_DUE]
    deliveries = [f"{number} {name}" for name in names]
    args = [max(1, alert.again_s), alert.body(), KEPT_S, int(time.time()), *deliveries]
    return bool(await store.run(_ALERT, keys, args))
