"""All that makes a model's prompts into tokens, as data that a replica hands to gateways on other machines."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class Form:
    """A tokenizer and a chat template.

    Attributes:
        tokenizer: as the `tokenizers` library writes it, JSON.
        vocabulary: ids are below it.
        template: the chat template, in Jinja; None: there is none.
        tool_template: the one for conversations with tools, where that is another.
        variables: further names that the template may use.
        ends: tokens that end an answer.
        splits: whether special tokens that a plain text spells are text.
    """

    tokenizer: str
    vocabulary: int
    template: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    ends: frozenset[int] = frozenset()
    splits: bool = False
    tool_template: str | None = None

    def pack(self) -> bytes:
        """As bytes, compressed: a tenth of some megabytes."""
        return zlib.compress(self._written())

    @classmethod
    def unpack(cls, packed: bytes) -> Form:
        """What `pack` gave.

        Raises:
            ValueError, zlib.error: it is none.
        """
        head, _, tokenizer = zlib.decompress(packed).partition(b"\n")
        fields: dict[str, Any] = json.loads(head)
        return cls(tokenizer.decode(), **fields | {"ends": frozenset(fields["ends"])})

    @cached_property
    def digest(self) -> str:
        """32 hex digits over all of it: models with one have one way to tokens."""
        return hashlib.sha256(self._written()).hexdigest()[:32]

    def _written(self) -> bytes:
        head = asdict(self) | {"ends": sorted(self.ends)}
        del head["tokenizer"]
        return f"{json.dumps(head, sort_keys=True)}\n{self.tokenizer}".encode()
