"""Every attack on text against every source of noise: the next token, and a choice asked in many forms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.attacks.records import Records
from benchmarks.attacks.text_attack import KINDS, LEVEL, OWN, TAUGHT, VOCABULARY, TextAttack
from benchmarks.attacks.text_choice_attack import FORMS, ChoiceAttack
from benchmarks.attacks.text_choices import Choices, choices
from benchmarks.attacks.text_features import Steps, text_steps
from benchmarks.attacks.text_sources import Field, Fresh, Source, Vocabulary, vocabulary
from benchmarks.attacks.text_students import Scorer, linear, nearest, small_model
from benchmarks.attacks.text_victim import Victim
from policies.attacks.answers import sampled, temperature_for, won_back

ROWS = ("votes", "correctors", "logits", "students", "choice", "cost")
ACCOUNTS, REPEATS = 8, 100
SHARES = (0.25, 0.5, 0.75, 1.0)
"""Of `SharedLadder`, beside none."""
HIDDEN = 16
FEW_SECRETS = 2
"""Secrets that the rows of students, which vary little, are measured under."""
Student = Callable[[Tensor, Tensor, int], Scorer]
STUDENTS: dict[str, tuple[str, Student]] = {
    "own features, linear": ("features", linear),
    "own features, kNN": ("features", nearest),
    "layer 10, linear": ("early", linear),
    "layer 10, kNN": ("early", nearest),
    "24 tokens, from scratch": ("context", small_model),
}
Attacks = dict[str, Callable[[], float]]


@dataclass(frozen=True)
class Data:
    """What is attacked."""

    steps: Steps
    choices: Choices
    words: Vocabulary

    @classmethod
    def of(cls, cache: Path) -> Data:
        """Compute what the cache does not hold yet."""
        victim = Victim()
        return cls(text_steps(cache, victim), choices(cache, victim), vocabulary(cache, victim))


def measure(folder: Path, secrets: int, rows: Sequence[str] = ROWS) -> Records:
    """The groups of rows asked for, under so many secrets."""
    data, records = Data.of(folder / "text"), Records()
    for number in range(secrets):
        for name, source in _sources(number, data).items():
            against = Against(name, number, source, data)
            for group in rows:
                records.run(name, against.rows(group))
                records.save(folder / "text.json")
        if "votes" in rows:
            records.run("temperature", {"100 repeats, vote": partial(_temperature, data.steps, number)})
            keys: list[Source] = [
                Field(1000 * (number + 1) + n, data.steps.sample, data.words) for n in range(ACCOUNTS)
            ]
            records.run("key per tenant", {f"{ACCOUNTS} accounts, vote": TextAttack(keys, data.steps).everyone})
    for group in rows:
        records.run("clean", _clean(data, group))
    records.save(folder / "text.json")
    return records


class Against:
    """One source under one secret."""

    def __init__(self, name: str, number: int, source: Source, data: Data) -> None:
        self._name, self._number, self._source, self._data = name, number, source, data
        self._attack = TextAttack([source], data.steps, number)

    def rows(self, group: str) -> Attacks:
        """The attacks of a group."""
        attack, data = self._attack, self._data
        if group == "votes":
            return _votes(attack)
        if group == "correctors":
            return _correctors(attack, self._name)
        if group == "logits":
            return _logits(attack, data.words)
        if group == "students":
            return _students(data.steps, attack.taught) if self._number < FEW_SECRETS else {}
        if group == "choice":
            modulated = ChoiceAttack(self._source, data.choices, LEVEL, self._number)
            clean = ChoiceAttack(None, data.choices, LEVEL)
            return {"choice: agreement": modulated.agreement} | _choice(modulated) | _shares(modulated, clean)
        return {
            "noise at 0.7, in logits": partial(self._source.scale, LEVEL),
            "delivered at 0.7": lambda: attack.single,
            "clean log-probability of the answers, nats": attack.plausible,
        }


def _sources(number: int, data: Data) -> dict[str, Source]:
    sample, words = data.steps.sample, data.words
    shared: dict[str, Source] = {f"shared {s}": Field(number, sample, words, s) for s in SHARES}
    return {
        "fresh": Fresh(number, sample),
        "ladder": Field(number, sample, words),
        "spellings tied": Field(number, sample, words, "spelling"),
        **shared,
    }


def _votes(attack: TextAttack) -> Attacks:
    return {
        "100 repeats, vote": attack.repeats,
        **{f"{kind}, vote": lambda kind=kind: attack.vote(kind) for kind in KINDS},
        "10 samples at temperature 0.7, vote": attack.samples,
        "levels 0.7, 0.6 and 0.5, raw logits, best combination": attack.combined_levels,
    }


def _correctors(attack: TextAttack, name: str) -> Attacks:
    levels: Attacks = {
        "0.7 and 11 lower levels by tokens, 2,000 labelled (where granted)": lambda: attack.levels_by_tokens(0),
        "the same, a hidden layer": lambda: attack.levels_by_tokens(HIDDEN),
    }
    return {
        "6,000 labelled steps: token table": attack.corrector,
        "5,000 answers, 600 labelled: own token or a student's": lambda: attack.beside_students(0),
        "the same, a hidden layer ": lambda: attack.beside_students(HIDDEN),
        "all 23 near-duplicates, corrector": lambda: attack.corrected_vote(0),
        "the same, a hidden layer  ": lambda: attack.corrected_vote(HIDDEN),
        **(levels if name == "ladder" else {}),
    }


def _logits(attack: TextAttack, words: Vocabulary) -> Attacks:
    if not isinstance(attack.accounts[0], Field):
        return {}
    known = {f"logprobs granted, gold's logits for {gold} steps": (gold, False) for gold in (200, 600, 1000)}
    known["logprobs granted, gold's tokens for 1000 steps"] = 1000, True
    return {name: partial(attack.full_logits, words, *what) for name, what in known.items()}


def _students(steps: Steps, taught: Tensor) -> Attacks:
    """Agreement of students with the clean token: no share, since most are worse than the level."""
    rows, judged = steps.labelled, steps.judged

    def agreement(inputs: str, make: Student, count: int) -> float:
        score = make(getattr(rows, inputs)[:count], taught[:count], VOCABULARY)
        return float((score(getattr(judged, inputs)).argmax(dim=1) == judged.tokens).float().mean())

    return {
        f"student, {name}, {count} answers: agreement": partial(agreement, inputs, make, count)
        for name, (inputs, make) in STUDENTS.items()
        for count in (OWN, 1000, TAUGHT)
    }


def _choice(choice: ChoiceAttack) -> Attacks:
    """Accuracies, each to be read beside what the same reaches on clean answers."""
    return {
        "choice, one form": choice.single,
        "choice, vote over 14 forms": choice.voted,
        "choice, vote over the spellings of one pair of words": choice.spellings,
        "choice, the form that is best on 128 labels": choice.chosen,
        "choice, 14 forms, corrector with 128 labels": choice.corrected,
        "choice, 14 forms, repair and judge, the same corrector": lambda: choice.corrected(FORMS + 4),
        "choice, 10 samples of one form at temperature 0.7": choice.sampled_alone,
        "choice, 10 samples of each of 14 forms": lambda: choice.sampled(range(FORMS)),
        "choice, first form": choice.drafted,
        "choice, first form's draft repaired": choice.repaired,
        "choice, drafts judged": choice.judged,
    }


def _shares(choice: ChoiceAttack, clean: ChoiceAttack) -> Attacks:
    """Of the way from one form at the level to what the same attack reaches on clean answers."""
    attacks = {"vote over 14 forms": ChoiceAttack.voted, "corrector with 128 labels": ChoiceAttack.corrected}
    return {
        f"choice, {name}: share": lambda attack=attack: won_back(attack(choice), choice.single(), attack(clean))
        for name, attack in attacks.items()
    }


def _clean(data: Data, group: str) -> Attacks:
    """What votes and students reach from clean answers; a student of 600 is what an attacker's own labels are worth."""
    if group == "choice":
        return _choice(ChoiceAttack(None, data.choices, LEVEL))
    if group == "students":
        return _students(data.steps, data.steps.labelled.tokens)
    return {}


def _temperature(steps: Steps, number: int) -> float:
    """Share that a vote wins back from tokens sampled at the temperature that delivers the level."""
    rows, heat = steps.judged, temperature_for(steps.sample.logits, LEVEL)
    drawn = sampled(rows.logits, heat, REPEATS + 1, torch.Generator().manual_seed(number))
    agreed = [float((drawn[:, :1] == 0).float().mean()), float((drawn[:, 1:].mode(dim=1).values == 0).float().mean())]
    return won_back(agreed[1], agreed[0], 1.0)
