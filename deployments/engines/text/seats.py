"""All sequences of a step: their slots of the head, their draws, and what is noted of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessor
from transformers.generation.continuous_batching.requests import FutureRequestState

from deployments.engines.live import LiveRows
from deployments.engines.text.draws import DrawPlan, DrawTables
from deployments.engines.text.grammars.masks import Masks
from deployments.engines.text.prompt_rows import PromptRows
from deployments.engines.text.seat import LogprobRecord, Seat
from deployments.engines.text.step_counts import StepCounts
from policies.answers import highest
from policies.audit import LevelAudit
from policies.head.attachment import attach, detach
from policies.head.head import Head
from policies.head.modulated import Modulated
from policies.head.slots import Setting

LIVE_EVERY = 4
"""Steps of a stream resemble each other, and every row kept is a copy off the device."""
STEP_TIMEOUT_S = 60.0
NO_PLACE = (-1, -1, "")


class Seats(ContinuousBatchingLogitsProcessor):
    """Seats of running sequences: each is a slot of the head, and a row of every table that draws need.

    A step begins in a hook of the model, which writes what has changed and tells the head the slot of each row; the
    head modulates at the final layer; the step ends in this logits processor, which draws. All lies in tables on the
    device, so a step neither loops over rows nor waits. Rows without a seat are those of prompts still being read.

    Args:
        model: whose forward is hooked.
        final: its final layer.
        seats: how many sequences there can be.
        rows: how many a step can have.
        live: where final-layer inputs of every fourth step are kept.
        counts: told of finished sequences, by level.
        ends: tokens by which the model ends its answers.
    """

    def __init__(
        self,
        model: nn.Module,
        final: nn.Linear,
        seats: int,
        rows: int,
        live: LiveRows,
        counts: LevelAudit,
        ends: Collection[int] = (),
    ) -> None:
        self.supported_kwargs: dict[str, type] = {"seat": int, "flow": str, "reads": bool}
        self.ignored_kwargs: tuple[str, ...] = ()
        self._final, self._device = final, final.weight.device
        self._nobody, self._rows = seats, rows
        self._masks = Masks(final.out_features, self._device)
        self._draws = DrawTables(seats, final.out_features, self._device, ends)
        self._taken: dict[int, Seat] = {}
        self._free = list(range(seats))
        self._new: dict[int, Seat] = {}
        self._left: set[int] = set()
        self._changed = True
        self._lock = threading.Lock()
        self._in_step = self._begun = False
        self._waiting: list[tuple[Callable[[], None], threading.Event]] = []
        self._plan = DrawPlan()
        self._recording = self._masked = False
        self._row_seats: list[int] = []
        self._planned: list[int] = []
        self._slots: Tensor | None = None
        self._prompts = PromptRows(self._device)
        self._steps = StepCounts(seats, self._device)
        self._places: dict[int, tuple[int, int, str]] = {}
        self.head: Head | None = None
        self.live, self.counts = live, counts
        self.steps = 0
        self._features: Tensor | None = None
        self._hooks = [
            model.register_forward_pre_hook(self._begin, with_kwargs=True),
            model.register_forward_hook(self._read),
            final.register_forward_pre_hook(self._remember),
        ]

    def put(self, head: Head | None) -> None:
        """Put a head behind the final layer, or none; where no step runs."""
        detach(self._final)
        self.head = head
        if head is not None:
            attach(self._final, head)
            for number, seat in self._taken.items():
                head.write(number, seat.setting, seat.prompt)
        self._changed = True

    def between(self, call: Callable[[], None]) -> None:
        """Call between two steps, and count the sequences under way anew. From any thread.

        Raises:
            RuntimeError: the step under way does not end.
        """

        def counted() -> None:
            call()
            self._steps.restart()
            self._changed = True
            if self._device.type == "cuda":  # the next step runs on another stream
                torch.cuda.current_stream(self._device).synchronize()

        done = threading.Event()
        with self._lock:
            if not self._in_step:
                counted()
                return
            self._waiting.append((counted, done))
        if not done.wait(STEP_TIMEOUT_S):
            with self._lock:
                if (counted, done) in self._waiting:
                    self._waiting.remove((counted, done))
                    raise RuntimeError("a step of the text engine does not end")

    def sit(self, seat: Seat) -> int:
        """Take a free seat; its number. Its rows are written when it first draws, in the engine's thread."""
        with self._lock:
            number = self._free.pop()
            self._taken[number] = self._new[number] = seat
            self._left.discard(number)
            self._changed = True
        return number

    def leave(self, number: int) -> int:
        """Free a seat, once the engine is done with its sequence; the steps that drew a token for it."""
        with self._lock:
            steps, agreed = self._steps.pop(number)
            seat = self._taken.pop(number)
            if seat.level:
                self.counts.finish(seat.level / 100, steps, agreed, source=seat.source)
            self._new.pop(number, None)
            self._left.add(number)
            self._free.append(number)
            self._changed = True
        return steps

    def audit(self) -> dict[float, tuple[int, int]]:
        """Since start, by level: decoding steps, and those whose token after utility, before focus, is the clean."""
        return self._steps.by_level()

    def close(self) -> None:
        """Take the hooks off the model."""
        for hook in self._hooks:
            hook.remove()
        detach(self._final)

    def fill_defaults(self, int32_tensor: Tensor) -> None:
        """No seat."""
        int32_tensor.fill_(-1)

    def scheduled(self, states: Sequence[FutureRequestState]) -> None:
        """The sequences of the next step, in their order."""
        places = [(s.state.logit_processor_kwargs["seat"], s.state.position_offset, s.query_length) for s in states]
        self._prompts.plan(places, self._taken)

    def prepare_tensor_args(self, requests_with_new_token: list[FutureRequestState]) -> Tensor:
        """Seat numbers of the step's rows, int32; as many rows more as there can be have none."""
        self._row_seats = [request.state.logit_processor_kwargs["seat"] for request in requests_with_new_token]
        padding = [-1] * (self._rows - len(self._row_seats))
        return torch.tensor(self._row_seats + padding, dtype=torch.int32)

    def _begin(
        self, _model: nn.Module, inputs: tuple[Any, ...], given: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Before a step's forward, on its stream: what has changed is written, and each row gets its slot."""
        if "logits_processor_args" not in given:
            return None  # not the engine: `generate` on the same model
        slots = given["logits_processor_args"][0].long()
        more = self._prompts.begin(len(slots))
        with self._lock:
            self._in_step = True
            self._slots = torch.where(slots < 0, self._nobody, slots)
            if self.head is not None:
                self.head.seats = self._slots if more is None else torch.cat([self._slots, more.slots])
            numbers = [*self._row_seats, *self._prompts.numbers]
            if self._changed or self._planned != numbers:
                self._changed, self._planned = False, numbers
                self._seat({n: self._taken[n] for n in numbers if n in self._taken})
        self._masks.advance()
        self._begun = True
        if more is None:
            return None
        return inputs, given | {"logits_to_keep": torch.cat([given["logits_to_keep"], more.rows])}

    def _read(self, _model: nn.Module, _inputs: tuple[Any, ...], answer: Any) -> None:
        """After it: rows of prompts are taken off the logits, which from here on are those of next tokens."""
        answer.logits = self._prompts.taken(answer.logits)

    def between_steps(self) -> None:
        """In the engine's thread: the last step stands, and none has begun."""
        self._steps.begin()
        self._begun = False

    def _seat(self, rows: Mapping[int, Seat]) -> None:
        """Write what is new of a step's own rows, and plan the step: another's fault must not be theirs."""
        left, self._left = self._left, set()
        head = self.head
        if head is not None:
            for number in left:
                head.write(number, Setting())
        for number in [number for number in rows if number in self._new]:
            self._write(number, rows[number])
            del self._new[number]
        if head is not None:
            self._places = {n: (seat.source, head.position(seat.setting), seat.flow) for n, seat in rows.items()}
        self._plan = DrawPlan.of({number: seat.params for number, seat in rows.items()})
        self._recording = any(seat.features is not None for seat in rows.values())
        self._masked = any(seat.matcher is not None for seat in rows.values())

    def _write(self, number: int, seat: Seat) -> None:
        self._draws.write(number, seat.params, seat.key, seat.prompt, seat.answered)
        self._steps.write(number, seat)
        if self.head is not None:
            self.head.write(number, seat.setting, [*seat.prompt, *seat.answered])
        elif seat.setting != Setting():
            raise RuntimeError("a sequence below level 1.0, and no head to modulate it")

    def take_back(self, answers: Mapping[int, Sequence[int]]) -> None:
        """Undo a step that has failed, in the engine's thread: each sequence's answer is as it was before it.

        Args:
            answers: by number, the tokens that each of the step had drawn.
        """
        with self._lock:
            self._steps.take_back()
            for number, answer in answers.items():
                if seat := self._taken.get(number):
                    seat.take_back(answer)
                    self._new[number] = seat
            self._features, self._changed = None, True
        if self._begun:  # else what it knows is of the step before
            self._masks.forget()
        self._end()

    def __call__(self, scores: Tensor, tensor_arg: Tensor) -> Tensor:
        """Scores [N, V] float32 to those whose argmax is each row's next token."""
        assert self._slots is not None  # `_begin` ran before this step's forward
        slots = self._slots[: len(scores)]
        features, modulated = self._answered(len(scores))
        allowed = self._allowed(scores)
        drawn = self._draws.scores(allowed, slots, self._plan)
        tokens = highest(drawn)
        greedy = drawn is scores and not (self.head and self.head.focus.in_use)
        self._count(modulated, tokens if greedy else None, slots)
        self._keep(features)
        self.steps += 1
        self._draws.drawn(tokens, slots, self._plan)
        self._masks.chose(tokens)
        if self.head is not None:
            self.head.chosen(tokens, slots)
        if self._plan.logprobs is not None:
            self._record(scores, tokens, self._plan.logprobs)
        self._end()
        return drawn

    def _end(self) -> None:
        with self._lock:
            self._in_step = False
            waiting, self._waiting = self._waiting, []
            for call, done in waiting:
                call()
                done.set()

    def _remember(self, _module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._features = inputs[0].reshape(-1, inputs[0].shape[-1])

    def _answered(self, rows: int) -> tuple[Tensor, Modulated | None]:
        """What the final layer was given in this step's forward, and what the head made of its answers."""
        features, self._features = self._features, None
        last = None
        if self.head is not None:
            last, self.head.last, self.head.seen = self.head.last, None, None
        if more := self._prompts.ended():
            features = None if features is None or len(features) != rows + more else features[:rows]
            if self.head is not None and last is not None:
                last = last.first(rows)
                self.head.focus.first(rows)
        if features is None or len(features) != rows or (self.head is not None and last is None):
            raise RuntimeError("the final layer's input does not match its logits: the head is not in the path")
        return features, last

    def _allowed(self, scores: Tensor) -> Tensor:
        """Scores [N, V] float32 of what each row's grammar allows, the rest at -inf; themselves where none has one."""
        if not self._masked:
            return scores
        seats = map(self._taken.get, self._row_seats)
        return self._masks.applied(scores, [None if seat is None else seat.matcher for seat in seats])

    def _count(self, modulated: Modulated | None, answers: Tensor | None, slots: Tensor) -> None:
        """Audit a step; `answers` [N] int64 is where the logits after utility are highest, if that is known already."""
        counts = torch.ones(len(slots), 2, dtype=torch.int64, device=self._device)
        if modulated is not None and modulated.utility is not modulated.clean:
            utility = highest(modulated.utility) if answers is None else answers
            counts[:, 1] = highest(modulated.clean) == utility
        self._steps.add(slots, counts)

    def _keep(self, features: Tensor) -> None:
        """What is kept of a step: live rows of every fourth, and for those that calibrate each of their own."""
        if self._recording:
            for row, number in enumerate(self._row_seats):
                if (seat := self._taken.get(number)) and seat.features is not None:
                    seat.features.append(features[row].float().cpu())
        if self.steps % LIVE_EVERY:
            return
        places = [self._places.get(number, NO_PLACE) for number in self._row_seats]
        if places and NO_PLACE not in places:
            sources, positions, flows = zip(*places, strict=True)
            self.live.add(features[: len(places)], sources, positions, flows)

    def _record(self, logits: Tensor, tokens: Tensor, most: int) -> None:
        """Give each sequence that asked its token's log-probabilities, left on the device until they are told."""
        records = LogprobRecord.of_rows(logits, tokens, most)
        for number, record in zip(self._row_seats, records, strict=False):
            seat = self._taken.get(number)
            if seat is not None and seat.params.logprobs is not None:
                seat.records.append(record)
