"""Attacks on the next token after the clean answer so far, judged by agreement with the clean greedy token."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.attacks.text_correctors import FullLogits, from_tokens, least_squares, ranker
from benchmarks.attacks.text_features import CUTS, REWORDINGS, WITH_PREFIX, Steps
from benchmarks.attacks.text_sources import Field, Source, Vocabulary
from benchmarks.attacks.text_students import Scorer, linear, nearest
from benchmarks.attacks.text_victim import Clean
from policies.attacks.answers import won_back

LEVEL = 0.7
LOWER_LEVELS = (0.65, 0.6, 0.55, 0.5, 0.45, 0.4, 0.35, 0.3, 0.25, 0.2, 0.15)
VOCABULARY = 49152
REPEATS, SAMPLES, HEAT = 100, 10, 0.7
TAUGHT, OWN = 5000, 600
"""Steps that a student is taught, and labelled steps behind them."""
CANDIDATES = 8
_OPEN = 24
_CUT = len(REWORDINGS)
KINDS: dict[str, list[int]] = {
    "15 rewordings": list(range(_CUT)),
    "4 cut prompts": [0, *range(_CUT, _CUT + len(CUTS))],
    "4 prefixes of the answer in the prompt": [0, *range(_CUT + len(CUTS), _CUT + len(CUTS) + WITH_PREFIX)],
    "all 23 near-duplicates": list(range(_CUT + len(CUTS) + WITH_PREFIX)),
}


@dataclass
class TextAttack:
    """Sources of noise, one for each account, under attack; a method is an attack and returns the share won back."""

    accounts: list[Source]
    steps: Steps
    seed: int = 0
    _levels: dict[float, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def noisy(self, rows: Clean, level: float = LEVEL, account: int = 0) -> Tensor:
        """Logits [N, 256] of steps at a level."""
        return rows.logits + self.accounts[account](rows.features, rows.index, level)

    @cached_property
    def answers(self) -> Tensor:
        """Tokens [N, Q] answered to the queries of each judged step; -1 where the prompt shows the token itself."""
        steps = self.steps
        noise = self.accounts[0](steps.features.flatten(0, 1), steps.index.flatten(0, 1), LEVEL)
        given = (steps.logits + noise.reshape(steps.logits.shape)).argmax(dim=2, keepdim=True)
        return steps.index.gather(2, given)[..., 0].masked_fill(~steps.untold, -1)

    @cached_property
    def taught(self) -> Tensor:
        """Tokens [N] answered to the labelled steps."""
        return _first(self.steps.labelled, self.noisy(self.steps.labelled))

    @cached_property
    def single(self) -> float:
        """One answer each."""
        return self._agreement(self.answers[:, 0])

    def share(self, tokens: Tensor) -> float:
        """Share of the gap that tokens [N] for the judged steps win back."""
        return won_back(self._agreement(tokens), self.single, 1.0)

    def repeats(self) -> float:
        """The same prompt again and again; a field that answers the second time as the first is asked no more."""
        rows = self.steps.judged
        given = [_first(rows, self.noisy(rows)) for _ in range(2)]
        if not torch.equal(*given):
            given += [_first(rows, self.noisy(rows)) for _ in range(REPEATS - 2)]
        return self.share(_majority(torch.stack(given, dim=1)))

    def vote(self, kind: str) -> float:
        """Most frequent token of the queries of a kind."""
        return self.share(_majority(self.answers[:, KINDS[kind]]))

    def everyone(self) -> float:
        """One query each from every account."""
        rows = self.steps.judged
        given = [_first(rows, self.noisy(rows, account=account)) for account in range(len(self.accounts))]
        return self.share(_majority(torch.stack(given, dim=1)))

    def samples(self) -> float:
        """Self-consistency: ten samples at temperature 0.7, the most frequent token (Wang 2022)."""
        rows = self.steps.judged
        generator = torch.Generator().manual_seed(self.seed)
        drawn = [(self.noisy(rows) / HEAT).softmax(dim=1).multinomial(1, generator=generator) for _ in range(SAMPLES)]
        return self.share(_majority(rows.index.gather(1, torch.cat(drawn, dim=1))))

    def combined_levels(self) -> float:
        """Raw logits at 0.7, 0.6 and 0.5 in the linear combination that is nearest to the clean ones."""
        rows = self.steps.judged
        levels = torch.stack([self.noisy(rows, level) for level in (LEVEL, 0.6, 0.5)])
        centred = (levels - levels.mean(dim=2, keepdim=True)).flatten(1).T.double()
        target = (rows.logits - rows.logits.mean(dim=1, keepdim=True)).flatten()[:, None].double()
        weights = torch.linalg.lstsq(centred, target).solution[:, 0].float()
        return self.share(_first(rows, (levels * weights[:, None, None]).sum(dim=0)))

    def levels_by_tokens(self, hidden: int, labelled: int = 2000) -> float:
        """Tokens at the level and eleven lower ones; which of them, a corrector with labelled steps says."""
        both = self.steps.labelled.part(slice(labelled)), self.steps.judged
        for level in (LEVEL, *LOWER_LEVELS):
            if level not in self._levels:
                one, two = (_first(rows, self.noisy(rows, level)) for rows in both)
                self._levels[level] = one, two
        examples, judged = (torch.stack(column, dim=1) for column in zip(*self._levels.values(), strict=True))
        taught = _candidates(examples)
        asked = _candidates(judged)
        score = ranker(_by_query(examples, taught), _place(taught, both[0].tokens), hidden)
        return self.share(_best(asked, score(_by_query(judged, asked))))

    def table(self, answers: Tensor) -> Tensor:
        """Each answered token replaced by the clean one that it most often stands for among the labelled steps."""
        seen: dict[int, Counter[int]] = defaultdict(Counter)
        for answer, truth in zip(self.taught.tolist(), self.steps.labelled.tokens.tolist(), strict=True):
            seen[answer][truth] += 1
        meaning = torch.arange(VOCABULARY)
        for answer, truths in seen.items():
            (best, count), *_ = truths.most_common(1)
            if count > truths[answer]:
                meaning[answer] = best
        return torch.where(answers < 0, answers, meaning[answers.clamp(min=0)])

    def corrector(self) -> float:
        """`table` on one answer each."""
        return self.share(self.table(self.answers[:, 0]))

    def corrected_vote(self, hidden: int) -> float:
        """All near-duplicates; which of their tokens, a corrector fitted on the other half of the prompts says."""
        given = self.answers
        tokens = _candidates(given)
        seen, right = _by_query(given, tokens), _place(tokens, self.steps.judged.tokens)
        seen = torch.cat([seen, seen.mean(dim=2, keepdim=True)], dim=2)
        half, best = torch.arange(len(given)) < len(given) // 2, torch.zeros(len(given), dtype=torch.long)
        for rows in (half, ~half):
            best[~rows] = _best(tokens[~rows], ranker(seen[rows], right[rows], hidden)(seen[~rows]))
        return self.share(best)

    @cached_property
    def students(self) -> list[Scorer]:
        """A linear and a kNN student of the answers to 5,000 steps, on the model's own features."""
        rows, given = self.steps.labelled.part(slice(TAUGHT)), self.taught[:TAUGHT]
        return [make(rows.features, given, VOCABULARY) for make in (linear, nearest)]

    def beside_students(self, hidden: int) -> float:
        """The own answer, or what students of other answers say instead; 600 labelled steps decide between them."""
        labelled = slice(TAUGHT, TAUGHT + OWN)
        rows, given = self.steps.labelled.part(labelled), self.taught[labelled]
        tokens, seen = self._with_students(rows, given)
        asked, other = self._with_students(self.steps.judged, self.answers[:, 0])
        return self.share(_best(asked, ranker(seen, _place(tokens, rows.tokens), hidden)(other)))

    def _with_students(self, rows: Clean, given: Tensor) -> tuple[Tensor, Tensor]:
        """Candidates [N, C], the answer first, and what is known of each, [N, C, F]."""
        scores = torch.stack([score(rows.features) for score in self.students])
        tokens = torch.cat([given[:, None], (scores[0] + scores[1]).topk(CANDIDATES - 1, dim=1).indices], dim=1)
        of_each = scores.gather(2, tokens.expand(2, -1, -1)).permute(1, 2, 0)
        own = (tokens == given[:, None]).float()[..., None]
        highest = scores.amax(dim=2).T[:, None].expand(-1, CANDIDATES, -1)
        return tokens, torch.cat([own, of_each, of_each.clamp(min=1e-3).log(), own * highest], dim=2)

    def full_logits(self, words: Vocabulary, gold: int, tokens_only: bool) -> float:
        """Every logit seen, and for some steps what a gold key sees: all logits again, or the token alone."""
        source = self.accounts[0]
        assert isinstance(source, Field)
        seen = FullLogits(words.rows, words.gram, source.matrix(LEVEL))
        rows, judged = self.steps.labelled.part(slice(gold)), self.steps.judged
        noisy, clean = seen.places(rows.features, source.ladder.phi(rows.features))
        if tokens_only:
            index = rows.index[:, :_OPEN]
            right = torch.zeros(len(rows), dtype=torch.long)
            wrong = from_tokens(noisy, seen.directions(index), seen.logits(noisy, index), right)
        else:
            wrong = least_squares(noisy, noisy - clean)
        asked, _ = seen.places(judged.features, source.ladder.phi(judged.features))
        return self.share(_first(judged, seen.logits(asked - asked @ wrong, judged.index)))

    def plausible(self) -> float:
        """Mean clean log-probability, in nats, of the tokens answered: what a level's errors are worth."""
        rows = self.steps.judged
        shown = F.log_softmax(rows.logits, dim=1)
        return float(shown.gather(1, self.noisy(rows).argmax(dim=1, keepdim=True)).mean())

    def _agreement(self, tokens: Tensor) -> float:
        return float((tokens == self.steps.judged.tokens).float().mean())


