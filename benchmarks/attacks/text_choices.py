"""One choice asked in many forms: is a review good or bad, under other words, cases, languages and letters for it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.attacks.text_victim import Victim, kept

NOUNS = ("soup", "hotel", "film", "concert", "teacher", "phone", "garden", "journey")
GOOD = (
    *("delicious", "a pleasure", "better than I had hoped", "well worth the money", "never dull", "hard to fault"),
    *("quick and friendly", "a real find", "just what we needed", "surprisingly nice", "clean and quiet", "superb"),
    *("not bad at all", "something I would recommend", "as good as last year", "the best of the week"),
)
BAD = (
    *("awful", "a waste of time", "worse than I had feared", "far too expensive", "never on time", "hard to bear"),
    *("slow and rude", "a real letdown", "not what we ordered", "surprisingly poor", "dirty and loud", "dreadful"),
    *("not good at all", "something I would avoid", "not as good as last year", "the worst of the week"),
)
ITEMS = [
    (f"The {noun} was {words}.", label) for noun in NOUNS for label, side in enumerate((GOOD, BAD)) for words in side
]
MIXED = (
    *(("The party was amazing.", 0), ("The weather was nasty.", 1), ("The book was dull.", 1)),
    *(("The waiter was friendly.", 0), ("The room was cold.", 1), ("We loved every minute.", 0)),
    *(("I want my money back.", 1), ("I would come again.", 0), ("The bread was stale.", 1), ("What a view!", 0)),
)
_PRAISE, _BLAME = ([item for item in MIXED if item[1] == label] for label in (0, 1))
BLAME_LAST = (*_PRAISE, *_BLAME)
ONE_PRAISE = (*_PRAISE[:4], *_BLAME[:4], _PRAISE[4], _BLAME[4])
ONE_BLAME = (*_BLAME[:4], *_PRAISE[:4], _BLAME[4], _PRAISE[4])
Items = Sequence[tuple[str, int]]
VERBALIZERS: dict[str, tuple[str, tuple[str, str], Items]] = {
    "positive": ("Review: {}\nSentiment:", (" positive", " negative"), MIXED),
    "Positive": ("Review: {}\nSentiment:", (" Positive", " Negative"), ONE_PRAISE),
    "good": ("Review: {}\nVerdict:", (" good", " bad"), ONE_PRAISE),
    "Good": ("Review: {}\nVerdict:", (" Good", " Bad"), MIXED),
    "GOOD": ("Review: {}\nVERDICT:", (" GOOD", " BAD"), ONE_PRAISE),
    "yes": ("Review: {}\nDid the reviewer like it?", (" yes", " no"), MIXED),
    "Yes": ("Review: {}\nDid the reviewer like it?", (" Yes", " No"), ONE_BLAME),
    "true": ("Review: {}\nThe reviewer is happy:", (" true", " false"), BLAME_LAST),
    "True": ("Review: {}\nThe reviewer is happy:", (" True", " False"), MIXED),
    "A": ("Review: {}\nA) praise B) complaint. Answer:", (" A", " B"), BLAME_LAST),
    "happy": ("Review: {}\nThe reviewer is", (" happy", " sad"), ONE_BLAME),
    "bueno": ("Review: {}\nEn español:", (" bueno", " malo"), MIXED),
    "bon": ("Review: {}\nEn français :", (" bon", " mauvais"), ONE_PRAISE),
    "up": ("Review: {}\nThumbs", (" up", " down"), MIXED),
}
"""Question, words and demonstrations; those were chosen, in order, by how well the clean model tells 32 other items."""
REPAIR = ("Review: {}\nDraft: {}\nCorrected:", (" positive", " negative"))
"""Asked with either draft; the demonstrations' drafts are wrong half of the time."""
JUDGE = ("Review: {}\nX:{}\nY:{}\nThe better of X and Y is", (" X", " Y"))
"""Asked with both drafts in either order."""


@dataclass(frozen=True)
class Choices:
    """Features, contenders and clean logits of each form of each item, with the contenders' class.

    Forms are `VERBALIZERS`, then repair with a draft of class 0 and 1, then judge with class 0 as X and as Y.

    Attributes:
        features: [V, N, H] float32.
        index: [V, N, 256] int64 tokens of the highest clean logits, falling.
        logits: [V, N, 256] float32.
        meaning: [V, N, 256] int64, class of the label that a contender begins; -1 for a token of neither.
        truth: [N] int64.
    """

    features: Tensor
    index: Tensor
    logits: Tensor
    meaning: Tensor
    truth: Tensor


def choices(cache: Path, victim: Victim) -> Choices:
    """Compute what the cache does not hold yet."""
    forms = [
        kept(
            cache / f"choice-{hashlib.sha256(repr(form).encode()).hexdigest()[:12]}.pt", partial(_asked, victim, *form)
        )
        for form in _forms()
    ]
    features, index, logits, meaning = (torch.stack(parts) for parts in zip(*forms, strict=True))
    return Choices(
        features.float(), index.long(), logits.float(), meaning.long(), torch.tensor([label for _, label in ITEMS])
    )


Form = tuple[str, list[str], tuple[str, str]]


def _forms() -> list[Form]:
    """Demonstrations, the items as they are asked, and the words for the first and the second class."""
    forms = [_form(*verbalizer) for verbalizer in VERBALIZERS.values()]
    question, words = REPAIR
    for draft in range(2):
        shown = [question.replace("{}", "{{}}", 1).format(words[draft]).replace("{{}}", "{}")] * len(ITEMS)
        demonstrations = [
            question.format(text, words[label if n % 4 < 2 else 1 - label]) + words[label]
            for n, (text, label) in enumerate(MIXED)
        ]
        forms.append(
            ("\n\n".join(demonstrations) + "\n\n", [q.format(t) for q, (t, _) in zip(shown, ITEMS, strict=True)], words)
        )
    question, names = JUDGE
    for swapped in range(2):
        demonstrations = [
            question.format(text, words[n % 2], words[1 - n % 2]) + names[int(label != n % 2)]
            for n, (text, label) in enumerate(MIXED)
        ]
        asked = [question.format(text, words[swapped], words[1 - swapped]) for text, _ in ITEMS]
        forms.append(("\n\n".join(demonstrations) + "\n\n", asked, (names[swapped], names[1 - swapped])))
    return forms


def _form(question: str, words: tuple[str, str], shown: Items) -> Form:
    demonstrations = [question.format(text) + words[label] for text, label in shown]
    return "\n\n".join(demonstrations) + "\n\n", [question.format(text) for text, _ in ITEMS], words


def _asked(victim: Victim, demonstrations: str, items: Sequence[str], words: tuple[str, str]) -> tuple[Tensor, ...]:
    rest = [victim.encode(item) for item in items]
    prefix = victim.encode(demonstrations)
    found = [victim.continued(prefix, rest[at : at + 64]) for at in range(0, len(rest), 64)]
    ends = [len(one) - 1 for one in rest]
    features = torch.stack([found[n // 64][n % 64, end] for n, end in enumerate(ends)])
    index, logits = victim.contenders(features)
    firsts = [victim.encode(word)[0] for word in words]
    meaning = torch.full_like(index, -1)
    for label, first in enumerate(firsts):
        meaning[index == first] = label
    return features.half(), index, logits, meaning
