"""Administration over HTTP, `/admin/v1/*`: the second face of `tenants.admin.admin`, beside the command."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from deployments.gateway.api import errors
from deployments.gateway.api.admin import (
    file,
    keys,
    models,
    people,
    plans,
    projects,
    records,
    settings,
    tenants,
    tiers,
    usage,
)
from deployments.gateway.api.admin.identity import NeedsVersion, Tokens
from tenants.changes.edits import AdminError, Changed, Conflict, Missing
from tenants.records.schema import RecordError
from tenants.store.store import TenantStore

PREFIX = "/admin/v1"
DESCRIPTION = """\
All that the `tenants` command does but `tenants init`, and what needs the models and the noise secret, which no gateway
has: `tenants trace` and `tenants models check`. Send an admin key as `Authorization: Bearer adm-...`; `tenants
admin-key create NAME --role owner` makes the first. Where an identity provider is configured, its tokens do as well.

Roles: `viewer` reads; `support` also makes, limits, rotates and revokes API keys, suspends and activates, and sets
standing focus; `billing` reads, suspends and activates, changes tenants and tiers, corrects usage; `owner` does all.

A plan, a tier, a tenant or an API key is answered with an `ETag`. To change or delete it send that in `If-Match` (428
without, `*` for whatever is there): where somebody changed it meanwhile the answer is 412, and nothing is written.
"""
_STATUS: tuple[tuple[type[Exception], int, str], ...] = (
    (Changed, 412, "changed"),
    (Missing, 404, "not_found"),
    (Conflict, 409, "conflict"),
    (NeedsVersion, 428, "if_match_required"),
    (AdminError, 400, "invalid_value"),
)


def build_admin(store: TenantStore, tokens: Tokens | None = None) -> FastAPI:
    """The HTTP surface of administration, to be mounted at `PREFIX`.

    Args:
        store: connected as a user with the rights of `acl.USERS["admin"]`.
        tokens: tells whom an identity provider's tokens stand for; None: people have admin keys alone.
    """
    app = FastAPI(title="Administration of tenants", version=version("aim-serve"), description=DESCRIPTION)
    app.state.store, app.state.tokens = store, tokens
    errors.install(app)
    app.add_exception_handler(AdminError, _refused)
    app.add_exception_handler(RecordError, _broken)
    for module in (plans, tiers, projects, tenants, usage, keys, records, models, file, settings, people):
        app.include_router(module.router)
    return app


async def _refused(_: Request, error: Exception) -> JSONResponse:
    status, code = next((status, code) for kind, status, code in _STATUS if isinstance(error, kind))
    return _answer(status, str(error), getattr(error, "field", ""), code)


async def _broken(request: Request, error: Exception) -> JSONResponse:
    # What is read is the store's fault; what is written, whoever's who sent it.
    status = 409 if request.method == "GET" else 400
    field = error.field if isinstance(error, RecordError) else ""
    return _answer(status, str(error), field, "invalid_record")


def _answer(status: int, message: str, param: str, code: str) -> JSONResponse:
    said, named = (text.encode("utf-8", "replace").decode() for text in (message, param))
    kind = "invalid_request_error" if status < 500 else "server_error"
    body = {"message": said, "type": kind, "param": named or None, "code": code}
    return JSONResponse({"error": body}, status_code=status)
