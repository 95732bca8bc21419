"""When two spellings are one term, so that a strength counts once however its word is written."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache

_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
"""Default_Ignorable_Code_Point of Unicode 16 (DerivedCoreProperties.txt): soft hyphens, joiners and the like."""


def term_of(spelling: str) -> str:
    """The term that a spelling writes: case, width, composition, invisible characters and spaces do not tell apart.

    Unicode's compatibility caseless match (its standard, 3.13, D146), here without invisible characters, and with runs
    of white space as one space and none at the ends. "" where nothing is visible. Letters of different scripts that
    look alike stay apart.
    """
    text = unicodedata.normalize("NFKD", _INVISIBLE.sub("", spelling)).casefold()
    return " ".join(unicodedata.normalize("NFKC", text).split())


@lru_cache(maxsize=64)
def class_aliases(classes: tuple[str, ...]) -> Mapping[str, str]:
    """First synonym to class, as in "tench" for "tench, Tinca tinca"; not where two classes share it or one is it."""
    first = {name: name.partition(",")[0].strip() for name in dict.fromkeys(classes) if "," in name}
    shared = Counter(first.values())
    return {alias: name for name, alias in first.items() if alias and shared[alias] == 1 and alias not in classes}
