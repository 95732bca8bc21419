"""Class offsets between the positions that they were solved at."""

import torch

from policies.field.balance import Balance
from policies.field.variance import scale_of


def test_offsets_follow_the_scale_of_the_noise_between_positions() -> None:
    balance = Balance((1000, 3000), torch.tensor([[1.0, -1.0], [0.0, 2.0]]))
    assert torch.equal(balance.at(0), torch.zeros(2))
    torch.testing.assert_close(balance.at(500), torch.tensor([1.0, -1.0]) * scale_of(500))
    torch.testing.assert_close(balance.at(1000), torch.tensor([1.0, -1.0]) * scale_of(1000))
    torch.testing.assert_close(balance.at(1500), torch.tensor([0.75, -0.25]) * scale_of(1500))
    torch.testing.assert_close(balance.at(9000), torch.tensor([0.0, 2.0]) * scale_of(9000))
