"""People who administrate by a token of their organisation's identity provider (OpenID Connect) in place of a key."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jwt

from policies.errors import NotEntitled, Unauthenticated, Unavailable
from tenants.admin.operators import Operator, Role
from tenants.metering import delivery
from tenants.records.settings import checked_url

logger = logging.getLogger(__name__)

LONGEST = 16_384
MOST_BYTES = 1_000_000
KEYS_KEPT_S = 300.0
"""How long the issuer's keys are used unasked: so long a key that it withdrew may go on."""
REFETCH_S = 10.0
"""An unknown key asks the issuer no more often than that."""
_KINDS = {"RSA", "EC", "OKP"}


@dataclass(frozen=True)
class Issuer:
    """Whose tokens stand for whom.

    Attributes:
        issuer: as its tokens' `iss` has it.
        audience: their `aud`: this service.
        roles: a value of the claim to a role; of several that a token has the first of these counts.
        role_claim: a claim's name, or a path through claims with dots.
        name_claim: the claim that the audit log names people by.
        jwks_url: where the issuer's keys are; "": where its `/.well-known/openid-configuration` says.
        algorithms: signatures by a private key that only the issuer has. Never `none`; never HS, for whose secret a
            public key would be taken.
        leeway_s: by how much clocks may differ.
    """

    issuer: str
    audience: str
    roles: Mapping[str, Role]
    role_claim: str = "roles"
    name_claim: str = "sub"
    jwks_url: str = ""
    algorithms: tuple[str, ...] = ("RS256", "ES256")
    leeway_s: float = 30.0


class Tokens:
    """Tells who a token stands for.

    Args:
        now: the clock that says how old the issuer's keys are, in seconds.
    """

    def __init__(self, issuer: Issuer, now: Callable[[], float] = time.monotonic) -> None:
        self._issuer, self._now = issuer, now
        self._http = delivery.client()
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched = self._asked = float("-inf")
        self._fetching = asyncio.Lock()

    async def aclose(self) -> None:
        """Close the connection to the issuer."""
        await self._http.aclose()

    async def authenticate(self, token: str) -> Operator:
        """Who a token stands for.

        Raises:
            Unauthenticated: it is not the issuer's, not for this service, or out of time.
            NotEntitled: it is good, and gives no role here.
            Unavailable: the issuer's keys are not known and it does not answer.
        """
        own = self._issuer
        try:
            if len(token) > LONGEST:
                raise jwt.InvalidTokenError("too long")
            header = jwt.get_unverified_header(token)
            if header.get("alg") not in own.algorithms:
                raise jwt.InvalidAlgorithmError(f"alg {str(header.get('alg'))[:20]!r}")
            claims: dict[str, Any] = jwt.decode(
                token,
                await self._key(header),
                algorithms=list(own.algorithms),
                issuer=own.issuer,
                audience=own.audience,
                leeway=own.leeway_s,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
            # Of the token itself nothing is logged.
            logger.info("a token was refused: %s", type(error).__name__)
            raise Unauthenticated(
                "The token is not valid: it is not of the issuer, not for this service, or out of time.",
                code="invalid_token",
            ) from None
        return self._operator(claims)

    def _operator(self, claims: Mapping[str, Any]) -> Operator:
        own = self._issuer
        name = claims.get(own.name_claim)
        if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= 200:
            raise NotEntitled(f"The token has no name: its claim '{own.name_claim}' is no text.", code="no_name")
        held = _claim(claims, own.role_claim)
        values = {held} if isinstance(held, str) else {v for v in held if isinstance(v, str)} if _many(held) else set()
        role = next((role for value, role in own.roles.items() if value in values), None)
        if role is None:
            raise NotEntitled(
                f"The token gives no role here: its claim '{own.role_claim}' has none that is known.", code="no_role"
            )
        digest = hashlib.sha256(f"{own.issuer}\n{claims['sub']}".encode("utf-8", "surrogatepass")).hexdigest()
        return Operator(digest=digest, name=f"{name} (oidc)", role=role, expires_at=float(claims["exp"]))

    async def _key(self, header: Mapping[str, Any]) -> jwt.PyJWK:
        """The issuer's key that a token names. Raises jwt.PyJWTError, Unavailable."""
        kid = header.get("kid")
        if self._now() - self._fetched > KEYS_KEPT_S or self._find(kid) is None:
            await self._fetch()
        key = self._find(kid)
        if key is None:
            raise jwt.InvalidKeyError("of no key of the issuer")
        return key

    def _find(self, kid: object) -> jwt.PyJWK | None:
        if kid is None and len(self._keys) == 1:  # an issuer of one key need not name it
            return next(iter(self._keys.values()))
        return self._keys.get(kid) if isinstance(kid, str) else None

    async def _fetch(self) -> None:
        """Ask the issuer for its keys, unless that was just done. Raises Unavailable where what is known is too old."""
        async with self._fetching:
            if self._now() - self._asked > REFETCH_S:
                self._asked = self._now()
                try:
                    self._keys = _parsed(await self._read(await self._address()))
                    self._fetched = self._now()
                except (delivery.Undelivered, delivery.Refused, ValueError) as error:
                    logger.error("the identity provider's keys cannot be read: %s", error)
            if self._now() - self._fetched > KEYS_KEPT_S:
                raise Unavailable("The identity provider does not answer.", retry_after=10, code="issuer_away")

    async def _address(self) -> str:
        own = self._issuer
        if own.jwks_url:
            return own.jwks_url
        found = await self._read(own.issuer.rstrip("/") + "/.well-known/openid-configuration")
        if found.get("issuer") != own.issuer:
            raise ValueError(f"the configuration of {own.issuer} names another issuer")
        return checked_url(str(found.get("jwks_uri", "")))

    async def _read(self, url: str) -> dict[str, Any]:
        found = json.loads(await delivery.get(self._http, url, most=MOST_BYTES))
        if not isinstance(found, dict):
            raise ValueError("expected a JSON object")
        return found


def _parsed(found: Mapping[str, Any]) -> dict[str, jwt.PyJWK]:
    """Keys that sign, by id; one that is of no use here is passed over. Raises ValueError where none is left."""
    keys: dict[str, jwt.PyJWK] = {}
    listed = found.get("keys")
    for one in listed if isinstance(listed, list) else ():
        if isinstance(one, dict) and one.get("kty") in _KINDS and one.get("use", "sig") == "sig":
            try:
                keys[str(one.get("kid", ""))] = jwt.PyJWK(one)
            except (jwt.PyJWTError, ValueError, TypeError):
                continue
    if not keys:
        raise ValueError("there is no key that signs")
    return keys


def _claim(claims: Mapping[str, Any], name: str) -> Any:
    """A claim by its name, or by a path of names with dots."""
    if name in claims:
        return claims[name]
    found: Any = claims
    for part in name.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def _many(value: Any) -> bool:
    return isinstance(value, list)
