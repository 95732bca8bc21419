"""A model that is sold at many qualities: what each item is answered at, and the levels' curve, kept and taken off."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from torch import nn

from policies.calibration.calibration import Calibration
from policies.calibration.schemes import LABELS, TEXT
from policies.errors import InvalidRequest
from policies.field.variance import scale_of
from policies.head.attachment import NAME, attach, detach, layer_shape
from policies.head.focus import Target
from policies.head.head import Head
from policies.head.independent import IndependentHead
from policies.head.slots import Setting
from policies.head.words import targets
from policies.library.histories import following
from policies.library.samples import is_text

Noise = Literal["ladder", "independent"]
Focus = Mapping[str | int | Target, float]
Item = float | tuple[float, Focus]


@dataclass(frozen=True)
class Curve:
    """What the noise delivers, measured on the holdout: point i of each list belongs together.

    Attributes:
        positions: places on the noise ladder, rising from 0.
        scales: standard deviations of the noise there, in logit units.
        agreement: share of answers that were still the clean ones; falling from 1.0.
        floor: the lowest level that is delivered.
    """

    positions: tuple[int, ...]
    scales: tuple[float, ...]
    agreement: tuple[float, ...]
    floor: float


class Sold:
    """A model with a head behind its final layer; outside `at` it answers as it did without.

    `Sold(copy)` is that of a copy of such a model, made by `deepcopy` or `torch.save`.

    Args:
        model: one that has a head.
        name: of its final layer; None: found by its head.
        classes: names that focus may use; None: those of `model.config.id2label`.
        tokenizer: with which focus may use words.

    Attributes:
        model: the model.
        head: its head.

    Raises:
        ValueError: a model without a head, or names of another number of classes.
    """

    def __init__(
        self, model: nn.Module, name: str | None = None, classes: Sequence[str] | None = None, tokenizer: Any = None
    ) -> None:
        heads = [path for path, module in model.named_modules() if isinstance(module, Head)]
        if not heads:
            raise ValueError(f"{type(model).__name__} has no head: modulate() puts one on")
        self.model, self._tokenizer = model, tokenizer
        self._name = heads[0].removesuffix(NAME).removesuffix(".") if name is None else name
        width = layer_shape(self.final)[1]
        if classes is not None and len(classes) != width:
            raise ValueError(f"{len(classes)} names for {width} classes")
        self._classes = tuple(classes) if classes is not None else _names(model, width)

    @property
    def final(self) -> nn.Module:
        """The model's own final layer, behind which the head is."""
        return self.model.get_submodule(self._name)

    @property
    def head(self) -> Head:
        """The head.

        Raises:
            ValueError: it was removed.
        """
        if not hasattr(self.final, NAME):
            raise ValueError("the head was removed from this model")
        return cast(Head, self.final.get_submodule(NAME))

    @property
    def floor(self) -> float:
        """The lowest level that is delivered."""
        return self.head.floor

    @contextmanager
    def at(self, level: float | Sequence[Item] = 1.0, focus: Focus | None = None) -> Iterator[nn.Module]:
        """Answer at a level and a focus: `with sold.at(0.7, focus={"cat": 0.9}): model(x)`.

        In one thread; what it was set to before comes back afterwards.

        Args:
            level: of every item of every batch; or, of a batch of just so many items, a level each or a (level, focus)
                each.
            focus: signed strengths in [-0.99, 0.99] by class name or index, by token or, with a tokenizer, by word or
                phrase; it adds to an item's own.

        Raises:
            ValueError: a level below the floor or above 1, an unknown class or word, or a strength out of range.
        """
        wanted: Setting | list[Setting]
        if isinstance(level, int | float):
            wanted = self._setting(level, focus or {})
        else:
            pairs = [(item, {}) if isinstance(item, int | float) else item for item in level]
            wanted = [self._setting(own, {**(focus or {}), **more}) for own, more in pairs]
        before = self.head.asked
        self._set(wanted)
        try:
            with following(self.model, self.head, wanted):
                yield self.model
        finally:
            self._set(before)

    def _set(self, wanted: Setting | list[Setting]) -> None:
        if isinstance(wanted, list):
            self.head.write_all(wanted)
        else:
            self.head.write_everyone(wanted)

    def _setting(self, level: float, focus: Focus) -> Setting:
        if not self.floor <= level <= 1.0:
            raise ValueError(f"a level must lie in [{self.floor:g}, 1], which the model delivers, not {level:g}")
        wanted: dict[int | Target, float] = {}
        words: dict[str, float] = {}
        for name, strength in focus.items():
            if not isinstance(name, str):
                wanted[name] = strength
            elif self._tokenizer is not None:
                words[name] = strength
            else:
                wanted |= dict.fromkeys(self._indices(name), strength)
        try:
            if words:
                wanted.update(targets(self._tokenizer, words, "this model").items())
        except InvalidRequest as error:
            raise ValueError(error.message) from None
        setting = Setting(level, wanted)
        self.head.prepare(setting)
        return setting

    def _indices(self, name: str) -> list[int]:
        found = [index for index, known in enumerate(self._classes) if known == name]
        if not found:
            hint = "pass classes=, or for words tokenizer=, or use indices"
            if self._classes:
                near = difflib.get_close_matches(name, self._classes) or self._classes[:3]
                hint = f"it has {', '.join(near)}" + (" ..." if len(self._classes) > len(near) else "")
            raise ValueError(f"the model has no class '{name}'; {hint}")
        return found

    def curve(self) -> Curve:
        """What was measured: `plt.plot(curve.scales, curve.agreement)` draws it."""
        solved = self.head.calibration
        positions, agreement = zip(*solved.curve, strict=True)
        return Curve(positions, tuple(map(scale_of, positions)), agreement, solved.floor)

    def position(self, level: float) -> int:
        """Where on the noise ladder a level is delivered."""
        return self.head.calibration.position(level)

    def save(self, path: str | Path) -> None:
        """Write levels and field to a JSON file: neither the weights nor the secret."""
        independent = isinstance(self.head, IndependentHead)
        stored = {
            "final": self._name,
            "noise": "independent" if independent else "ladder",
            "classes": self._classes,
            "calibration": json.loads(self.head.calibration.to_json()),
        }
        Path(path).write_text(json.dumps(stored) + "\n")

    @classmethod
    def load(
        cls,
        model: nn.Module,
        path: str | Path,
        secret: bytes | str,
        *,
        fingerprint: str | None = None,
        tokenizer: Any = None,
    ) -> Sold:
        """Put the head that `save` wrote on a model without one; with the same secret its noise is the same.

        Args:
            fingerprint: the one given to `modulate`; None: a hash of the weights, as there.

        Raises:
            ValueError: no such file, other weights, or a model that has a head already.
        """
        from policies.library.modulating import weights_digest

        try:
            stored = json.loads(Path(path).read_text())
            calibration = Calibration.from_json(json.dumps(stored["calibration"]))
            name, noise, classes = (stored[key] for key in ("final", "noise", "classes"))
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not what Sold.save wrote: {error}") from None
        if (fingerprint or weights_digest(model)) != calibration.fingerprint:
            raise ValueError(
                f"{path} was made for other weights or another dtype; if that is meant, pass"
                f" fingerprint='{calibration.fingerprint}'"
            )
        final = model.get_submodule(name)
        key = secret.encode() if isinstance(secret, str) else secret
        attach(final, head_for(final, calibration, key, noise, contention_of(model)))
        return cls(model, name, classes or None, tokenizer)

    def remove(self) -> None:
        """Take the head off: the model is what it was."""
        self._set(Setting())
        detach(self.final)


def head_for(final: nn.Module, calibration: Calibration, secret: bytes, noise: Noise, contention: int) -> Head:
    """A head for a final layer, on its device."""
    features, classes = layer_shape(final)
    made = IndependentHead if noise == "independent" else Head
    device = next(final.parameters()).device
    return made(calibration, secret, features=features, classes=classes, slots=1, contention=contention, device=device)


def contention_of(model: nn.Module) -> int:
    """How many of a row's highest logits contend for focus: of a vocabulary more than of classes."""
    return TEXT.contention if is_text(model) else LABELS.contention


def _names(model: nn.Module, width: int) -> tuple[str, ...]:
    """The class names that a model's configuration has, if it has any."""
    names = getattr(getattr(model, "config", None), "id2label", None)
    if not isinstance(names, Mapping) or len(names) != width:
        return ()
    return tuple(str(names.get(k, names.get(str(k), k))) for k in range(width))
