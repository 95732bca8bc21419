"""All sequences of a step, modulated to their tenants' terms and drawn from, in one pass over the step's rows."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessor
from transformers.generation.continuous_batching.requests import FutureRequestState

from deployments.engines.draws import DrawPlan, DrawTables
from deployments.engines.level_matrix import LevelMatrix
from deployments.engines.live import LiveRows
from deployments.engines.sampling import SamplingParams
from deployments.engines.text_modulation import TermsPlan, TextModulation, TextTerms
from policies.audit import LevelAudit
from policies.layer import Modulated, ModulatedLayer

_LEVELS = 101
"""Levels are hundredths."""
LIVE_ROWS = 8192
LIVE_EVERY = 4
"""Steps of a stream resemble each other, and every row kept is a copy off the device."""
NO_PLACE = (-1, -1)


@dataclass(frozen=True)
class LogprobRecord:
    """Log-probabilities of one drawn token, of the modulated logits.

    Attributes:
        chosen: scalar, the token's own.
        values: [k] of the most likely tokens, falling.
        tokens: [k] int64 their ids.
    """

    chosen: Tensor
    values: Tensor
    tokens: Tensor


@dataclass(eq=False)
class Seat:
    """One running sequence.

    Attributes:
        key: of its draws, from `seed_key`.
        prompt: its tokens before the answer.
        matrix: its level's, from `prepare`: while it waits for its turn others' levels do not displace it.
        records: one for each drawn token, where the parameters ask for log-probabilities.
        source: a hash of the prompt, for the audit and the live rows.
    """

    terms: TextTerms
    params: SamplingParams
    key: int
    prompt: list[int]
    matrix: LevelMatrix | None = None
    records: list[LogprobRecord] = field(default_factory=list)

    @cached_property
    def source(self) -> int:
        return hash(tuple(self.prompt))


class ModulatedRows(ContinuousBatchingLogitsProcessor):
    """The one logits processor: modulation, penalties, temperature, top-k, top-p, keyed noise.

    The final layer's input rows come from a hook of the same forward, each row's seat number from the argument row.
    All else lies in tables on the device, written when a sequence takes its seat, so a step neither loops over rows
    nor waits for the device. Rows without a seat are those of prompts still being read; nobody looks at their token.

    Args:
        layer: the modulated layer over the model's own final layer.
        seats: how many sequences there can be.
        rows: how many a step can have.

    Attributes:
        counts: of finished sequences, by level.
        live: final-layer inputs of every fourth step.
    """

    def __init__(self, layer: ModulatedLayer, seats: int, rows: int) -> None:
        self.supported_kwargs: dict[str, type] = {"seat": int, "flow": str}
        self.ignored_kwargs: tuple[str, ...] = ()
        self._device = next(layer.final.parameters()).device
        self._nobody, self._rows = seats, rows
        self._modulation = TextModulation(layer, seats)
        self._draws = DrawTables(seats, layer.ladder.classes, self._device)
        self._taken: dict[int, Seat] = {}
        self._free = list(range(seats))
        self._new: dict[int, Seat] = {}
        self._changed = True
        self._lock = threading.Lock()
        self._terms, self._plan = TermsPlan(), DrawPlan()
        self._row_seats: list[int] = []
        self._features: Tensor | None = None
        self._level = torch.zeros(seats + 1, dtype=torch.int64, device=self._device)
        self._audit = torch.zeros(_LEVELS, 2, dtype=torch.int64, device=self._device)
        self._streams = torch.zeros(seats + 1, 2, dtype=torch.int64, device=self._device)
        self._places: dict[int, tuple[int, int]] = {}
        self._stepping = threading.Lock()
        self.counts = LevelAudit()
        self.live = LiveRows(LIVE_ROWS)
        self.steps = 0
        self._hook = layer.final.register_forward_pre_hook(self._remember)

    def prepare(self, terms: TextTerms) -> LevelMatrix | None:
        """Build what these terms need, for their `Seat` to hold; safe from any thread, and may take a second."""
        return self._modulation.prepare(terms)

    def sit(self, seat: Seat) -> int:
        """Take a free seat; its number. Its rows are written at the next step, in the engine's thread."""
        with self._lock:
            number = self._free.pop()
            self._taken[number] = self._new[number] = seat
            self._changed = True
        return number

    def leave(self, number: int) -> None:
        """Free a seat, once the engine is done with its sequence."""
        with self._lock:
            steps, agreed = self._streams[number].tolist()
            self._streams[number] = 0
            seat = self._taken[number]
            self.counts.finish(seat.terms.level, steps, agreed, source=seat.source)
            del self._taken[number]
            self._new.pop(number, None)
            self._free.append(number)
            self._changed = True

    def adopt(self, adopt: Callable[[], None]) -> None:
        """Move levels between two steps: call `adopt`, and count the sequences under way anew. From any thread."""
        with self._stepping:
            adopt()
            self._streams.zero_()
            self._changed = True

    def audit(self) -> dict[float, tuple[int, int]]:
        """Since start, by level: decoding steps, and those whose token after utility, before focus, is the clean."""
        counts = enumerate(self._audit.tolist())
        return {level / 100: (steps, agreed) for level, (steps, agreed) in counts if level and steps}

    def close(self) -> None:
        """Take the hook off the model."""
        self._hook.remove()

    def fill_defaults(self, int32_tensor: Tensor) -> None:
        """No seat."""
        int32_tensor.fill_(-1)

    def prepare_tensor_args(self, requests_with_new_token: list[FutureRequestState]) -> Tensor:
        """Seat numbers of the step's rows, int32; as many rows more as there can be have none."""
        self._row_seats = [request.state.logit_processor_kwargs["seat"] for request in requests_with_new_token]
        padding = [-1] * (self._rows - len(self._row_seats))
        return torch.tensor(self._row_seats + padding, dtype=torch.int32)

    def __call__(self, scores: Tensor, tensor_arg: Tensor) -> Tensor:
        """Scores [N, V] float32 to those whose argmax is each row's next token."""
        features, self._features = self._features, None
        if features is None or features.shape[0] != scores.shape[0]:
            raise RuntimeError(
                "the final layer's input does not match its logits: the modulated layer is not in the path"
            )
        slots = tensor_arg[: scores.shape[0]].long()
        slots = torch.where(slots < 0, self._nobody, slots)
        with self._stepping:
            self._seat_new()
            modulated = self._modulation.modulate(features, scores, slots, self._terms)
            drawn = self._draws.scores(modulated.logits, slots, self._plan)
            tokens = drawn.argmax(dim=1)
            self._count(modulated, tokens if drawn is modulated.utility else None, slots)
            self._keep(features)
        self.steps += 1
        self._draws.drawn(tokens, slots, self._plan)
        self._modulation.chosen(tokens, slots, self._terms)
        if self._plan.logprobs is not None:
            self._record(modulated.logits, tokens, self._plan.logprobs)
        return drawn

    def _seat_new(self) -> None:
        """Write the rows of new sequences, and lay out all terms anew where the set of sequences has changed."""
        if not self._changed:
            return
        with self._lock:
            new, self._new, self._changed = self._new, {}, False
            seats = dict(self._taken)
        for number, seat in new.items():
            self._modulation.write(number, seat.terms, seat.prompt)
            self._draws.write(number, seat.params, seat.key)
            self._level[number] = round(seat.terms.level * 100)
        self._places = {number: (seat.source, self._modulation.position(seat.terms)) for number, seat in seats.items()}
        self._terms = self._modulation.plan({number: seat.terms for number, seat in seats.items()})
        self._plan = DrawPlan.of({number: seat.params for number, seat in seats.items()})

    def _count(self, modulated: Modulated, highest: Tensor | None, slots: Tensor) -> None:
        """Audit a step; `highest` [N] int64 is where the utility-modulated logits are, if that is known already."""
        counts = torch.ones(len(slots), 2, dtype=torch.int64, device=self._device)
        if modulated.utility is not modulated.clean:
            if highest is None:
                highest = modulated.utility.argmax(dim=1)
            # By its value: a CPU finds the highest logit several times faster than its place.
            clean = modulated.clean
            counts[:, 1] = clean.gather(1, highest[:, None])[:, 0] == clean.amax(dim=1)
        self._audit.index_add_(0, self._level[slots], counts)
        self._streams.index_add_(0, slots, counts)

    def _keep(self, features: Tensor) -> None:
        """Live rows, of sequences that still have their seat."""
        if self.steps % LIVE_EVERY:
            return
        places = [self._places.get(number, NO_PLACE) for number in self._row_seats]
        if places and NO_PLACE not in places:
            sources, positions = zip(*places, strict=True)
            self.live.add(features[: len(places)], sources, positions)

    def _record(self, logits: Tensor, tokens: Tensor, most: int) -> None:
        """Give each sequence that asked its token's log-probabilities, left on the device until they are told."""
        logprobs = logits.log_softmax(dim=1)
        chosen = logprobs.gather(1, tokens[:, None])[:, 0]
        top = logprobs.topk(most, dim=1)
        for row, number in enumerate(self._row_seats):
            seat = self._taken.get(number)
            if seat is not None and seat.params.logprobs is not None:
                seat.records.append(LogprobRecord(chosen[row], top.values[row], top.indices[row]))

    def _remember(self, _module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._features = inputs[0].reshape(-1, inputs[0].shape[-1])
