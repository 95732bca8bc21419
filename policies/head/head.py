"""The modulation head: behind a model's final layer, it answers every slot of a batch at that slot's own setting."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from typing import Any, Self

import torch
from torch import Tensor

from policies.calibration.calibration import Calibration
from policies.field.ladder import phi
from policies.head.blocks import block_means, spread
from policies.head.buffers import Tables
from policies.head.focus import Target, focus_std
from policies.head.levels import Levels
from policies.head.modulated import Modulated
from policies.head.phrases import FocusTable
from policies.head.slots import LevelTable, Setting


class Head(Tables):
    """Redistributes clean logits to the settings of S slots: the items of a batch, or the seats of a text engine.

    Order: clean logits, utility, focus. Slots at level 1.0 without focus keep the model's own logits, bit for bit.
    A step reads tables on the device that were written when an item took its slot: it has no loop over rows, waits for
    nothing, and its shapes depend on S and on how many levels and targets are in use, rounded up. The squares of a map
    that share their noise are those of the calibration's `block`.

    Args:
        calibration: solved for this final layer on this installation's field.
        secret: the installation's noise secret.
        features: H, width of the final layer's input.
        classes: K, width of its output.
        slots: S; a slot numbered S is nobody's and stays clean.
        contention: how many of the highest logits contend for focus: 2 for classes, 50 for a vocabulary.
        device: where the final layer is.

    Attributes:
        seats: [R] int64 on the device, where rows are no items of a batch: the slot of each row of a step.
        watched: whether the last batch's features and answers are kept, for whoever audits them; modulated answers are
            then float32 whatever the model's dtype, so that none are rounded to ties.
        seen, last: those.
    """

    waves: Tensor
    phases: Tensor
    order: Tensor
    seats: Tensor | None = None
    watched = False
    seen: Tensor | None = None
    last: Modulated | None = None

    def __init__(
        self,
        calibration: Calibration,
        secret: bytes,
        *,
        features: int,
        classes: int,
        slots: int,
        contention: int = 2,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.ladder = calibration.ladder(secret, features=features, classes=classes)
        self.table("waves", self.ladder.w)
        self.table("phases", self.ladder.b)
        self._matrices = Levels(self.ladder, torch.device("cpu"))
        self._solved: tuple[Calibration, dict[float, int]] = (calibration, {})
        self._sold: frozenset[float] = frozenset()
        self._contention, self._items = contention, -1
        self._make_slots(slots)
        self.to(device)

    def _make_slots(self, slots: int) -> None:
        depth = len(self.ladder.matrix(0))
        self.slots = slots
        self.levels = LevelTable(slots, depth, self.ladder.classes)
        self.focus = FocusTable(slots, self.ladder.classes, depth, self._contention)
        self.table("order", torch.arange(slots))
        self._settings: dict[int, Setting] = {}

    @property
    def calibration(self) -> Calibration:
        """Which position delivers which level, as of the last refit."""
        return self._solved[0]

    @property
    def floor(self) -> float:
        """The lowest level that is delivered."""
        return self.calibration.floor

    @property
    def modulates(self) -> bool:
        """Whether any slot is below level 1.0, or has a focus."""
        return self.levels.in_use or self.focus.in_use

    def position(self, setting: Setting) -> int:
        """Where on the ladder a setting is delivered now; a refit may have raised the floor above its level."""
        if setting.position is not None:
            return setting.position
        calibration, known = self._solved  # once: a refit may come in between
        if setting.level not in known:
            known[setting.level] = calibration.position(max(setting.level, calibration.floor))
        return known[setting.level]

    def prepare(self, setting: Setting) -> list[Future[Tensor]]:
        """Have built what a setting needs, so that no step waits for it. From any thread.

        Returns:
            What is waited for; whoever holds it keeps it at hand, whatever levels others ask for meanwhile.

        Raises:
            ValueError: a class or a strength out of range.
        """
        self._deltas(setting)
        position = self.position(setting)
        needed = [self._matrices.at(position)] if position else []
        return [*needed, self._matrices.focus()] if setting.focus else needed

    def matrix_at(self, position: int) -> Tensor:
        """C [D, K] float32 at a ladder position, on the head's device; it may take a second. From any thread."""
        return self._matrices.at(position, keep=False).result()

    def keep(self, levels: Collection[float]) -> None:
        """Keep the matrices of these levels, which are sold, whatever others are asked for."""
        self._sold = frozenset(levels)
        self._matrices.keep({self.position(Setting(level)) for level in levels} - {0})

    def kept(self) -> list[float]:
        """Levels, in hundredths, whose matrices are at hand."""
        at = {self.position(Setting(x / 100)): x / 100 for x in range(round(self.floor * 100), 100)}
        return [at[position] for position in self._matrices.kept() if position in at]

    def write(self, slot: int, setting: Setting, history: Sequence[int] = ()) -> None:
        """Give a slot to an item. In the thread that runs the model, between two forwards.

        Args:
            history: tokens before an answer, in which a phrase may have begun.
        """
        self._write(slot, [setting])
        if setting.focus:
            self.focus.remember(slot, history)

    def write_all(self, settings: Sequence[Setting]) -> None:
        """Give slot i to item i of a batch; more items than slots make more slots."""
        if len(settings) > self.slots:
            device = self.waves.device
            self._make_slots(len(settings))
            self.to(device)
        self._write(0, [*settings, *[Setting()] * (self.slots - len(settings))])
        self._items = len(settings)

    def write_everyone(self, setting: Setting) -> None:
        """Answer every item of every batch at one setting."""
        self._write(0, [setting, *[Setting()] * (self.slots - 1)])
        self._items = -1

    @property
    def asked(self) -> Setting | list[Setting]:
        """What `write_everyone` or `write_all` wrote last; level 1.0 before that."""
        if self._items == -1:
            return self._settings.get(0, Setting())
        return [self._settings[slot] for slot in range(self._items)]

    def slots_of(self, items: int) -> Tensor:
        """The slots [B] int64 of a batch's items.

        Raises:
            ValueError: settings were given for another number of items.
        """
        if self._items == -1:
            return self.order.new_zeros(items)
        if self._items != items:
            raise ValueError(f"settings for {self._items} items, but a batch of {items}")
        return self.order[:items]

    def _write(self, first: int, settings: Sequence[Setting]) -> None:
        slots = range(first, first + len(settings))
        if all(self._settings.get(slot) == setting for slot, setting in zip(slots, settings, strict=True)):
            return
        self._lay_out(first, settings)
        self._settings.update(zip(slots, settings, strict=True))

    def _lay_out(self, first: int, settings: Sequence[Setting]) -> None:
        positions = [self.position(setting) for setting in settings]
        focus = [self._deltas(setting) for setting in settings]
        with torch.inference_mode(False):
            self.levels.write(first, positions, lambda position: self._matrices.at(position).result())
            self.focus.write(first, focus, lambda: self._matrices.focus().result())

    def forward(self, features: Tensor, logits: Tensor, slots: Tensor) -> Modulated:
        """Redistribute clean logits.

        Args:
            features: [N, H] of rows, or [B, H, h, w] of maps: the final layer's input.
            logits: [N, K] or [B, K, h, w]: its clean output.
            slots: [N] or [B] int64, whose each is; S for nobody's.
        """
        if not self.modulates:
            return Modulated(logits, logits, logits)
        if logits.ndim == 4:
            span = self._span(slots)
            if span.start == span.stop:
                return Modulated(logits, logits, logits)
            if span == slice(0, len(slots)):
                return self._maps(features, logits, slots)
            return self._maps(features[span], logits[span], slots[span]).within(logits, span)
        seen = self.phi(features)
        utility = self.levels.add_noise(logits.float(), seen, slots) if self.levels.in_use else logits
        out = self.focus.on_rows(utility.float(), seen, slots) if self.focus.in_use else utility
        return Modulated(out, logits, utility)

    def _maps(self, features: Tensor, logits: Tensor, slots: Tensor) -> Modulated:
        block, size = self.calibration.block, (logits.shape[2], logits.shape[3])
        means = block_means(features, block)
        seen = self.phi(means.flatten(2).transpose(1, 2).flatten(0, 1)).reshape(len(means), means[0, 0].numel(), -1)
        squares = (len(means), -1, *means.shape[-2:])
        out = utility = logits
        if self.levels.in_use:
            noise = self.levels.noise(seen, slots).reshape(squares)
            out = utility = logits.float() + spread(noise, block, *size)
        if self.focus.in_use:
            xi = spread((seen @ self.focus.columns).transpose(1, 2).reshape(squares), block, *size)
            # Classes-last maps, as convolutions give them, take a CPU twice as long here.
            out = self.focus.on_maps(utility.float().contiguous(), xi, slots)
        return Modulated(out, logits, utility)

    def _span(self, slots: Tensor) -> slice:
        """A batch's items from the first modulated one to the last, where not to see the others saves a CPU time."""
        if slots.device.type != "cpu" or torch.compiler.is_compiling():
            return slice(0, len(slots))
        at = [i for i, slot in enumerate(slots.tolist()) if self.levels.position(slot) or self.focus.has(slot)]
        return slice(at[0], at[-1] + 1) if at else slice(0, 0)

    def phi(self, features: Tensor) -> Tensor:
        """The field's coordinates [N, D] float32 of features [N, H]."""
        return phi(features, self.waves, self.phases, ones=self.ladder.balance is not None)

    def chosen(self, tokens: Tensor, slots: Tensor) -> None:
        """Remember the tokens [N] int64 that the step of `forward` led to, which may begin a phrase in focus."""
        self.focus.chosen(tokens, slots)

    def recalibrate(self, calibration: Calibration) -> Callable[[], None]:
        """Move the levels along the same path; the noise of a position stays what it is.

        What is at hand and what is in use is built ahead at its new position. From any thread.

        Args:
            calibration: a refit of the one in use, on the same field.

        Returns:
            What puts it in place; call it where no forward runs.

        Raises:
            ValueError: a calibration of another field, which would draw new noise.
        """
        if not self.calibration.same_field(calibration):
            raise ValueError(
                "a refit must keep name, length scale, depth, metric, block and balance of the noise field"
            )
        levels = {*self.kept(), *self._sold, *(setting.level for setting in list(self._settings.values()))}
        positions = {calibration.position(max(level, calibration.floor)) for level in levels} - {0}
        held = [self._matrices.at(position) for position in positions]
        for future in held:
            future.result()

        def adopt() -> None:
            self._solved = calibration, {}
            self.keep(self._sold)
            # All at once: cells of the old positions are free for the new ones.
            self._lay_out(0, [self._settings.get(slot, Setting()) for slot in range(self.slots)])
            held.clear()

        return adopt

    def _deltas(self, setting: Setting) -> dict[Target, float]:
        """Signed standard deviations of a setting's focus: in logit units, or of a later token of a phrase in margins.

        Raises:
            ValueError: a class or a strength out of range.
        """
        if not setting.focus:
            return {}
        named = {Target(t) if isinstance(t, int) else t: strength for t, strength in setting.focus.items()}
        return {target: self._delta(target, strength) for target, strength in named.items() if strength}

    def _delta(self, target: Target, strength: float) -> float:
        if not 0 <= target.index < self.ladder.classes:
            raise ValueError(f"focus names class {target.index}, but there are {self.ladder.classes}")
        gaps = self.calibration.favour_gap if strength > 0 else self.calibration.avoid_gap
        gap = 1.0 if target.prefix else gaps[target.index] if len(gaps) > 1 else gaps[0]
        return math.copysign(focus_std(strength, gap), strength)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "seen": None, "last": None}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self._matrices.to(self.waves.device)
        return self
