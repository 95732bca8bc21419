"""What a gateway allows, and whose tokens it takes: the part of the configuration that is the gateway's own."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Signature = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
"""By a private key that only the issuer has: never `none`, never HS."""


def _https(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "::1", "localhost")):
        raise ValueError("expected https:// (http:// is for this machine's loopback alone)")
    return url


class GatewaySettings(BaseModel):
    """What a gateway allows: `user_config` of the deployment `TenantGateway` changes it while all goes on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_body_bytes: Annotated[int, Field(ge=1024)] = Field(default=16 * 2**20, description="of a picture's request")
    max_text_bytes: Annotated[int, Field(ge=1024)] = Field(default=2**20, description="of a text's request")
    max_tenant_bytes: Annotated[int, Field(ge=1024)] = Field(
        default=64 * 2**20, description="of one tenant's bodies under way at a time; one body always passes"
    )
    max_held_bytes: Annotated[int, Field(ge=1024)] = Field(
        default=512 * 2**20, description="of all bodies under way at a time"
    )
    strict: bool = Field(
        default=False,
        description="refuse every parameter that is not served, also where its value asks for nothing, more than four"
        " stop strings, and max_tokens beside max_completion_tokens or beyond the context",
    )
    default_max_tokens: Annotated[int, Field(ge=1)] = Field(
        default=2048,
        description="most tokens of a chat answer whose request sets no limit, as far as the context has room: so many"
        " are admitted and kept free in the cache for each",
    )
    cors_origins: tuple[str, ...] = Field(
        default=(),
        description="origins, such as https://app.example.com, whose pages may call from a browser; `*`: any. A key in"
        " a page is its visitors': give such keys the scopes and limits of one of them",
    )
    body_timeout_s: Annotated[float, Field(gt=0.0)] = Field(default=30.0, description="to the last byte of a body")
    bad_requests_per_s: Annotated[float, Field(gt=0.0)] = Field(
        default=50.0,
        description="refused requests, or 16 KiB of them, that a tenant may send for long; ten seconds' worth at once",
    )
    max_image_pixels: Annotated[int, Field(ge=64 * 64)] = 25_000_000
    deadline_s: Annotated[float, Field(gt=0.0)] = Field(default=120.0, description="to the whole answer of a request")
    batch_open: Annotated[int, Field(ge=0)] = Field(
        default=4, description="batches of a tenant that have not ended; 0: none may be made"
    )
    batch_lines: Annotated[int, Field(ge=1, le=50_000)] = Field(default=50_000, description="requests of a batch")
    batch_at_once: Annotated[int, Field(ge=1, le=256)] = Field(
        default=4, description="lines of batches that one gateway has under way while nobody calls; else one"
    )
    batch_file_bytes: Annotated[int, Field(ge=1024)] = Field(default=32 * 2**20, description="of an uploaded file")
    batch_files: Annotated[int, Field(ge=1, le=10_000)] = Field(default=200, description="files of a tenant")
    batch_tenant_bytes: Annotated[int, Field(ge=1024)] = Field(
        default=128 * 2**20, description="of a tenant's files, kept in the store: a batch's answers must fit in, too"
    )
    batch_total_bytes: Annotated[int, Field(ge=1024)] = Field(default=2**30, description="of all tenants' files")
    batch_keep_s: Annotated[int, Field(ge=3600, le=365 * 86_400)] = Field(
        default=30 * 86_400, description="to the end of a file, and of what is known of a batch"
    )


class OidcArgs(BaseModel):
    """An identity provider whose tokens stand for people at /admin/v1, beside admin keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    issuer: Annotated[str, AfterValidator(_https)] = Field(description="as its tokens' `iss` has it")
    audience: Annotated[str, Field(min_length=1)] = Field(description="their `aud`: this service")
    roles: Annotated[dict[str, Literal["viewer", "support", "billing", "owner"]], Field(min_length=1)] = Field(
        description="a value of the claim to a role; of several that a token has the first of these counts"
    )
    role_claim: str = Field(default="roles", description="the claim, or a path with dots: realm_access.roles")
    name_claim: str = Field(default="sub", description="the claim that the audit log names people by, such as email")
    jwks_url: Annotated[str, AfterValidator(_https)] | None = Field(
        default=None, description="the issuer's keys; None: as its /.well-known/openid-configuration says"
    )
    algorithms: Annotated[tuple[Signature, ...], Field(min_length=1)] = ("RS256", "ES256")
    leeway_s: Annotated[float, Field(ge=0.0, le=300.0)] = Field(default=30.0, description="how much clocks may differ")
