"""Attacks on text: the next token after the clean answer so far, judged by agreement with the clean greedy token."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.attacks.records import Records
from benchmarks.attacks.sources import secret
from benchmarks.attacks.text_features import CUTS, REWORDINGS, WITH_PREFIX, Steps, text_steps
from policies.attacks.answers import sampled, temperature_for, won_back
from policies.calibration.calibration import _median_distance
from policies.calibration.schemes import TEXT
from policies.field.ladder import NoiseLadder
from policies.field.metric import duplicate_metric
from policies.field.variance import POSITIONS, variance

LEVEL, LOWER_LEVELS = 0.7, (0.6, 0.5)
VOCABULARY = 49152
LENGTH_SCALE, DEPTH = TEXT.length_scale, TEXT.depth
ACCOUNTS, REPEATS = 8, 100
METRIC_PROMPTS = 8
Noise = Callable[[Tensor, Tensor], Tensor]
"""Features [N, H] and contenders [N, 256] to their noise at variance 1, [N, 256]."""


def measure(folder: Path, secrets: int) -> Records:
    """Every attack against every source; the first prompts fit a metric, the others are attacked."""
    steps, records = text_steps(folder / "text"), Records()
    nearby = steps.features[:METRIC_PROMPTS].transpose(1, 2).flatten(0, 1)
    metric = duplicate_metric(nearby, steps.sample_features, torch.zeros(len(steps.sample_features)).long(), 32)
    for number in range(secrets):
        for name, source in _sources(number, steps, metric).items():
            attack = TextAttack(source, steps, METRIC_PROMPTS)
            records.run(name, attack.rows(name))
        records.run("temperature", {"100 repeats, vote": partial(_temperature, attack, number)})
        records.save(folder / "text.json")
    return records


class Field:
    """The ladder's noise of one secret at the contenders of a step, its levels solved on a sample.

    Args:
        metric: [H, m], or None for the features as they are.
    """

    def __init__(self, number: int, steps: Steps, length_scale: float = LENGTH_SCALE, metric: Tensor | None = None):
        seen = steps.sample_features if metric is None else steps.sample_features @ metric
        ell = length_scale * _median_distance(seen, steps.sample_index[:, 0])
        self._ladder = NoiseLadder(
            secret(number), "text", features=steps.features.shape[-1], classes=VOCABULARY, length_scale=ell,
            depth=DEPTH, metric=metric,
        )  # fmt: skip
        self._steps = steps
        self._positions: dict[float, int] = {}
        self._matrices: dict[int, Tensor] = {}

    def __call__(self, features: Tensor, index: Tensor, level: float) -> Tensor:
        """Noise [N, 256] of steps at a level."""
        if level not in self._positions:
            self._positions[level] = self._solved(level)
        return self._at(features, index, self._positions[level])

    def _at(self, features: Tensor, index: Tensor, position: int) -> Tensor:
        if position not in self._matrices:
            self._matrices[position] = self._ladder.matrix(position)
        parts = zip(features.split(256), index.split(256), strict=True)
        return torch.cat([(self._ladder.phi(f) @ self._matrices[position]).gather(1, i) for f, i in parts])

    def _solved(self, level: float) -> int:
        steps, low, high = self._steps, 0, POSITIONS
        while high - low > POSITIONS // 2**10:
            middle = (low + high) // 2
            noisy = steps.sample_logits + self._at(steps.sample_features, steps.sample_index, middle)
            del self._matrices[middle]
            low, high = (middle, high) if float((noisy.argmax(dim=1) == 0).float().mean()) > level else (low, middle)
        return low


class Fresh:
    """The paper's: independent noise for every query."""

    def __init__(self, number: int, steps: Steps) -> None:
        self._generator, self._steps = torch.Generator().manual_seed(number), steps
        self._sigma: dict[float, float] = {}

    def __call__(self, features: Tensor, index: Tensor, level: float) -> Tensor:
        """Noise [N, 256] of steps at a level."""
        if level not in self._sigma:
            self._sigma[level] = self._solved(level)
        return self._sigma[level] * torch.randn(index.shape, generator=self._generator)

    def _solved(self, level: float) -> float:
        low, high = 0, POSITIONS
        noise = torch.randn(self._steps.sample_logits.shape, generator=self._generator)
        while high - low > 8:
            middle = (low + high) // 2
            noisy = self._steps.sample_logits + variance(middle) ** 0.5 * noise
            low, high = (middle, high) if float((noisy.argmax(dim=1) == 0).float().mean()) > level else (low, middle)
        return float(variance(low) ** 0.5)


Source = Field | Fresh


