"""Focus for text: which tokens stand for a word. Phrases, matched as token sequences, will find their place here."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from policies.errors import InvalidRequest


def single_tokens(tokenizer: PreTrainedTokenizerBase, word: str, model_id: str) -> tuple[int, ...]:
    """The ids of those spellings of a word (lower case, Capitalised, each with and without leading space) that are one
    token.

    Raises:
        InvalidRequest: there is none.
    """
    bare = word.strip()
    spellings = {space + form for form in (bare, bare.lower(), bare.capitalize()) for space in ("", " ")}
    special = set(tokenizer.all_special_ids)
    encoded = [tokenizer.encode(spelling, add_special_tokens=False) for spelling in spellings if bare]
    found = {ids[0] for ids in encoded if len(ids) == 1 and ids[0] not in special}
    # A tokenizer that keeps no spaces, or marks them apart, gives the same id for several spellings.
    if not found:
        raise InvalidRequest(
            f"'{word}' is not a single token of {model_id}; focus can name words that are, mostly short common ones.",
            param=f"focus.{word}",
            code="unknown_term",
        )
    return tuple(sorted(found))
