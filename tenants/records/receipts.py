"""Receipts: what an answer was given at, signed by the installation. No Redis, so that both ends can use it.

`v1.<JSON>.<code>`, both in URL-safe base 64 without padding; the code is HMAC-SHA256 (RFC 2104) of `v1.<JSON>`. Whoever
has the secret can sign as well as verify, so a receipt proves to the installation alone what it gave.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

HEADER = "x-receipt"
_VERSION = "v1"
_LONGEST = 2**16


class ReceiptError(ValueError):
    """Why a receipt is not believed, in one line."""


@dataclass(frozen=True)
class Said:
    """What a receipt says of one answered request.

    Attributes:
        request: its id, as in `x-request-id`.
        time: when the answer began, UTC, such as 2030-01-31T12:00:00Z.
        tenant: id.
        model: id.
        level: the level applied.
        policy: the policy version, as in `x-policy-version`.
        focus: strength by class or word.
        reason: why the level is below what was asked for: budget, quota, busy; "" where it is not, and in receipts of
            before there was a reason.
    """

    request: str
    time: str
    tenant: str
    model: str
    level: float
    policy: str
    focus: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""


class Signer:
    """Signs and verifies by one secret.

    Args:
        secret: at least 16 bytes.

    Attributes:
        key: 8 hex digits that tell this secret from others, and the secret to nobody.

    Raises:
        ValueError: a secret too short.
    """

    def __init__(self, secret: bytes) -> None:
        if len(secret) < 16:
            raise ValueError("the secret of receipts must hold at least 16 bytes")
        self._secret = secret
        self.key = hmac.digest(secret, b"receipt key id", hashlib.sha256).hex()[:8]

    def sign(self, said: Said) -> str:
        """The receipt; it takes some 20 microseconds."""
        text = json.dumps({"key": self.key, **vars(said)}, ensure_ascii=False, separators=(",", ":"))
        # A lone surrogate, which a client's JSON can carry into a focus, has no bytes.
        signed = f"{_VERSION}.{_encoded(text.encode('utf-8', 'replace'))}"
        return f"{signed}.{_encoded(self._code(signed))}"

    def verify(self, receipt: str) -> Said:
        """What a receipt says, where this installation signed it.

        Raises:
            ReceiptError: it is no receipt, was signed with another secret, or was changed.
        """
        signed, _, code = receipt.rpartition(".")
        version, _, payload = signed.partition(".")
        if len(receipt) > _LONGEST or not payload or "." in payload:
            raise ReceiptError(f"it is not a receipt, which looks like {_VERSION}.<text>.<code>")
        if version != _VERSION:
            raise ReceiptError(f"it is of version {version[:8]!r}, but only {_VERSION} is known")
        given, fields = _decoded(code), _fields(payload)
        if fields.get("key") != self.key:
            raise ReceiptError(
                f"it was signed with another secret (id {str(fields.get('key'))[:16]!r}, this one's is '{self.key}'):"
                " by another installation, or before the secret was changed"
            )
        if not hmac.compare_digest(given, self._code(signed)):
            raise ReceiptError("its code does not fit what it says: it was changed, or forged")
        return _said(fields)

    def _code(self, signed: str) -> bytes:
        return hmac.digest(self._secret, signed.encode(), hashlib.sha256)


def now() -> str:
    """The time, as receipts have it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def find(text: str) -> list[tuple[int, str]]:
    """Receipts with the number of their line: one a line, or of saved responses (`curl -i`, `curl -D`) the headers'."""
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1)]
    named = [(number, line.partition(":")[2].strip()) for number, line in lines if _is_header(line)]
    if named or any(line.startswith("HTTP/") for _, line in lines):
        return named
    return [(number, line) for number, line in lines if line]


def _is_header(line: str) -> bool:
    # `curl -v` marks what it received.
    return line.removeprefix("< ").lower().startswith(f"{HEADER}:")


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decoded(text: str) -> bytes:
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError:
        data = b""
    # Spare bits of the last character could else be changed without the code noticing.
    if not data or _encoded(data) != text:
        raise ReceiptError("it is damaged: a part of it is not URL-safe base 64")
    return data


def _fields(payload: str) -> dict[str, Any]:
    try:
        fields = json.loads(_decoded(payload))
    except (ValueError, RecursionError) as error:
        raise (
            error if isinstance(error, ReceiptError) else ReceiptError("it is damaged: its text is not JSON")
        ) from None
    if not isinstance(fields, dict):
        raise ReceiptError("it is damaged: its text is not a JSON object")
    return fields


def _said(fields: Mapping[str, Any]) -> Said:
    """Of a receipt that is genuine: wrong only where a later release of this project signed it."""
    try:
        said = Said(**{name: fields[name] for name in Said.__dataclass_fields__ if name != "reason" or name in fields})
    except KeyError as error:
        raise ReceiptError(f"it is genuine, but says nothing of {error}; use a later release of this command") from None
    if not math.isfinite(said.level):
        raise ReceiptError("it is genuine, but its level is no number")
    return said
