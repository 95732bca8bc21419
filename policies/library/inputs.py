"""What a model is calibrated on, of whatever form, as batches of arguments of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH = 32
"""Single items, of one shape, that run together."""


@dataclass(frozen=True)
class Call:
    """Arguments of one call of a model; the first dimension of each tensor is the batch.

    Attributes:
        args, kwargs: as the model takes them.
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def tensors(self) -> list[Tensor]:
        """Those of the arguments that are tensors."""
        return [value for value in (*self.args, *self.kwargs.values()) if isinstance(value, Tensor)]

    def of(self, model: nn.Module) -> Any:
        """What the model answers."""
        return model(*self.args, **self.kwargs)

    def each(self, change: Callable[[Tensor], Tensor]) -> Call:
        """The same with every tensor changed."""

        def changed(value: Any) -> Any:
            return change(value) if isinstance(value, Tensor) else value

        return Call(tuple(map(changed, self.args)), {name: changed(value) for name, value in self.kwargs.items()})

    def rows(self, rows: slice) -> Call:
        """Some of its inputs."""
        return self.each(lambda value: value[rows] if value.ndim else value)

    @property
    def items(self) -> int:
        """How many inputs there are."""
        return min((len(value) for value in self.tensors() if value.ndim), default=0)

    def pictures(self) -> Tensor | None:
        """The pictures [B, channels, h, w] among the arguments, if it is pictures that the model is given."""
        return next((value for value in self.tensors() if value.ndim == 4 and value.is_floating_point()), None)

    def with_pictures(self, pictures: Tensor) -> Call:
        """The same with other pictures."""
        own = self.pictures()
        return self.each(lambda value: pictures if value is own else value)


def calls(model: nn.Module, holdout: Iterable[Any]) -> Iterator[Call]:
    """Inputs as batches on the model's device and in its dtype.

    Args:
        holdout: tensors, batches or single items of one shape; dictionaries of keyword arguments; tuples of positional
            ones; lists, as a DataLoader makes of (input, label), whose first element is the input. A tensor or a
            dictionary in place of the iterable is taken as one batch of all.

    Raises:
        ValueError: it holds something else.
    """
    like = next(iter(model.parameters()), torch.zeros(()))
    pictures = any(isinstance(module, nn.Conv2d) for module in model.modules())

    def moved(value: Tensor) -> Tensor:
        return value.to(like.device, like.dtype if value.is_floating_point() else None)

    for call in _joined(_call(item, pictures) for item in _items(holdout)):
        yield call.each(moved)


def prompts(model: nn.Module, holdout: Iterable[Any]) -> Iterator[Call]:
    """As `calls`, of prompts for `generate`: token ids [T] or [B, T], or dictionaries that hold `input_ids`.

    Single prompts are padded on the left to run together, where the model's answer goes on from its prompt.
    """
    config = getattr(model, "generation_config", None)
    pad = getattr(config, "pad_token_id", None) or 0
    together: list[Call] = []
    for call in calls(model, (torch.tensor(x) if _are_ids(x) else x for x in _items(holdout))):
        named = {**dict(zip(["input_ids"], call.args, strict=False)), **call.kwargs}
        if "input_ids" in named and "attention_mask" not in named:
            named["attention_mask"] = torch.ones_like(named["input_ids"])
        seq2seq = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
        if call.items != 1 or seq2seq or named.keys() != {"input_ids", "attention_mask"}:
            yield Call((), named)
            continue
        together.append(Call((), named))
        if len(together) == BATCH:
            yield _padded(together, pad)
            together = []
    if together:
        yield _padded(together, pad)


def _padded(singles: list[Call], pad: int) -> Call:
    longest = max(call.kwargs["input_ids"].shape[1] for call in singles)

    def padded(name: str, value: int) -> Tensor:
        rows = [call.kwargs[name] for call in singles]
        return torch.cat([F.pad(row, (longest - row.shape[1], 0), value=value) for row in rows])

    return Call((), {"input_ids": padded("input_ids", pad), "attention_mask": padded("attention_mask", 0)})


def _items(holdout: Iterable[Any]) -> Iterator[Any]:
    if isinstance(holdout, Tensor):
        yield from torch.split(holdout, BATCH)
    elif isinstance(holdout, Mapping):
        rows = Call((), dict(holdout)).items
        for start in range(0, rows, BATCH):
            # A mapping of another kind, as a tokenizer gives, need not be sliceable.
            yield {k: v[start : start + BATCH] if isinstance(v, Tensor) else v for k, v in holdout.items()}
    else:
        yield from holdout


def _call(item: Any, pictures: bool) -> Call:
    if isinstance(item, list) and item:
        item = item[0]
    if isinstance(item, Mapping):
        call = Call((), dict(item))
    elif isinstance(item, tuple):
        call = Call(item)
    elif isinstance(item, Tensor):
        call = Call((item,))
    else:
        raise ValueError(f"holdout holds {type(item).__name__}; it must be tensors, dictionaries or tuples of them")
    tensors = call.tensors()
    if not tensors:
        raise ValueError("holdout holds an item without a tensor")
    single = tensors[0].ndim == 1 or (pictures and tensors[0].ndim == 3)
    return call.each(lambda value: value[None]) if single else call


def _joined(each: Iterable[Call]) -> Iterator[Call]:
    """Single items of one shape after one another, as batches."""
    waiting: list[Call] = []
    for call in each:
        if waiting and (len(waiting) == BATCH or call.items != 1 or not _alike(waiting[0], call)):
            yield _batch(waiting)
            waiting = []
        if call.items == 1 and len(call.tensors()) == len(call.args) + len(call.kwargs):
            waiting.append(call)
        else:
            yield call
    if waiting:
        yield _batch(waiting)


def _alike(one: Call, other: Call) -> bool:
    return one.kwargs.keys() == other.kwargs.keys() and [(x.shape, x.dtype) for x in one.tensors()] == [
        (x.shape, x.dtype) for x in other.tensors()
    ]


def _batch(singles: list[Call]) -> Call:
    args = tuple(torch.cat(values) for values in zip(*(call.args for call in singles), strict=True))
    return replace(
        singles[0], args=args, kwargs={k: torch.cat([c.kwargs[k] for c in singles]) for k in singles[0].kwargs}
    )


def _are_ids(item: Any) -> bool:
    return isinstance(item, list) and bool(item) and all(isinstance(token, int) for token in item)
