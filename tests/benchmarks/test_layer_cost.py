"""The cost benchmark's parts, on small shapes without a GPU."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, SegformerConfig

from benchmarks.layer_cost import CLEAN, Times, mixes, report
from benchmarks.layer_cost_cuda import Case, llama_case, measure, measure_cuda, segformer_case

SEGFORMER = SegformerConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], decoder_hidden_size=16, num_labels=5)
LLAMA = LlamaConfig(
    vocab_size=200, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, head_dim=8
)


@pytest.mark.parametrize(
    "case",
    [
        lambda: segformer_case("a SegFormer", SEGFORMER, torch.randn(8, 3, 64, 64)),
        lambda: llama_case("a Llama", LLAMA, torch.ones(8, 1, dtype=torch.int64), torch.float32),
    ],
    ids=["segformer", "llama"],
)
def test_what_a_gpu_would_measure_runs_on_its_shapes(case: object) -> None:
    made: Case = case()  # type: ignore[operator]
    with torch.inference_mode():
        table = [line.strip("| ").split(" | ") for line in measure(made, 1e9, repeats=1)]
    assert [line[1] for line in table] == ["1", "2", "3", "8"]
    assert all(float(line[5]) > 0.0 for line in table)
    assert float(table[3][3]) > float(table[0][3])  # eight levels move more bytes than one


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is at hand")
def test_without_a_gpu_it_says_that_it_was_skipped(capsys: pytest.CaptureFixture[str]) -> None:
    measure_cuda()
    assert "skipped" in capsys.readouterr().out


def test_costs_are_shares_of_the_clean_forward(capsys: pytest.CaptureFixture[str]) -> None:
    found = {
        CLEAN: Times([0.1, 0.1, 0.5], [0.01] * 3, [0.02] * 3),
        "1 level": Times([0.102] * 3, [0.012] * 3, [0.02] * 3),
    }
    report("a model", found)
    row = capsys.readouterr().out.splitlines()[-1]
    assert row.split(" | ")[1:4] == ["2.00", "2.00%", "0.00%"]


def test_every_batch_has_as_many_levels_as_it_says() -> None:
    batches = mixes("cat")
    assert {len(modulations) for modulations in batches.values()} == {8}
    for name, count in (("1 level", 1), ("3 levels", 3), ("8 levels", 8), ("3 levels, focus", 3)):
        assert len({modulation.utility for modulation in batches[name]}) == count
