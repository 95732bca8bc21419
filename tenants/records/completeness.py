"""A record's seal: the names of the fields that the `tenants` command left in it, so that a lost one is noticed.

What is absent is allowed: without `rpm` there is no limit, without `status` a key is not revoked. So a field that a
slip or an expiry took away must not go unnoticed. A record without a seal, written by hand, is taken as it is; so is
standing focus, which steers a model and permits nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

FIELD = "sealed"


def names(text: str) -> set[str]:
    """The names in a seal, a comma list."""
    return {name for name in text.split(",") if name}


def over(fields: Iterable[str]) -> str:
    """The seal over fields of these names."""
    return ",".join(sorted(f for f in fields if f not in (FIELD, "last_used") and not _steers(f)))


def _steers(field: str) -> bool:
    """Whether a field is standing focus, now or later; its name may hold commas."""
    return field.startswith("focus:") or (field.startswith("at:") and ":focus:" in field)


def lost(values: Mapping[str, str]) -> str:
    """The first field that the seal names and that is not there; "" where there is none, or no seal."""
    return min(names(values.get(FIELD, "")) - values.keys(), default="")