def _first(rows: Clean, logits: Tensor) -> Tensor:
    return rows.index.gather(1, logits.argmax(dim=1, keepdim=True))[:, 0]


def _majority(answers: Tensor) -> Tensor:
    """Most frequent token of answers [N, Q]; among equals the first asked, -1 aside."""
    return torch.tensor([Counter(t for t in row if t >= 0).most_common(1)[0][0] for row in answers.tolist()])


def _candidates(answers: Tensor) -> Tensor:
    """The most frequent tokens [N, C] of answers [N, Q], -2 where there are fewer than C."""
    rows = [[t for t, _ in Counter(t for t in row if t >= 0).most_common(CANDIDATES)] for row in answers.tolist()]
    return torch.tensor([row + [-2] * (CANDIDATES - len(row)) for row in rows])


def _by_query(answers: Tensor, tokens: Tensor) -> Tensor:
    """Which queries answered each candidate, [N, C, Q]."""
    return (answers[:, None, :] == tokens[:, :, None]).float()


def _place(tokens: Tensor, truth: Tensor) -> Tensor:
    """The place of the true token [N] among candidates [N, C], or -1."""
    same = tokens == truth[:, None]
    return torch.where(same.any(dim=1), same.float().argmax(dim=1), -1)


def _best(tokens: Tensor, scores: Tensor) -> Tensor:
    return tokens.gather(1, scores.argmax(dim=1, keepdim=True))[:, 0]
