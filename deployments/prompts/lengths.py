"""How much text one token can stand for: what is longer than a context's worth of it is refused without being read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel

_COMPOSED = 4
"""Characters that one of Unicode's composed ones is made of at most (its stability policy, UAX 15)."""
_SAME = frozenset(["Prepend", "Lowercase", "ByteLevel", "NFD", "NFKD"])
_WHOLE = frozenset(["ByteLevel", "Metaspace", "Digits", "UnicodeScripts", "FixedLength"])
_SPLITS = frozenset(["Split", "Punctuation"])


def characters_per_token(tokenizer: Mapping[str, Any]) -> int | None:
    """Most characters of a text that one token stands for; None where parts of a text may stand for none.

    Args:
        tokenizer: as in a tokenizer.json.
    """
    shrinks, model = _shrinks(tokenizer.get("normalizer")), tokenizer["model"]
    swallows = any(token["lstrip"] or token["rstrip"] for token in tokenizer["added_tokens"])
    if shrinks is None or swallows or not _keeps(tokenizer.get("pre_tokenizer")) or not _knows_all(tokenizer, model):
        return None
    pieces = model["vocab"] if isinstance(model["vocab"], dict) else [piece for piece, _ in model["vocab"]]
    longest = max(map(len, [*pieces, *(token["content"] for token in tokenizer["added_tokens"])]))
    return math.ceil(longest * shrinks)


def _parts(step: Mapping[str, Any] | None, name: str) -> list[Mapping[str, Any]]:
    if step is None:
        return []
    return [step] if step["type"] != "Sequence" else [part for each in step[name] for part in _parts(each, name)]


def _shrinks(normalizer: Mapping[str, Any] | None) -> float | None:
    """How many times shorter a text may become; None: without an end."""
    shrinks = 1.0
    for part in _parts(normalizer, "normalizers"):
        if part["type"] in ("NFC", "NFKC"):
            shrinks *= _COMPOSED
        elif part["type"] == "Replace" and part["content"] and "String" in part["pattern"]:
            shrinks *= max(1.0, len(part["pattern"]["String"]) / len(part["content"]))
        elif part["type"] not in _SAME:
            return None
    return shrinks


def _keeps(pre_tokenizer: Mapping[str, Any] | None) -> bool:
    """Whether all of a text is in the pieces that it is cut into."""
    return all(
        part["type"] in _WHOLE or (part["type"] in _SPLITS and part["behavior"] != "Removed")
        for part in _parts(pre_tokenizer, "pretokenizers")
    )


def _knows_all(tokenizer: Mapping[str, Any], model: Mapping[str, Any]) -> bool:
    """Whether there is a token for every byte, so that nothing is unknown."""
    if model.get("type") not in ("BPE", "Unigram"):
        return False
    pieces = set(model["vocab"] if isinstance(model["vocab"], dict) else (piece for piece, _ in model["vocab"]))
    if model.get("byte_fallback"):
        return pieces.issuperset(f"<0x{byte:02X}>" for byte in range(256))
    steps = [
        *_parts(tokenizer.get("pre_tokenizer"), "pretokenizers"), *_parts(tokenizer.get("normalizer"), "normalizers")
    ]  # fmt: skip
    return any(step["type"] == "ByteLevel" for step in steps) and pieces.issuperset(ByteLevel.alphabet())
