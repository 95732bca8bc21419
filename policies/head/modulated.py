"""What a head gives: its answer, and for the audit what it was before."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Modulated:
    """What the head answered, and before it for the audit the logits after utility alone.

    Each is [N, K] or [B, K, h, w]. `clean` and `utility` are the same tensor object as `logits` where that stage
    changed nothing; what was changed is float32.
    """

    logits: Tensor
    clean: Tensor
    utility: Tensor

    def first(self, rows: int) -> Modulated:
        """Its first rows alone."""
        clean = self.clean[:rows]
        utility = clean if self.utility is self.clean else self.utility[:rows]
        return Modulated(utility if self.logits is self.utility else self.logits[:rows], clean, utility)

    def within(self, clean: Tensor, span: slice) -> Modulated:
        """This answer to some items of a batch with the clean logits [B, ...] of all."""

        def all_of(part: Tensor) -> Tensor:
            if part is self.clean:
                return clean
            whole = clean.to(part.dtype, copy=True)
            whole[span] = part
            return whole

        utility = all_of(self.utility)
        return Modulated(utility if self.logits is self.utility else all_of(self.logits), clean, utility)
