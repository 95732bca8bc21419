"""Who asks, what they may do, and which version of a record they have read."""

from __future__ import annotations

import re
from typing import Annotated, Protocol

from fastapi import Depends, Header, Query, Request, Response, Security
from fastapi.security import HTTPBearer
from fastapi.security.http import HTTPAuthorizationCredentials

from policies.errors import InvalidRequest, Unauthenticated
from tenants.admin.admin import TenantAdmin
from tenants.admin.operators import Operator, Operators, Right
from tenants.changes.audit import AuditLog
from tenants.changes.edits import AdminError
from tenants.store.store import TenantStore

BEARER = HTTPBearer(auto_error=False, scheme_name="Admin key", description="adm-NAME-...")
_ETAG = re.compile(r'"([0-9a-f]{1,64})"')


class NeedsVersion(AdminError):
    """A change without If-Match."""


class Tokens(Protocol):
    """Tells whom an identity provider's token stands for: `tenants.admin.oidc.Tokens`, an optional part."""

    async def authenticate(self, token: str) -> Operator:
        """Raises Unauthenticated, NotEntitled, Unavailable."""


class Person:
    """Who asks, and the one service on their behalf.

    Attributes:
        admin: writes as this person.
    """

    def __init__(self, store: TenantStore, operator: Operator, unchecked: bool) -> None:
        self.operator = operator
        self.store = store
        via = f"http as {operator.role} {operator.id}"
        self.admin = TenantAdmin(store, who=operator.name, via=via, unchecked=unchecked)
        self.operators = Operators(store, self.admin.log)

    def need(self, *rights: Right) -> None:
        """Raises NotEntitled unless the person's role has all of these rights."""
        self.operator.need(*rights)


async def person(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(BEARER)] = None,
    unchecked: Annotated[bool, Query(description="Take models and classes too that were never served.")] = False,
) -> Person:
    """Whose admin key, or whose token, the request has. Raises Unauthenticated, Unavailable."""
    if credentials is None:
        raise Unauthenticated(
            "No admin key was given; send it as `Authorization: Bearer adm-...`.", code="invalid_admin_key"
        )
    store: TenantStore = request.app.state.store
    tokens: Tokens | None = request.app.state.tokens
    given = credentials.credentials
    if tokens is not None and given.count(".") == 2 and not given.startswith("adm-"):
        return Person(store, await tokens.authenticate(given), unchecked)
    operators = Operators(store, AuditLog(store, "?", "http"))
    return Person(store, await operators.authenticate(given), unchecked)


def if_match(
    header: Annotated[
        str | None, Header(alias="If-Match", description='ETag of what was read, such as "0123abcd"; * for any.')
    ] = None,
) -> str | None:
    """The version that the client has read; None: any will do. Raises NeedsVersion, InvalidRequest."""
    if header is None:
        raise NeedsVersion(
            "Send the record's ETag in If-Match, so that nobody's change is lost; `*` for any.", "If-Match"
        )
    if header.strip() == "*":
        return None
    match = _ETAG.fullmatch(header.strip())
    if match is None:
        raise InvalidRequest("If-Match takes one ETag as it was answered, in quotes, or *.", param="If-Match")
    return match[1]


def tagged(response: Response, version: str) -> None:
    """Put a version on an answer."""
    response.headers["ETag"] = f'"{version}"'


Asker = Annotated[Person, Depends(person)]
Version = Annotated[str | None, Depends(if_match)]
