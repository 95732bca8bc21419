"""A final layer on a CPU with its weights laid out once for the product, instead of at every step."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PackedLinear(nn.Linear):
    """`nn.Linear` over the same parameters, that multiplies a packed copy of its weights by oneDNN.

    Torch's own product lays a vocabulary's weights out anew for every few rows: 8 rows of 576 by 49,152 take it 26 ms
    on a core of an EPYC, and this 14. The copy takes as much memory as the weights, which stay for tied embeddings.
    Answers differ from torch's by float rounding.

    Args:
        plain: on a CPU, in float32, with weights that do not change any more.
    """

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain.in_features, plain.out_features, bias=plain.bias is not None, device="meta")
        self.weight, self.bias = plain.weight, plain.bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(plain.weight.detach(), None)

    def forward(self, input: Tensor) -> Tensor:
        """The clean logits [..., K] of features [..., H], float32."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(input, self._packed, self.bias, "none", [], "")
        return out


def packed(final: nn.Linear) -> nn.Linear:
    """`final` with its weights packed, or as it is where that would not help or oneDNN is missing."""
    weight = final.weight
    apt = weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    return PackedLinear(final) if apt else final
