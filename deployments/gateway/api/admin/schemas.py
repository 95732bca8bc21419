"""Bodies and parameters of administration."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Path, Query
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from deployments.gateway.api.schemas import ERRORS
from tenants.changes.edits import AdminError, Changes
from tenants.records.fields import listed

REFUSALS: dict[int | str, dict[str, Any]] = {
    **ERRORS,
    409: {"description": "It is there already, still in use, or its record is broken."},
    412: {"description": "It was changed since it was read."},
    428: {"description": "If-Match is missing."},
}
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
Name = Annotated[str, Path(pattern=NAME, description="Id.")]
KeyId = Annotated[str, Path(pattern=r"^[0-9a-f]{8,64}$", description="The key's id.")]
Limit = Annotated[int, Query(ge=1, le=1000, description="Most of them.")]
After = Annotated[str, Query(max_length=64, description="Only those behind this one.")]
Fields = dict[str, JsonValue]
"""Field to its new value: a text, a number, true, false, a list of names; null removes the field."""


class NewTier(BaseModel):
    """A tier to be made."""

    model_config = ConfigDict(extra="forbid")

    tier: str = Field(pattern=NAME)
    fields: Fields = Field(
        description="As in docs/entitlements.md; `utility` is required.", examples=[{"utility": 0.8}]
    )


class NewTenant(BaseModel):
    """A tenant to be made."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(pattern=NAME)
    tier: str = Field(pattern=NAME)
    name: str = Field(default="", max_length=1000, description="For people; default: the id.")
    fields: Fields = Field(default_factory=dict)
    reuse: bool = Field(default=False, description="Go on with the usage of a deleted tenant of this id.")


class NewKey(BaseModel):
    """An API key to be made."""

    model_config = ConfigDict(extra="forbid")

    label: str = Field(default="", max_length=1000)
    expires_at: str | None = Field(default=None, description="ISO 8601, or unix seconds.", max_length=64)
    scopes: list[str] | None = Field(default=None, description="inference, entitlements, usage, model:<id>; null: all.")
    limits: dict[str, int] = Field(default_factory=dict, examples=[{"rpm": 60}])


class Rotation(BaseModel):
    """How a key is rotated."""

    model_config = ConfigDict(extra="forbid")

    overlap_s: Annotated[float, Field(ge=0.0, le=366 * 86400.0)] = 86400.0


class NewPerson(BaseModel):
    """An admin key to be made."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=NAME)
    role: str = Field(pattern="^(viewer|support|billing|owner)$")
    expires_at: str | None = Field(default=None, max_length=64)


def texts(fields: Fields) -> Changes:
    """Fields as records hold them. Raises AdminError, which names the one that is no such value."""
    return {name: None if value is None else _text(name, value) for name, value in fields.items()}


def _text(name: str, value: JsonValue) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str() | int() | float():
            return str(value)
        case list():
            names = [part for part in value if isinstance(part, str)]
            if len(names) == len(value):
                return listed(names)
    raise AdminError(f"{name}: expected a text, a number, true, false, a list of names, or null.", name)
