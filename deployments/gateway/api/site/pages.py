"""The pages that people look at: the playground for a tenant's key, the console for an admin key.

They are files, the same for everybody, and hold no data: each page calls the public API with the key that its reader
types in, which the browser keeps for that tab alone.
"""

from __future__ import annotations

from mimetypes import guess_type
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse, RedirectResponse

from policies.errors import NotFound

FILES = Path(__file__).parent / "static"
_NAMES = frozenset(path.relative_to(FILES).as_posix() for path in FILES.rglob("*") if path.is_file())
"""The only ones that are read, whatever a path says."""
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
"""Content security policy: nothing but these files runs, and nothing is sent but to this server."""
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}

router = APIRouter(include_in_schema=False)
console = APIRouter(include_in_schema=False)
"""Of administration over HTTP: only where that is on."""


@router.get("/")
async def root() -> RedirectResponse:
    """The playground."""
    return RedirectResponse("playground")


@router.get("/playground")
async def playground() -> FileResponse:
    """Ask a model at two levels, side by side."""
    return _file("playground.html")


@router.get("/pages/{name:path}")
async def page_file(name: str) -> FileResponse:
    """A script, a style sheet or a picture of a page."""
    return _file(name)


@console.get("/console")
async def console_page() -> FileResponse:
    """Tenants, tiers, models, the audit trail and what is wrong."""
    return _file("console.html")


def _file(name: str) -> FileResponse:
    if name not in _NAMES:
        raise NotFound(f"There is no page '/pages/{name}'.")
    return FileResponse(FILES / name, media_type=guess_type(name)[0], headers=HEADERS)
