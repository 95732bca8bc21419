"""SmolLM2 as it is attacked: clean greedy answers, and features and contenders of any prompt."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from benchmarks.levels import SMOLLM2
from deployments.engines.text.loading.language_models import LanguageModel, load_language_model

CONTENDERS = 256
"""Highest clean logits of a step that are kept: no other can win."""
EARLY = 10
"""Of the model's 30 layers, those whose output stands for a weaker encoder of the attacker's own."""
CONTEXT = 24
"""Tokens before a step that a student of the attacker's own reads."""
_AT_ONCE = 32
T = TypeVar("T")


def kept(path: Path, compute: Callable[[], T]) -> T:
    """What a file of the cache holds, computed and written where there is none."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        began = time.perf_counter()
        torch.save(compute(), path)
        print(f"  {path.stem}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    found: T = torch.load(path, weights_only=False)
    return found


@dataclass(frozen=True)
class Clean:
    """Decoding steps of clean answers, each after the clean answer so far.

    Attributes:
        features: [N, H] float32, the final layer's input.
        index: [N, 256] int64 tokens of the highest clean logits, falling; the first is the clean token.
        logits: [N, 256] float32.
        early: [N, H] float32, the stream after layer `EARLY`.
        context: [N, CONTEXT] int64, the tokens before; 0 where there are fewer.
    """

    features: Tensor
    index: Tensor
    logits: Tensor
    early: Tensor
    context: Tensor

    def __len__(self) -> int:
        return len(self.features)

    @property
    def tokens(self) -> Tensor:
        """The clean greedy tokens [N] int64."""
        return self.index[:, 0]

    def part(self, rows: slice | Tensor) -> Clean:
        """Some of them."""
        return Clean(*(value[rows] for value in vars(self).values()))

    @classmethod
    def join(cls, parts: Sequence[Clean]) -> Clean:
        """All of several."""
        return cls(*(torch.cat(values) for values in zip(*(vars(part).values() for part in parts), strict=True)))


class Victim:
    """The clean model, loaded when first asked."""

    @cached_property
    def model(self) -> LanguageModel:
        """With its tokenizer and final layer."""
        return load_language_model(SMOLLM2, torch.device("cpu"))

    @property
    def _tokenizer(self) -> Any:
        return self.model.tokenizer

    def chat(self, text: str) -> list[int]:
        """A chat of one message, up to where the answer begins."""
        message = [{"role": "user", "content": text}]
        return list(self._tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False))

    def encode(self, text: str) -> list[int]:
        """A plain prompt."""
        return list(self._tokenizer.encode(text))

    def decode(self, tokens: Tensor) -> str:
        """The text of tokens."""
        return str(self._tokenizer.decode(tokens.tolist(), skip_special_tokens=True))

    @torch.inference_mode()
    def contenders(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features [N, H] to the tokens [N, 256] int32 of the highest clean logits and these, float16."""
        parts = [self.model.final(part).float().topk(CONTENDERS, dim=1) for part in features.float().split(256)]
        return torch.cat([part.indices for part in parts]).int(), torch.cat([part.values for part in parts]).half()

    def answered(self, prompts: Sequence[str], steps: int) -> list[Clean]:
        """Clean greedy answers of at most so many tokens, an end token left out."""
        ids = [self.chat(prompt) for prompt in prompts]
        order = sorted(range(len(ids)), key=lambda n: len(ids[n]))
        answers: dict[int, Clean] = {}
        for at in range(0, len(order), _AT_ONCE):
            some = order[at : at + _AT_ONCE]
            answers.update(zip(some, self._together([ids[n] for n in some], steps), strict=True))
            print(f"  answered {len(answers)} of {len(ids)} prompts", file=sys.stderr, flush=True)
        return [answers[n] for n in range(len(ids))]

    @torch.inference_mode()
    def _together(self, ids: Sequence[list[int]], steps: int) -> list[Clean]:
        width = max(map(len, ids))
        prompts = torch.tensor([[0] * (width - len(one)) + one for one in ids])
        mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in ids])
        model: Any = self.model.model
        given = model.generate(
            prompts, attention_mask=mask, do_sample=False, max_new_tokens=steps, output_hidden_states=True,
            return_dict_in_generate=True,
        )  # fmt: skip
        last = torch.stack([layers[-1][:, -1] for layers in given.hidden_states], dim=1)
        early = torch.stack([layers[EARLY][:, -1] for layers in given.hidden_states], dim=1)
        whole = torch.cat([torch.zeros(len(ids), CONTEXT, dtype=torch.long), given.sequences], dim=1)
        answers = []
        for row, tokens in enumerate(given.sequences[:, width:].tolist()):
            ends = [n for n, token in enumerate(tokens) if token in self.model.end_tokens]
            count = ends[0] if ends else len(tokens)
            index, logits = self.contenders(last[row, :count])
            before = whole[row].unfold(0, CONTEXT, 1)[width : width + count]
            answers.append(
                Clean(last[row, :count].float(), index.long(), logits.float(), early[row, :count], before.clone())
            )
        return answers

    @torch.inference_mode()
    def after(self, prompts: Sequence[list[int]], answer: Tensor) -> Tensor:
        """Features [Q, T, H] of the steps of an answer [T] behind each of some prompts, which start alike."""
        shared = next(n for n, column in enumerate(zip(*prompts, strict=False)) if len(set(column)) > 1)
        rest = [[*prompt[shared:], *answer.tolist()[:-1]] for prompt in prompts]
        hidden = self.continued(prompts[0][:shared], rest)
        ends = [len(one) for one in rest]
        return torch.stack([hidden[n, end - len(answer) : end] for n, end in enumerate(ends)])

    @torch.inference_mode()
    def continued(self, prefix: list[int], rest: Sequence[list[int]]) -> Tensor:
        """Features [Q, L, H] behind a prefix that is computed once; what is behind a row's end means nothing."""
        width = max(map(len, rest))
        model: Any = self.model.model.model
        past = model(input_ids=torch.tensor([prefix]), use_cache=True).past_key_values
        past.batch_repeat_interleave(len(rest))
        ids = torch.tensor([one + [0] * (width - len(one)) for one in rest])
        features: Tensor = model(input_ids=ids, past_key_values=past, use_cache=True).last_hidden_state
        return features.float()
