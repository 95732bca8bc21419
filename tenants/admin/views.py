"""Records as programs see them: what `--json` prints and the administration over HTTP answers."""

from __future__ import annotations

import time
from typing import Any

from tenants.admin.operators import Operator
from tenants.records import keyspace
from tenants.records.fields import iso
from tenants.records.hashes import dump_project, dump_tenant, dump_terms
from tenants.records.prices import ANY, UNITS, Plan
from tenants.records.schema import LIMIT_FIELDS, KeyRecord, ProjectRecord, RecordError, TenantRecord, TierRecord


def tenant_fields(record: TenantRecord) -> dict[str, Any]:
    """A tenant, as the strings of its record."""
    return {"id": record.id, **dump_tenant(record)}


def project_fields(record: ProjectRecord) -> dict[str, Any]:
    """A project, as the strings of its record."""
    return {"project": record.id, **dump_project(record)}


def tier_fields(record: TierRecord) -> dict[str, Any]:
    """A tier, as the strings of its record."""
    return {"tier": record.name, **dump_terms(record.terms), **record.scheduled}


def plan_fields(plan: Plan) -> dict[str, Any]:
    """A version of a plan, as the fields of its record; prices in micro-units."""
    units = {what: unit for unit, what in UNITS.items()}
    prices: dict[str, Any] = {}
    for (counter, model, level), (micro, per) in plan.prices.items():
        at = [] if level is None else [f"{level / 100:g}"]
        of = [model, *at] if at or model != ANY else []
        prices[":".join([units[counter, per], *of])] = micro
    return {"plan": plan.reference, **({"currency": plan.currency} if plan.currency else {}), **prices}


def key(record: KeyRecord, most_days: int | None = None) -> dict[str, Any]:
    """A key without its secret, which nobody has.

    Args:
        most_days: the age beyond which it is due to be rotated; None: it never is.
    """
    moments = {"created_at": record.created_at, "expires_at": record.expires_at, "last_used": record.last_used}
    scopes = None if record.scopes is None else sorted(record.scopes)
    head = {"id": record.id, "tenant": record.tenant, "label": record.label, "prefix": record.prefix}
    head |= {"project": record.project} if record.project else {}
    times = {name: moment(when) or None for name, when in moments.items()}
    now = time.time()
    age = {"age_days": record.age_days(now), "rotation_due": record.old(now, most_days)}
    return {**head, "scopes": scopes, **limits(record), "status": key_status(record), **times, **age}


def broken_key(error: RecordError) -> dict[str, Any]:
    """A key whose record does not validate."""
    return {"id": key_id(error), "status": "invalid", **broken(error)}


def broken(error: RecordError) -> dict[str, Any]:
    """A record that does not validate, in the place of one that does."""
    return {"key": error.key, "invalid": {"field": error.field, "problem": error.problem}}


def problem(error: RecordError) -> dict[str, str]:
    """A broken record."""
    return {"key": error.key, "field": error.field, "problem": error.problem}


def operator(own: Operator) -> dict[str, Any]:
    """An admin key without its secret."""
    times = {"created_at": moment(own.created_at) or None, "expires_at": moment(own.expires_at) or None}
    return {"id": own.id, "name": own.name, "role": str(own.role), "status": operator_status(own), **times}


def key_id(error: RecordError) -> str:
    """The id of a key whose record does not validate."""
    return error.key.removeprefix(keyspace.APIKEY)[:12]


def key_status(key: KeyRecord) -> str:
    """`active`, `revoked` or `expired`."""
    return "expired" if key.status == "active" and key.expired(time.time()) else key.status


def operator_status(own: Operator) -> str:
    """`active`, `revoked` or `expired`."""
    ended = own.expires_at is not None and time.time() >= own.expires_at
    return "expired" if own.status == "active" and ended else own.status


def limits(record: KeyRecord) -> dict[str, int]:
    """The limits that a key has of its own."""
    return {name: limit for name in LIMIT_FIELDS if (limit := getattr(record, name)) is not None}


def moment(when: float | None) -> str:
    """A time for people, "" where there is none."""
    return "" if when is None else iso(when)
