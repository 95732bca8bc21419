"""All sequences of a step, modulated to their tenants' terms and drawn from, in one pass over the step's rows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessor
from transformers.generation.continuous_batching.requests import FutureRequestState

from deployments.engines.live import LiveRows
from deployments.engines.sampling import Draw, SamplingParams, sample
from policies.audit import LevelAudit
from policies.layer import ModulatedLayer, RowTerms, Terms

LIVE_ROWS = 4096
LIVE_EVERY = 4
"""Steps of a stream resemble each other, and every row kept is a copy off the device."""


@dataclass
class Seat:
    """One running request as a step's row sees it.

    Attributes:
        position: tokens of prompt and answer before the one being drawn; never restarts, so it keys the noise.
        steps, agreed: since its level was last moved: tokens drawn, and those that are the clean ones after utility.
        stream: a number of its own, for the live rows.
    """

    terms: RowTerms
    params: SamplingParams
    seed: int
    position: int = 0
    steps: int = 0
    agreed: int = 0
    stream: int = field(default_factory=count().__next__)


class ModulatedRows(ContinuousBatchingLogitsProcessor):
    """The one logits processor: modulation, temperature, top-k, top-p, keyed noise.

    The final layer's input rows come from a hook of the same forward, each row's seat number from the argument row.
    Rows without a seat are those of prompts still being read; nobody looks at their token.

    Args:
        layer: the modulated layer over the model's own final layer.
        seats: how many requests can run at once.

    Attributes:
        counts: steps, and those whose token after utility, before focus, is the clean one.
        live: final-layer inputs of every fourth step.
    """

    def __init__(self, layer: ModulatedLayer, seats: int) -> None:
        self.supported_kwargs: dict[str, type] = {"seat": int}
        self.ignored_kwargs: tuple[str, ...] = ()
        self.layer = layer
        self._seats: list[Seat | None] = [None] * seats
        self._free = list(range(seats))
        self._features: Tensor | None = None
        self._compiled: tuple[list[RowTerms], Terms] | None = None
        self.counts = LevelAudit()
        self.live = LiveRows(LIVE_ROWS)
        self._steps = 0
        self._step_lock = threading.Lock()
        self._hook = layer.final.register_forward_pre_hook(self._remember)

    def sit(self, seat: Seat) -> int:
        """Take a free seat; its number."""
        number = self._free.pop()
        self._seats[number] = seat
        return number

    def leave(self, number: int) -> None:
        """Free a seat, once the engine is done with its request."""
        if seat := self._seats[number]:
            self.counts.finish(seat.terms.level, seat.steps, seat.agreed)
        self._seats[number] = None
        self._free.append(number)

    def adopt(self, adopt: Callable[[], None]) -> None:
        """Move levels between two steps: call `adopt`, and begin to count anew."""
        with self._step_lock:
            adopt()
            self._compiled = None
            for seat in self._seats:
                if seat is not None:
                    seat.steps = seat.agreed = 0

    def close(self) -> None:
        """Take the hook off the model."""
        self._hook.remove()

    def fill_defaults(self, int32_tensor: Tensor) -> None:
        """No seat."""
        int32_tensor.fill_(-1)

    def prepare_tensor_args(self, requests_with_new_token: list[FutureRequestState]) -> Tensor:
        """Seat numbers of the step's rows, [seats] int32; rows after the last have none."""
        numbers = torch.full((len(self._seats),), -1, dtype=torch.int32)
        for row, request in enumerate(requests_with_new_token):
            number = request.state.logit_processor_kwargs["seat"]
            if (seat := self._seats[number]) is not None:
                seat.position = request.state.position_offset
            numbers[row] = number
        return numbers

    def __call__(self, scores: Tensor, tensor_arg: Tensor) -> Tensor:
        """Scores [N, V] float32 to those whose argmax is each row's next token."""
        features, self._features = self._features, None
        if features is None or features.shape[0] != scores.shape[0]:
            raise RuntimeError(
                "the final layer's input does not match its logits: the modulated layer is not in the path"
            )
        taken = [self._seats[n] for n in tensor_arg[: scores.shape[0]].tolist() if n >= 0]
        seats = [seat or _NOBODY for seat in taken]
        rows = len(seats)
        with self._step_lock:
            modulated = self._modulate(features[:rows], scores[:rows], seats)
        drawn = sample(modulated, [Draw(seat.params, seat.seed, seat.position) for seat in seats])
        return torch.cat([drawn, scores[rows:]]) if rows < scores.shape[0] else drawn

    def _modulate(self, features: Tensor, logits: Tensor, seats: list[Seat]) -> Tensor:
        floor = self.layer.floor  # a refit may have raised it above the level of a request under way
        rows = [RowTerms(max(seat.terms.level, floor), seat.terms.focus) for seat in seats]
        if self._compiled is None or self._compiled[0] != rows:
            self._compiled = rows, self.layer.compile(rows)
        modulated = self.layer.modulate(features, logits, self._compiled[1])
        agreed = torch.ones(len(rows), dtype=torch.bool)
        if modulated.utility is not modulated.clean:
            agreed = (modulated.utility.argmax(dim=1) == modulated.clean.argmax(dim=1)).cpu()
        self._count(features, seats, agreed.tolist())
        return modulated.logits

    def _count(self, features: Tensor, seats: Sequence[Seat], agreed: Sequence[bool]) -> None:
        for seat, same in zip(seats, agreed, strict=True):
            self.counts.count(seat.terms.level, 1, int(same))
            seat.steps += 1
            seat.agreed += same
        if self._steps % LIVE_EVERY == 0 and seats:
            self.live.add(features, [seat.stream for seat in seats])
        self._steps += 1

    def _remember(self, _module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._features = inputs[0].reshape(-1, inputs[0].shape[-1])


_NOBODY = Seat(RowTerms(), SamplingParams(max_tokens=1, temperature=0.0), 0)
