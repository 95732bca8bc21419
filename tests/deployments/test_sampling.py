from __future__ import annotations

import pytest
import torch

from deployments.engines.sampling import Draw, SamplingParams, gumbel, sample


def draw(position: int = 0, seed: int = 7, **params: float) -> Draw:
    return Draw(SamplingParams(max_tokens=1, **params), seed, position)  # type: ignore[arg-type]


def frequencies(logits: torch.Tensor, count: int = 20_000, **params: float) -> torch.Tensor:
    chosen = sample(logits.repeat(count, 1), [draw(i, **params) for i in range(count)]).argmax(dim=1)
    return torch.bincount(chosen, minlength=logits.shape[0]) / count


def test_temperature_zero_leaves_the_logits_alone() -> None:
    logits = torch.randn(3, 10)
    assert sample(logits, [draw(temperature=0.0)] * 3) is logits


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_from_the_softmax(temperature: float) -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    expected = (logits / temperature).softmax(0)
    torch.testing.assert_close(frequencies(logits, temperature=temperature), expected, atol=0.015, rtol=0.0)


def test_top_p_keeps_the_smallest_nucleus() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    expected = torch.tensor([0.625, 0.375, 0.0, 0.0])
    torch.testing.assert_close(frequencies(logits, top_p=0.8), expected, atol=0.015, rtol=0.0)


def test_top_k_keeps_the_most_likely() -> None:
    assert frequencies(torch.tensor([3.0, 2.0, 1.0, 0.0]), top_k=2)[2:].sum() == 0


def test_a_draw_depends_on_seed_and_position_and_not_on_the_batch() -> None:
    logits = torch.randn(4, 1000)
    rows = [draw(3, seed=1), draw(4, seed=1), draw(3, seed=2), draw(temperature=0.0)]
    together = sample(logits, rows)
    alone = torch.cat([sample(logits[i : i + 1], rows[i : i + 1]) for i in range(4)])
    assert torch.equal(together, alone)
    noise = together[:3] - logits[:3]
    assert not torch.allclose(noise[0], noise[1]) and not torch.allclose(noise[0], noise[2])


def test_gumbel_noise_is_standard_and_finite() -> None:
    noise = gumbel(torch.arange(100) * 12345 - 99, 20_000)
    assert torch.isfinite(noise).all()
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.01)
    assert float(noise.std()) == pytest.approx(1.2825, abs=0.01)
