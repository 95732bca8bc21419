"""Focus for text: words and phrases as the token sequences that spell them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from policies.errors import InvalidRequest
from policies.head.focus import Target
from policies.head.phrases import MOST_TOKENS


class Tokenizer(Protocol):
    """What is used of a tokenizer: transformers' have it."""

    @property
    def all_special_ids(self) -> list[int]:
        """Tokens that are no text."""

    def encode(self, text: str, /, *, add_special_tokens: bool) -> Any:
        """Text to token ids."""


def spellings(tokenizer: Tokenizer, phrase: str, model_id: str) -> list[tuple[int, ...]]:
    """How a word or phrase is written in tokens: as given, in lower case and Capitalised, each with and without a
    leading space.

    Raises:
        InvalidRequest: it has no tokens, or more than `MOST_TOKENS`.
    """
    bare = " ".join(phrase.split())
    texts = [space + form for form in (bare, bare.lower(), bare[:1].upper() + bare[1:]) for space in ("", " ")]
    special = set(tokenizer.all_special_ids)
    encoded = [tuple(tokenizer.encode(text, add_special_tokens=False)) for text in texts if bare]
    # A tokenizer that keeps no spaces, or marks them apart, gives the same ids for several texts.
    found = sorted({ids for ids in encoded if ids and not special.intersection(ids)})
    if not found:
        raise InvalidRequest(
            f"'{phrase}' has no tokens in {model_id}; name a word or phrase of its vocabulary.",
            param=f"focus.{phrase}",
            code="unknown_term",
        )
    if (longest := max(map(len, found))) > MOST_TOKENS:
        raise InvalidRequest(
            f"'{phrase}' takes {longest} tokens of {model_id}; focus takes at most {MOST_TOKENS}.",
            param=f"focus.{phrase}",
            code="phrase_too_long",
        )
    return found


def targets(tokenizer: Tokenizer, focus: Mapping[str, float], model_id: str) -> dict[Target, float]:
    """The tokens that a focus acts on, each with its signed strength.

    Names that share a token do not add up on it, or a limit on each would be none: the strongest to favour it counts,
    and the strongest to avoid it.

    To favour, a phrase's first token is favoured anywhere and each later one after those before it. To avoid, only
    its last one is, after those before it. A word with a spelling of one token is favoured by such spellings alone:
    the first piece of another spelling begins other words too.

    Raises:
        InvalidRequest: as `spellings`.
    """
    entries: dict[Target, tuple[float, float]] = {}
    for phrase, strength in focus.items():
        written = spellings(tokenizer, phrase, model_id)
        for entry in _favoured(written) if strength > 0 else _avoided(written):
            up, down = entries.get(entry, (0.0, 0.0))
            entries[entry] = max(up, strength), min(down, strength)
    return {entry: up + down for entry, (up, down) in entries.items()}


def _favoured(written: list[tuple[int, ...]]) -> set[Target]:
    whole = [ids for ids in written if len(ids) == 1]
    return {Target(ids[at], ids[:at]) for ids in whole or written for at in range(len(ids))}


def _avoided(written: list[tuple[int, ...]]) -> Iterator[Target]:
    return (Target(ids[-1], ids[:-1]) for ids in written)
