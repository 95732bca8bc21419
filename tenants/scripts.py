"""The Lua scripts of this package, each one atomic round trip. Keys, arguments and answer are at each file's head."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True, slots=True)
class Script:
    """A script's text and the SHA-1 by which the server knows it."""

    text: str
    sha: str


def load(name: str) -> Script:
    """Read `tenants/<name>.lua`."""
    text = resources.files("tenants").joinpath(f"{name}.lua").read_text(encoding="utf-8")
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())
