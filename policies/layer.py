"""The modulated final layer: any Linear or 1x1 Conv2d, with each row's logits redistributed to that row's terms."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policies.calibration import Calibration
from policies.focus import apply_focus, focus_std
from policies.matrices import Matrices
from policies.rows import Modulated, RowTerms, Terms


class ModulatedLayer(nn.Module):
    """A final layer whose every row is answered at its tenant's terms, in one batch.

    The squares of a map that share their noise are those of the calibration's `block`: who smooths a mask finds fewer
    draws to average, and the field costs a block-th of a block-th.

    Order: clean logits, utility, focus. Rows at level 1.0 without focus keep the wrapped layer's own logits, bit for
    bit. Noise is computed in float32 and the answer returned in the wrapped layer's dtype.

    Args:
        final: `nn.Linear` or 1x1 `nn.Conv2d`.
        calibration: solved for this layer on this installation's field.
        secret: the installation's noise secret.
        contention: how many of the highest logits contend for focus: 2 for classes, 50 for a vocabulary.

    Raises:
        TypeError: another kind of final layer.
    """

    def __init__(self, final: nn.Module, calibration: Calibration, secret: bytes, *, contention: int = 2) -> None:
        super().__init__()
        features, classes = layer_shape(final)
        self.final = final
        self.calibration = calibration
        self.contention = contention
        self.ladder = calibration.ladder(secret, features=features, classes=classes)
        self.last: Modulated | None = None
        self._matrices = Matrices(self._build)
        self._focus_columns: Tensor | None = None  # [K, D]
        self._positions: tuple[Calibration, dict[float, int]] = (calibration, {})
        self._building = threading.Lock()
        self._rows: Sequence[RowTerms] | None = None

    @property
    def floor(self) -> float:
        """The lowest level this layer delivers."""
        return self.calibration.floor

    def prepare(self, terms: RowTerms) -> None:
        """Build the matrices that these terms need, so that no batch waits for them. Safe from any thread."""
        if position := self._position(terms.level):
            self.matrix_at(position)
        if terms.focus and self._focus_columns is None:
            with self._building:
                if self._focus_columns is None:
                    self._focus_columns = self.ladder.focus_matrix().T.contiguous().to(self._device)

    def matrix(self, level: float) -> Tensor:
        """C [D, K] float32 at which a level below 1.0 is delivered, on the layer's device. Safe from any thread."""
        return self.matrix_at(self.calibration.position(level))

    def matrix_at(self, position: int, *, keep: bool = True) -> Tensor:
        """C [D, K] float32 at a ladder position, on the layer's device. Safe from any thread.

        Args:
            keep: as `Matrices.at`.
        """
        return self._matrices.at(position, keep=keep)

    def levels_kept(self, floor: float = 0.0) -> list[float]:
        """The levels, in hundredths, whose matrices are kept, the last used last; those below `floor` raised to it."""
        at = {x / 100: self.calibration.position(x / 100) for x in range(round(self.floor * 100), 100)}
        return [max(level, floor) for kept in self._matrices.kept() for level in at if at[level] == kept]

    def recalibrate(self, calibration: Calibration) -> Callable[[], None]:
        """Move the levels along the same path; the noise of a position stays what it is.

        The levels whose matrices are kept are built ahead at their new positions, others once they are asked for.

        Args:
            calibration: a refit of the one in use, on the same field.

        Returns:
            What puts it in place; call it where neither `forward` nor `compile` with `modulate` runs.

        Raises:
            ValueError: a calibration of another field, which would draw new noise.
        """
        if not self.calibration.same_field(calibration):
            raise ValueError(
                "a refit must keep fingerprint, length scale, depth, metric, block and balance of the noise field"
            )
        matrices = Matrices(self._build)
        for level in self.levels_kept(calibration.floor):
            if position := calibration.position(level):
                matrices.at(position)

        def adopt() -> None:
            with self._building:
                self.calibration, self._matrices = calibration, matrices

        return adopt

    def focus_rows(self, targets: Tensor) -> Tensor:
        """The prepared focus field's columns at target classes: [...] int64 to [..., D] float32."""
        assert self._focus_columns is not None  # prepare() built it
        return self._focus_columns[targets]

    def deltas(self, terms: RowTerms) -> dict[int, float]:
        """Signed standard deviations in logit units of a row's focus, by class.

        Raises:
            ValueError: a class or a strength out of range.
        """
        return {k: self._delta(k, strength) for k, strength in terms.focus.items()}

    def compile(self, rows: Sequence[RowTerms]) -> Terms:  # type: ignore[override]
        """Lay out the terms of a batch's items on the layer's device.

        Raises:
            ValueError: a level below the floor, or a strength or class out of range.
        """
        for row in rows:
            self.prepare(row)
        places = [self._position(row.level) for row in rows]
        return Terms.of(places, [self.deltas(row) for row in rows], self._device, self.matrix_at)

    def modulate(self, features: Tensor, logits: Tensor, terms: Terms) -> Modulated:
        """Redistribute clean logits of rows. Each item covers the same number S of consecutive rows.

        Args:
            features: [B * S, H], the final layer's input.
            logits: [B * S, K], its clean output.
        """
        if terms.clean:
            return Modulated(logits, logits, logits)
        seen = features.reshape(terms.items, -1, features.shape[-1])
        clean = logits.reshape(terms.items, -1, logits.shape[-1]).transpose(1, 2)
        out, utility = self._redistribute(seen[slice(*terms.span)], clean, terms, lambda noise: noise)
        rows = [x.transpose(1, 2).reshape(logits.shape) for x in (out, utility)]
        return Modulated(rows[0].to(logits.dtype), logits, rows[1] if terms.runs else logits)

    def modulate_map(self, features: Tensor, logits: Tensor, terms: Terms) -> Modulated:
        """Redistribute clean logits of maps, whose squares of `calibration.block` share their noise.

        Args:
            features: [B, H, h, w], the final layer's input.
            logits: [B, K, h, w], its clean output.
        """
        clean = logits.movedim(1, -1)
        if terms.clean:
            return Modulated(clean, clean, clean)
        means = block_means(features[slice(*terms.span)], self.calibration.block)
        (height, width), coarse = logits.shape[-2:], means.shape[-2:]

        def spread(noise: Tensor) -> Tensor:
            if coarse == (height, width):
                return noise
            squares = F.interpolate(
                noise.reshape(*noise.shape[:2], *coarse), scale_factor=float(self.calibration.block)
            )
            return squares[..., :height, :width].flatten(2)

        out, utility = self._redistribute(means.flatten(2).transpose(1, 2), logits.flatten(2), terms, spread)
        maps = [x.reshape(*x.shape[:2], height, width).movedim(1, -1) for x in (out, utility)]
        return Modulated(maps[0].to(logits.dtype), clean, maps[1] if terms.runs else clean)

    def _redistribute(
        self, seen: Tensor, clean: Tensor, terms: Terms, spread: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Logits after focus and after utility, [B, K, P] float32.

        Args:
            seen: [span, S, H], what the field sees of the items from the first modulated one to the last.
            clean: [B, K, P].
            spread: noise [n, C, S] to the P places of an item that take theirs from the S.
        """
        seen = seen if terms.picked is None else seen[terms.picked]
        phi = self.ladder.phi(seen.reshape(-1, seen.shape[-1])).reshape(*seen.shape[:2], -1)
        utility = clean.float()
        if terms.runs:
            parts = [phi[start:end] @ matrix for matrix, start, end in terms.runs]
            noise = spread((torch.cat(parts) if len(parts) > 1 else parts[0]).transpose(1, 2))
            everyone = terms.picked is None and len(noise) == terms.items
            noisy = terms.order[terms.runs[0][1] :]
            utility = utility + noise if everyone else utility.index_add(0, noisy, noise)
        if not len(terms.focused):
            return utility, utility
        xi = spread((phi[terms.focused_at] @ self.focus_rows(terms.targets).T).transpose(1, 2))
        if len(terms.focused) == terms.items:
            return apply_focus(utility, terms.targets, terms.delta, xi, self.contention), utility
        moved = apply_focus(utility[terms.focused], terms.targets, terms.delta, xi, self.contention)
        return utility.index_copy(0, terms.focused, moved), utility

    @contextmanager
    def rows(self, rows: Sequence[RowTerms]) -> Iterator[None]:
        """Within, `forward` answers item i of its batch at `rows[i]`; without, it answers clean."""
        self._rows = rows
        try:
            yield
        finally:
            self._rows = None

    def forward(self, features: Tensor) -> Tensor:
        """The wrapped layer's logits, modulated: features [N, H] or [B, S, H] (linear), or [B, H, h, w] (1x1 conv).

        Raises:
            ValueError: rows were given for another batch size.
        """
        logits: Tensor = self.final(features)
        if self._rows is None:
            return logits
        if len(self._rows) != features.shape[0]:
            raise ValueError(f"terms for {len(self._rows)} items, but a batch of {features.shape[0]}")
        terms = self.compile(self._rows)
        if isinstance(self.final, nn.Conv2d):
            self.last = self.modulate_map(features, logits, terms)
        else:
            self.last = self.modulate(as_rows(self.final, features), as_rows(self.final, logits), terms)
        return logits if terms.clean else from_rows(self.final, self.last.logits, logits.shape)

    def _build(self, position: int) -> Tensor:
        return self.ladder.matrix(position).to(self._device)

    @property
    def _device(self) -> torch.device:
        return next(self.final.parameters()).device

    def _position(self, level: float) -> int:
        """The calibration's, remembered: it is asked for every row of every batch."""
        if self._positions[0] is not self.calibration:
            self._positions = self.calibration, {}
        known = self._positions[1]
        if level not in known:
            known[level] = self.calibration.position(level)
        return known[level]

    def _delta(self, target: int, strength: float) -> float:
        if not 0 <= target < self.ladder.classes:
            raise ValueError(f"focus names class {target}, but there are {self.ladder.classes}")
        gaps = self.calibration.favour_gap if strength > 0 else self.calibration.avoid_gap
        delta = focus_std(strength, gaps[target] if len(gaps) > 1 else gaps[0])
        return delta if strength > 0 else -delta


def layer_shape(final: nn.Module) -> tuple[int, int]:
    """(H, K) of a final layer.

    Raises:
        TypeError: neither `nn.Linear` nor a 1x1 `nn.Conv2d`.
    """
    if isinstance(final, nn.Linear):
        return final.in_features, final.out_features
    if isinstance(final, nn.Conv2d) and final.kernel_size == (1, 1) and final.groups == 1:
        return final.in_channels, final.out_channels
    raise TypeError(f"the final layer must be nn.Linear or a 1x1 nn.Conv2d, not {final}")


def as_rows(final: nn.Module, x: Tensor) -> Tensor:
    """[B, C, h, w] (conv) or [..., C] (linear) to rows [N, C], items in order."""
    return x.movedim(1, -1).reshape(-1, x.shape[1]) if isinstance(final, nn.Conv2d) else x.reshape(-1, x.shape[-1])


def from_rows(final: nn.Module, rows: Tensor, shape: torch.Size) -> Tensor:
    """Rows [N, K], or a map's [B, h, w, K], to a layer output of `shape`; the inverse of `as_rows`."""
    if isinstance(final, nn.Conv2d):
        batch, classes, height, width = shape
        return rows.reshape(batch, height, width, classes).movedim(-1, 1)
    return rows.reshape(shape)


def block_means(features: Tensor, block: int) -> Tensor:
    """Mean over each block x block square of a map [B, H, h, w]; smaller squares at the right and lower edge."""
    return F.avg_pool2d(features, block, ceil_mode=True) if block > 1 else features


@cache
def block_of(height: int, width: int, block: int, device: torch.device) -> Tensor:
    """The index into `block_means`' rows of each row of a map of (height, width), [height * width] int64."""
    y, x = (torch.arange(size, device=device) // block for size in (height, width))
    return (y[:, None] * -(-width // block) + x[None, :]).flatten()