@dataclass
class TextAttack:
    """Sources of noise, one for each account, under attack. Attacks return the agreement that they reach.

    Args:
        first: the first prompt that is judged; those before fitted a metric.
    """

    accounts: list[Source]
    steps: Steps
    first: int

    def rows(self, name: str) -> dict[str, Callable[[], float]]:
        """The rows of the table that say something about a source."""
        if name == "key per tenant":
            return {f"{ACCOUNTS} accounts, vote": lambda: self._share(self.everyone())}
        cut = 1 + len(REWORDINGS) - 1
        kinds = {
            "15 rewordings, vote": range(len(REWORDINGS)),
            "4 cut prompts, vote": [0, *range(cut, cut + len(CUTS))],
            "4 prefixes of the answer in the prompt, vote": [0, *range(cut + len(CUTS), cut + len(CUTS) + WITH_PREFIX)],
            "all 23 near-duplicates, vote": range(self.steps.features.shape[1]),
        }
        votes = {row: lambda queries=list(queries): self._share(self.vote(queries)) for row, queries in kinds.items()}
        return {
            "100 repeats, vote": lambda: self._share(self.repeats()),
            **votes,
            "levels 0.7, 0.6 and 0.5, raw logits, best combination": lambda: self._share(self.combined_levels()),
            "corrector, 6,000 labelled steps: token": lambda: self._share(self.corrector(self.answers[:, :1])),
            "both: all 23 near-duplicates, corrector": lambda: self._share(self.corrector(self.answers)),
        }

    @cached_property
    def answers(self) -> Tensor:
        """Tokens [N, Q] answered to the queries of each judged step; -1 where the prompt shows the token itself."""
        features, index, logits = self.judged()
        noise = self.accounts[0](features.flatten(0, 1), index.flatten(0, 1), LEVEL).reshape(logits.shape)
        given = index.gather(2, (logits + noise).argmax(dim=2, keepdim=True))[..., 0]
        return given.masked_fill(~self.steps.untold[self.first :].transpose(1, 2).flatten(0, 1), -1)

    @property
    def clean(self) -> Tensor:
        """The clean greedy token [N] of each judged step."""
        return self.judged()[1][:, 0, 0]

    def single(self) -> float:
        """One answer each."""
        return self.agreement(self.answers[:, :1])

    def repeats(self) -> float:
        """The same prompt again and again."""
        features, index, logits = (part[:, 0] for part in self.judged())
        answers = [logits + self.accounts[0](features, index, LEVEL) for _ in range(REPEATS)]
        return self.agreement(torch.cat([index.gather(1, a.argmax(dim=1, keepdim=True)) for a in answers], dim=1))

    def vote(self, queries: list[int]) -> float:
        """Most frequent token of some queries."""
        return self.agreement(self.answers[:, queries])

    def everyone(self) -> float:
        """One query each from every account."""
        features, index, logits = (part[:, 0] for part in self.judged())
        answers = [logits + account(features, index, LEVEL) for account in self.accounts]
        return self.agreement(torch.cat([index.gather(1, a.argmax(dim=1, keepdim=True)) for a in answers], dim=1))

    def combined_levels(self) -> float:
        """Raw logits at three levels in the linear combination that is nearest to the clean ones."""
        features, index, logits = (part[:, 0] for part in self.judged())
        levels = torch.stack([logits + self.accounts[0](features, index, v) for v in (LEVEL, *LOWER_LEVELS)])
        centred = (levels - levels.mean(dim=2, keepdim=True)).flatten(1).T.double()
        target = (logits - logits.mean(dim=1, keepdim=True)).flatten()[:, None].double()
        weights = torch.linalg.lstsq(centred, target).solution[:, 0].float()
        return float(((levels * weights[:, None, None]).sum(dim=0).argmax(dim=1) == 0).float().mean())

    def corrector(self, answers: Tensor) -> float:
        """Each answered token replaced by the clean one it most often stands for among labelled steps, then a vote."""
        steps = self.steps
        noisy = steps.labelled_logits + self.accounts[0](steps.labelled_features, steps.labelled_index, LEVEL)
        given = steps.labelled_index.gather(1, noisy.argmax(dim=1, keepdim=True))[:, 0].tolist()
        seen: dict[int, Counter[int]] = defaultdict(Counter)
        for answer, truth in zip(given, steps.labelled_index[:, 0].tolist(), strict=True):
            seen[answer][truth] += 1
        table = torch.arange(VOCABULARY)
        for answer, truths in seen.items():
            (best, count), *_ = truths.most_common(1)
            if count > truths[answer]:
                table[answer] = best
        return self.agreement(torch.where(answers < 0, answers, table[answers.clamp(min=0)]))

    def judged(self) -> tuple[Tensor, Tensor, Tensor]:
        """Features [N, Q, H], contenders and clean logits [N, Q, 256] of the judged steps."""
        whole = (self.steps.features, self.steps.index, self.steps.logits)
        one, two, three = (part[self.first :].transpose(1, 2).flatten(0, 1) for part in whole)
        return one, two, three

    def agreement(self, answers: Tensor) -> float:
        """Of the most frequent token of answers [N, Q] with the clean one; among equals the first asked, -1 aside."""
        chosen = [Counter(token for token in row if token >= 0).most_common(1)[0][0] for row in answers.tolist()]
        return float((torch.tensor(chosen) == self.clean).float().mean())

    def _share(self, reached: float) -> float:
        return won_back(reached, self.single(), 1.0)


def _temperature(attack: TextAttack, number: int) -> float:
    """Share that a vote wins back from tokens sampled at the temperature that delivers the level."""
    _, index, logits = (part[:, 0] for part in attack.judged())
    heat = temperature_for(attack.steps.sample_logits, LEVEL)
    drawn = sampled(logits, heat, REPEATS + 1, torch.Generator().manual_seed(number))
    tokens = index.gather(1, drawn)
    return won_back(attack.agreement(tokens[:, 1:]), attack.agreement(tokens[:, :1]), 1.0)


def _sources(number: int, steps: Steps, metric: Tensor) -> dict[str, list[Source]]:
    keys: list[Source] = [Field(1000 * (number + 1) + account, steps) for account in range(ACCOUNTS)]
    return {
        "fresh": [Fresh(number, steps)],
        "key per tenant": keys,
        "ladder": [Field(number, steps)],
        "ladder, metric, ell 0.6": [Field(number, steps, 0.6, metric)],
        "ladder, metric, ell 0.9": [Field(number, steps, 0.9, metric)],
    }
