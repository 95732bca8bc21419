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


def load(*names: str) -> Script:
    """Read `tenants/<room/name>.lua`; of several one script, each seeing what those before it define."""
    folder = resources.files("tenants")
    text = "\n".join(folder.joinpath(f"{name}.lua").read_text(encoding="utf-8") for name in names)
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())
