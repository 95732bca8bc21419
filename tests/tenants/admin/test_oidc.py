"""Tokens of an identity provider at /admin/v1: real signatures, a stub issuer, and every forgery that is known."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any

import jwt
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from policies.errors import NotEntitled, Unauthenticated, Unavailable
from tenants.admin.oidc import KEYS_KEPT_S, REFETCH_S, Issuer, Tokens
from tenants.admin.operators import Role
from tests.tenants.receivers import Receiver, receiving

AUDIENCE = "aim-admin"
RSA_KEYS = [rsa.generate_private_key(65537, 2048) for _ in range(2)]
EC_KEY = ec.generate_private_key(ec.SECP256R1())
Key = Any


def jwk(key: Key, kid: str) -> dict[str, Any]:
    algorithm = jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
    return {**json.loads(algorithm.to_jwk(key.public_key())), "kid": kid, "use": "sig"}


@dataclass
class Provider:
    """A stub issuer, and the clock of whoever trusts it."""

    server: Receiver
    keys: list[dict[str, Any]]
    tokens: Tokens = field(init=False)
    at: float = 1000.0
    up: bool = True
    named: str = ""

    def __post_init__(self) -> None:
        self.server.answer = self.answer
        self.named = self.issuer.issuer
        self.tokens = Tokens(self.issuer, now=lambda: self.at)

    @property
    def issuer(self) -> Issuer:
        roles = {"ops": Role.OWNER, "help": Role.SUPPORT}
        return Issuer(self.server.url, AUDIENCE, roles, role_claim="realm.roles", name_claim="email")

    def answer(self) -> str:
        if not self.up:
            return "503 Away\r\n"
        document: dict[str, Any] = {"keys": self.keys}
        if self.server.paths[-1].endswith("/.well-known/openid-configuration"):
            document = {"issuer": self.named, "jwks_uri": f"{self.server.url}/keys"}
        body = json.dumps(document)
        return f"200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}"

    def claims(self, **changes: Any) -> dict[str, Any]:
        now = int(time.time())
        claims = {"iss": self.server.url, "aud": AUDIENCE, "sub": "u-1", "email": "jo@example.com"}
        claims |= {"iat": now, "exp": now + 300, "realm": {"roles": ["staff", "help"]}}  # type: ignore[dict-item]
        return {name: value for name, value in {**claims, **changes}.items() if value is not None}

    def token(self, key: Key = RSA_KEYS[0], kid: str | None = "one", algorithm: str = "RS256", **changes: Any) -> str:
        headers = {} if kid is None else {"kid": kid}
        return jwt.encode(self.claims(**changes), key, algorithm=algorithm, headers=headers)


@pytest_asyncio.fixture
async def provider() -> AsyncIterator[Provider]:
    async with receiving("") as server:
        made = Provider(
            server, [jwk(RSA_KEYS[0], "one"), jwk(EC_KEY, "two"), {"kty": "oct", "k": "c2VjcmV0", "kid": "x"}]
        )
        yield made
        await made.tokens.aclose()


async def test_a_good_token_stands_for_a_person_with_the_role_that_its_claim_has(provider: Provider) -> None:
    own = await provider.tokens.authenticate(provider.token())
    assert (own.name, own.role) == ("jo@example.com (oidc)", Role.SUPPORT) and len(own.id) == 12
    both = await provider.tokens.authenticate(provider.token(EC_KEY, "two", "ES256", realm={"roles": ["help", "ops"]}))
    assert both.role is Role.OWNER  # the first that is configured
    assert (await provider.tokens.authenticate(provider.token(realm={"roles": "ops"}))).role is Role.OWNER
    assert len(provider.server.got) == 2  # its configuration and its keys, once
    skewed = int(time.time())
    await provider.tokens.authenticate(provider.token(exp=skewed - 20, iat=skewed + 20, nbf=skewed + 20))


def forged(provider: Provider) -> dict[str, str]:
    """Tokens that must be refused, by what is wrong."""
    now, good = int(time.time()), provider.token()
    head, body, code = good.split(".")
    public = RSA_KEYS[0].public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )  # fmt: skip

    def hand_made(header: dict[str, Any], secret: bytes | None) -> str:
        parts = [base64.urlsafe_b64encode(json.dumps(p).encode()).rstrip(b"=") for p in (header, provider.claims())]
        signed = b".".join(parts)
        mac = hmac.new(secret, signed, hashlib.sha256).digest() if secret is not None else b""
        return (signed + b"." + base64.urlsafe_b64encode(mac).rstrip(b"=")).decode()

    modulus = json.dumps(provider.keys[0]).encode()
    owner = base64.urlsafe_b64encode(json.dumps(provider.claims(realm={"roles": ["ops"]})).encode()).rstrip(b"=")
    return {
        "alg none": hand_made({"alg": "none", "kid": "one"}, None),
        "alg NONE": hand_made({"alg": "NONE", "kid": "one"}, None),
        "no alg": hand_made({"kid": "one"}, None),
        "HS with the public key": hand_made({"alg": "HS256", "kid": "one"}, public),
        "HS with the JWK": hand_made({"alg": "HS256", "kid": "one"}, modulus),
        "HS with the issuer's oct key": hand_made({"alg": "HS256", "kid": "x"}, b"secret"),
        "RS of an EC key": provider.token(kid="two"),
        "ES of an RSA key": provider.token(EC_KEY, "one", "ES256"),
        "an algorithm that is not configured": provider.token(algorithm="RS512"),
        "another's key": provider.token(RSA_KEYS[1]),
        "an unknown key": provider.token(RSA_KEYS[1], "three"),
        "no key named, of two": provider.token(kid=None),
        "its own key inside": jwt.encode(
            provider.claims(), RSA_KEYS[1], "RS256", headers={"kid": "nine", "jwk": jwk(RSA_KEYS[1], "nine")}
        ),
        "its own key's address": jwt.encode(
            provider.claims(), RSA_KEYS[1], "RS256", headers={"kid": "nine", "jku": "http://127.0.0.1:1/"}
        ),
        "a changed body": f"{head}.{owner.decode()}.{code}",
        "no signature": f"{head}.{body}.",
        "expired": provider.token(exp=now - 60),
        "no expiry": provider.token(exp=None),
        "of the future": provider.token(iat=now + 90),
        "not yet": provider.token(nbf=now + 90),
        "another issuer": provider.token(iss="https://evil.example"),
        "no issuer": provider.token(iss=None),
        "another audience": provider.token(aud="other"),
        "no audience": provider.token(aud=None),
        "nobody's": provider.token(sub=None),
        "a number's": provider.token(sub=7),
        "an odd expiry": provider.token(exp="soon"),
        "junk": "a.b.c",
        "empty": "..",
        "long": f"{head}.{'A' * 20_000}.{code}",
        "deep": f"{head}.{base64.urlsafe_b64encode(b'[' * 9000).decode().rstrip('=')}.{code}",
    }


async def test_no_forgery_passes_and_none_makes_the_issuer_work(provider: Provider) -> None:
    await provider.tokens.authenticate(provider.token())
    asked = len(provider.server.got)
    for wrong, token in forged(provider).items():
        with pytest.raises(Unauthenticated) as caught:
            await provider.tokens.authenticate(token)
        assert token not in str(caught.value), wrong
    assert len(provider.server.got) <= asked + 2  # unknown keys ask once, and not again for a while
    for _ in range(50):
        with pytest.raises(Unauthenticated):
            await provider.tokens.authenticate(provider.token(RSA_KEYS[1], f"k{_}"))
    assert len(provider.server.got) <= asked + 2


@pytest.mark.parametrize(
    "changes",
    [
        {"realm": None}, {"realm": {"roles": ["staff"]}}, {"realm": {"roles": {"help": 1}}}, {"realm": ["roles"]},
        {"realm": {"roles": [["help"]]}}, {"email": None}, {"email": 7}, {"email": ""}, {"email": "a\nb"},
        {"email": "x" * 999},
    ],
)  # fmt: skip
async def test_a_good_token_without_a_role_or_a_name_may_do_nothing(
    provider: Provider, changes: dict[str, Any]
) -> None:
    with pytest.raises(NotEntitled):
        await provider.tokens.authenticate(provider.token(**changes))


async def test_keys_are_rotated_withdrawn_and_not_guessed_while_the_issuer_is_away(provider: Provider) -> None:
    old, new = provider.token(), provider.token(RSA_KEYS[1], "new")
    await provider.tokens.authenticate(old)
    provider.at += REFETCH_S + 1
    provider.keys = [jwk(RSA_KEYS[0], "one"), jwk(RSA_KEYS[1], "new")]
    await provider.tokens.authenticate(new)  # an unknown key is asked for
    provider.keys = [jwk(RSA_KEYS[1], "new")]
    provider.at += KEYS_KEPT_S + 1
    with pytest.raises(Unauthenticated):  # withdrawn
        await provider.tokens.authenticate(old)
    provider.up = False
    provider.at += KEYS_KEPT_S - 1
    await provider.tokens.authenticate(new)
    provider.at += 2
    with pytest.raises(Unavailable):  # too old to trust
        await provider.tokens.authenticate(new)
    provider.up = True
    provider.at += REFETCH_S + 1
    await provider.tokens.authenticate(new)


async def test_a_configuration_of_another_issuer_is_not_believed(provider: Provider) -> None:
    provider.named = "https://evil.example"
    with pytest.raises(Unavailable):
        await provider.tokens.authenticate(provider.token())
    inside = Tokens(replace(provider.issuer, jwks_url=f"{provider.server.url}/keys"))
    assert (await inside.authenticate(provider.token())).role is Role.SUPPORT
    await inside.aclose()
