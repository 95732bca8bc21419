"""What an admin sets for the whole installation: `settings`, and where alerts are sent, `webhooks`."""

from __future__ import annotations

import ipaddress
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tenants.records import completeness, keyspace
from tenants.records.hashes import RawHash
from tenants.records.schema import RecordError


class Settings(BaseModel):
    """`settings`.

    Attributes:
        key_max_age_days: an API key that is older is due to be rotated; None: none ever is.
        usage_days: how long usage is kept, from its day on.
        events_days: how long single requests are kept.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    key_max_age_days: Annotated[int, Field(ge=1, le=3650)] | None = None
    usage_days: Annotated[int, Field(ge=62, le=3650)] = 400
    events_days: Annotated[int, Field(ge=1, le=400)] = 35


DEFAULTS = Settings()


def checked_url(url: str) -> str:
    """An address that may be sent to: https, or http on this machine's loopback. Raises ValueError."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("expected a URL such as https://example.com/hook") from None
    if not url.isascii() or any(c.isspace() for c in url) or not parts.hostname or port == 0 or len(url) > 2000:
        raise ValueError("expected a URL such as https://example.com/hook")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a URL must not hold a user or a password: it is shown and logged")
    if parts.scheme != "https" and not (parts.scheme == "http" and _loopback(parts.hostname)):
        raise ValueError("expected https:// (http:// is for 127.0.0.1, ::1 and localhost alone)")
    return url


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse_settings(raw: RawHash) -> Settings:
    """Parse `settings`; as they are by default where there are none. Raises RecordError, naming the field."""
    try:
        return Settings.model_validate(_fields(keyspace.SETTINGS, raw))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        message = first["msg"][:1].lower() + first["msg"][1:]
        raise RecordError(keyspace.SETTINGS, str(next(iter(first["loc"]), "")), message) from None


def parse_webhooks(raw: RawHash) -> dict[str, str]:
    """Parse `webhooks`: addresses by name. Raises RecordError, naming the one that is none."""
    fields = _fields(keyspace.WEBHOOKS, raw)
    for name, url in fields.items():
        try:
            checked_url(url)
        except ValueError as error:
            raise RecordError(keyspace.WEBHOOKS, name, str(error)) from None
        if not keyspace.is_name(name):
            raise RecordError(keyspace.WEBHOOKS, name, "is no webhook's name")
    return fields


def _fields(key: str, raw: RawHash) -> dict[str, str]:
    fields = {n.decode("utf-8", "backslashreplace"): v.decode("utf-8", "backslashreplace") for n, v in raw.items()}
    if lost := completeness.lost(fields):
        raise RecordError(key, lost, "was lost; set it again, or remove it")
    fields.pop(completeness.FIELD, None)
    return fields
