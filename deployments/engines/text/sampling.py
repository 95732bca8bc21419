"""From logits to the next token: penalties, temperature, min-p, top-k, top-p, keyed Gumbel noise; a row a sequence."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from deployments.contracts.grammar import Grammar
from deployments.contracts.text_rules import probes_of

_FEW = 1024
"""Most likely tokens among which a nucleus is looked for first."""


@dataclass(frozen=True)
class SamplingParams:
    """How one answer is drawn.

    Attributes:
        max_tokens: most tokens of the answer, at least 1; 0 where it is an echo alone.
        temperature: 0 is greedy.
        top_p: nucleus, in (0, 1].
        top_k: most likely tokens to draw from; 0 is all.
        seed: makes the answer reproducible, whatever else is in the batch; None draws one.
        min_p: of the likeliest token's probability, what a token needs to be drawn, in [0, 1].
        stop: texts that end the answer and are cut off it.
        stop_token_ids: tokens that do.
        ignore_eos: whether the tokens by which the model ends its answers end this one.
        min_tokens: tokens of the answer before which nothing of these ends it.
        frequency_penalty: taken off a token's logit for each time that the answer has it already.
        presence_penalty: taken off once where the answer has it at all.
        repetition_penalty: divides the positive logit, or multiplies the negative, of a token that the prompt or the
            answer has (Keskar et al., 2019); in (0, inf), 1 is none.
        logit_bias: (token, added to its logit) pairs.
        logprobs: log-probabilities of the answer's tokens with so many of the likeliest beside each; None: none.
        grammar: what the answer must be; None: anything.
        echo: whether the prompt comes before the answer; with `logprobs` its tokens' log-probabilities, too.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None
    grammar: Grammar | None = None
    echo: bool = False

    @property
    def reads(self) -> bool:
        """Whether the prompt's own tokens have log-probabilities."""
        return self.echo and self.logprobs is not None

    @property
    def drawn(self) -> int:
        """Most tokens that are drawn: one at least, at which a prompt has been read."""
        return max(1, self.max_tokens)

    @property
    def random(self) -> bool:
        """Whether tokens are drawn, not the likeliest taken; below 1e-4 nothing else could be drawn in float32."""
        return self.temperature >= 1e-4

    @property
    def adjusts(self) -> bool:
        """Whether single tokens' logits are changed."""
        return bool(self.frequency_penalty or self.presence_penalty or self.logit_bias)

    @property
    def repeats(self) -> bool:
        """Whether tokens that have come weigh otherwise than those that have not."""
        return self.repetition_penalty != 1.0

    @property
    def probes(self) -> tuple[str, ...]:
        """Fields of it that measure logits."""
        return probes_of(self.logit_bias, self.repetition_penalty, self.grammar)


def seed_key(secret: bytes, seed: int, choice: int = 0) -> int:
    """The 64-bit key (signed) of one of a request's answers: choices of one seed differ, and do so each time alike.

    Who knew the draws of a seed could measure logits with them, so it takes up to 64 bytes of a secret as well.
    """
    digest = hashlib.blake2b(f"{seed}:{choice}".encode(), key=secret, digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def step_keys(seeds: Tensor, steps: Tensor) -> Tensor:
    """Keys of draws: `seed_key`s [N] int64 and each answer's tokens so far [N] int64 to [N] int64."""
    return _mix(seeds + (steps + 1) * _STEP)


def gumbel(keys: Tensor, size: int) -> Tensor:
    """Standard Gumbel noise [N, size] float32, a fixed function of keys [N] int64 and the column (splitmix64).

    Adding it to logits and taking the argmax samples from their softmax (Gumbel, 1954).
    """
    bits = _mix(keys[:, None] + torch.arange(size, device=keys.device) * _GOLDEN)
    # Small uniforms make the winners, and those float32 resolves finely; the clamp keeps 1.0 out of the logarithm.
    uniform = _shift(bits, 24).float().add_(0.5).mul_(2.0**-40).clamp_(max=1.0 - 2.0**-24)
    noise: Tensor = uniform.neg_().log1p_().neg_().log_().neg_()
    return noise


def keep_top_k(scores: Tensor, k: Tensor, most: int) -> Tensor:
    """Scores [N, V] with all but each row's k [N] highest at -inf; k of 0 keeps all. `most` is the largest k."""
    values = scores.topk(min(most, scores.shape[1]), dim=1).values
    threshold = values.gather(1, (k[:, None] - 1).clamp(0, values.shape[1] - 1))
    return scores.masked_fill((scores < threshold) & (k > 0)[:, None], -torch.inf)


def keep_min_p(scores: Tensor, p: Tensor) -> Tensor:
    """Scores [N, V] with all at -inf whose probability is below p [N] of their row's highest; 0 keeps all."""
    return scores.masked_fill(scores < (scores.amax(dim=1) + p.log())[:, None], -torch.inf)


def keep_top_p(scores: Tensor, p: Tensor) -> Tensor:
    """Scores [N, V] with all at -inf outside the smallest set of most likely tokens that reaches p [N]; 1 keeps all."""
    probabilities = scores.softmax(dim=1)
    falling = _likeliest(probabilities, p)
    outside = falling.cumsum(dim=1) - falling >= p[:, None]
    least = falling.masked_fill(outside, torch.inf).amin(dim=1)
    keep = (probabilities >= least[:, None]) | (p >= 1.0)[:, None]
    return scores.masked_fill(~keep, -torch.inf)


def _likeliest(probabilities: Tensor, p: Tensor) -> Tensor:
    """Each row's probabilities, falling, as many as reach p where it is below 1."""
    if probabilities.device.type == "cpu":
        # A few hundred nearly always do, and a CPU sorts a whole vocabulary as long as it takes to make its logits.
        few = probabilities.topk(min(_FEW, probabilities.shape[1]), dim=1).values
        if bool(((few.sum(dim=1) >= p) | (p >= 1.0)).all()):
            return few
    return probabilities.sort(dim=1, descending=True).values


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


_GOLDEN, _MIX1, _MIX2, _STEP = (
    _signed(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD1B54A32D192ED03)
)


def _mix(x: Tensor) -> Tensor:
    """In place: over a vocabulary each temporary costs more than the arithmetic."""
    x.bitwise_xor_(_shift(x, 30)).mul_(_MIX1)
    x.bitwise_xor_(_shift(x, 27)).mul_(_MIX2)
    return x.bitwise_xor_(_shift(x, 31))


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    shifted: Tensor = (x >> bits).bitwise_and_(2 ** (64 - bits) - 1)
    return shifted
