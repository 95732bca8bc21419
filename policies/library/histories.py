"""Phrases in focus under `generate`: what each text has come to is read from what its model is called with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from policies.head.focus import Target
from policies.head.head import Head
from policies.head.slots import Setting


@contextmanager
def following(model: nn.Module, head: Head, wanted: Setting | Sequence[Setting]) -> Iterator[None]:
    """Tell the head each text's tokens while the model answers; only where a phrase of several is in focus.

    Greedy or sampled answers: beams change places, and are not followed.
    """
    settings = [wanted] if isinstance(wanted, Setting) else wanted
    if not any(isinstance(target, Target) and target.prefix for setting in settings for target in setting.focus):
        yield
        return
    hook = model.register_forward_pre_hook(_Texts(head, wanted), with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


class _Texts:
    """What a batch of texts has come to so far."""

    def __init__(self, head: Head, wanted: Setting | Sequence[Setting]) -> None:
        self._head, self._wanted = head, wanted
        self._texts = torch.zeros(0, 0, dtype=torch.int64)

    def __call__(self, _model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tokens = kwargs.get("decoder_input_ids", kwargs.get("input_ids", args[0] if args else None))
        if not isinstance(tokens, Tensor):
            return
        # Of the cache, by whatever name this model takes it.
        lengths = [value.get_seq_length() for value in kwargs.values() if hasattr(value, "get_seq_length")]
        goes_on = any(lengths) and len(tokens) == len(self._texts)
        texts = torch.cat([self._texts.to(tokens), tokens], dim=1) if goes_on else tokens
        if texts.shape[1] == self._texts.shape[1] + 1 and torch.equal(texts[:, :-1], self._texts.to(texts)):
            self._head.chosen(texts[:, -1], self._head.slots_of(len(texts)))
        else:
            self._begin(texts)
        self._texts = texts

    def _begin(self, texts: Tensor) -> None:
        # A slot each, which keeps the text's last tokens.
        settings = [self._wanted] * len(texts) if isinstance(self._wanted, Setting) else self._wanted
        self._head.write_all(settings)
        for slot, (setting, text) in enumerate(zip(settings, texts.tolist(), strict=True)):
            self._head.write(slot, setting, text)
