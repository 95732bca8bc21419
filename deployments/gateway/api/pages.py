"""Lists in pages, as OpenAI's API has them: newest first, after an id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Protocol, TypeVar

from fastapi import Query

from policies.errors import InvalidRequest

Limit = Annotated[int, Query(ge=1, le=10_000, description="Most entries.")]
After = Annotated[str | None, Query(description="Id of the entry before the first.")]


class Entry(Protocol):
    """Anything with an id."""

    @property
    def id(self) -> str: ...


Item = TypeVar("Item", bound=Entry)


def page(items: Sequence[Item], after: str | None, limit: int) -> dict[str, Any]:
    """The entries after one of an id. Raises InvalidRequest where there is none of it."""
    start = 0
    if after is not None:
        start = next((at for at, item in enumerate(items, 1) if item.id == after), 0)
        if not start:
            raise InvalidRequest(f"after: there is no '{after[:80]}'.", param="after", code="invalid_value")
    shown = list(items[start : start + limit])
    ends = {"first_id": shown[0].id if shown else None, "last_id": shown[-1].id if shown else None}
    return {"object": "list", "data": shown, **ends, "has_more": start + limit < len(items)}
