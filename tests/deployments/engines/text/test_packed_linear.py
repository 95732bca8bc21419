"""A packed final layer answers as the plain one."""

import pytest
import torch
from torch import nn

from deployments.engines.text.loading.packed_linear import PackedLinear, packed

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN")


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(64,), (0, 64), (1, 64), (3, 64), (2, 5, 64), (300, 64)])
def test_it_answers_as_the_plain_layer_up_to_rounding(shape: tuple[int, ...], bias: bool) -> None:
    plain = nn.Linear(64, 257, bias=bias).requires_grad_(False)
    made = packed(plain)
    assert isinstance(made, PackedLinear) and made.weight is plain.weight and made.bias is plain.bias
    x = torch.randn(shape)
    torch.testing.assert_close(made(x), plain(x), atol=1e-5, rtol=1e-5)
    columns = torch.randn(64, 7).t()
    torch.testing.assert_close(made(columns), plain(columns), atol=1e-5, rtol=1e-5)


@needs_onednn
def test_what_listens_to_the_layer_hears_it() -> None:
    made, heard = packed(nn.Linear(8, 16).requires_grad_(False)), []
    made.register_forward_pre_hook(lambda _module, inputs: heard.append(inputs[0]))
    x = torch.randn(2, 8)
    with torch.inference_mode():
        made(x)
    assert heard[0] is x
    assert list(made.state_dict()) == ["weight", "bias"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_and_devices_stay_as_they_are(dtype: torch.dtype) -> None:
    plain = nn.Linear(8, 16, dtype=dtype)
    assert packed(plain) is plain
    elsewhere = nn.Linear(8, 16, device="meta")
    assert packed(elsewhere) is elsewhere
