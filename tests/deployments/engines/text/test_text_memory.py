"""What weights and caches take of memory: told before loading, sized by what is free, and refused in one line."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers.generation.continuous_batching import cache

from deployments.engines.errors import LoadError
from deployments.engines.memory import GIB, HEADROOM, cache_share, weight_bytes
from deployments.engines.text.generator import Generator
from deployments.engines.text.loading import language_models, placement
from deployments.engines.text.loading.language_models import load_language_model
from deployments.engines.text.manager import cache_pages
from deployments.engines.text.scheduler import PAGE, pages_of
from tests.deployments.tiny_models import folder, llama, spec, write_gguf

CPU = torch.device("cpu")
WEIGHTS = sum(value.numel() for value in llama().state_dict().values())
PAGE_BYTES = 2 * 2 * 2 * 16 * PAGE * 4
"""Keys and values of 2 layers of 2 heads of 16, float32."""


def test_weights_are_told_from_headers_in_the_dtype_that_they_are_loaded_as(tmp_path: Path) -> None:
    path = folder(tmp_path) / "model.safetensors"
    assert weight_bytes([path], torch.float32) == 4 * WEIGHTS
    assert weight_bytes([path], torch.bfloat16) == 2 * WEIGHTS
    packed = {"a": torch.zeros(10, 3, dtype=torch.int8), "b": torch.zeros(4, dtype=torch.float16)}
    save_file(packed | {"c": torch.zeros(5, dtype=torch.int64)}, path)
    assert weight_bytes([path], torch.float32) == 30 + 16 + 40
    parts = write_gguf(tmp_path / "tiny.gguf", per_part=5)
    (whole,) = write_gguf(tmp_path / "whole.gguf")
    assert weight_bytes(parts, torch.bfloat16) == weight_bytes([whole], torch.bfloat16) > 0


@pytest.mark.parametrize(
    ("free", "total", "own", "share", "left"),
    [
        (64, 80, 16, 0.0, 48),  # a card of its own: all that the weights leave, but for their copy that calibrates
        (8, 24, 16, 0.0, 8),  # no room for a copy
        (70, 80, 10, 0.25, 10),  # a quarter of a card, half of it full
        (5, 80, 10, 0.25, 5),  # others have taken more than theirs
        (70, 80, 30, 0.25, 0),  # weights larger than its part
        (0, 80, 10, 0.0, 0),
    ],
)
def test_a_cache_takes_what_is_free_of_a_card_and_of_the_models_part(
    free: int, total: int, own: int, share: float, left: int
) -> None:
    part = cache_share(free * GIB, total * GIB, own * GIB, share)
    assert part * free == pytest.approx(HEADROOM * left)


def test_a_cache_has_the_pages_that_its_setting_or_its_sequences_need(tmp_path: Path) -> None:
    model = load_language_model(spec(folder(tmp_path)), CPU)
    assert cache_pages(model, 256, 8, None) == 16, "all sequences at full context"
    assert cache_pages(model, 256, 8, 5 * PAGE_BYTES / GIB) == 5
    assert cache_pages(model, 256, 8, PAGE_BYTES / GIB) == 2, "one sequence always fits"
    assert cache_pages(model, 256, 8, 100.0) == 16


def limited(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Memory with so many bytes free."""
    monkeypatch.setattr(cache, "get_device_and_memory_breakdown", lambda: (CPU, count, 0, 0))


def answers(generator: Generator) -> list[list[int]]:
    async def all_at_once() -> list[list[int]]:
        prompts = [list(range(at, at + 150)) for at in range(4)]
        return await asyncio.gather(*(generator.engine.greedy(prompt, 4) for prompt in prompts))

    return asyncio.run(all_at_once())


def test_a_small_card_gets_the_pages_that_fit_and_answers_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = spec(folder(tmp_path))
    whole = Generator.load(model, CPU)
    wanted = answers(whole)
    assert whole.engine.line.free_pages == 16
    whole.close()
    monkeypatch.setattr("deployments.engines.text.generator.free_share", lambda *_: 0.9)
    limited(monkeypatch, 2_600_000)
    small = Generator.load(model, CPU)
    pages = small.engine.line.free_pages
    assert pages_of(256) <= pages < 16
    assert answers(small) == wanted
    small.close()
    limited(monkeypatch, 2**30)
    large = Generator.load(model, CPU)
    assert large.engine.line.free_pages == 16, "no more than its sequences can use"
    large.close()


def test_memory_without_room_for_one_sequence_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = spec(folder(tmp_path))
    limited(monkeypatch, 10_000)
    for part in (None, 0.9):
        monkeypatch.setattr("deployments.engines.text.generator.free_share", lambda *_, part=part: part)
        with pytest.raises(LoadError, match="no room for keys and values of one sequence of 256 tokens") as refused:
            Generator.load(model, CPU)
        assert "\n" not in str(refused.value) and "cache_gib" in str(refused.value)


def test_what_weights_take_is_said_and_what_fits_nowhere_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, said = spec(folder(tmp_path)), list[str]()
    load_language_model(model, CPU, said.append)
    assert len(said) == 1 and said[0].startswith("0.0 GiB of weights as float32, ") and "free on cpu" in said[0]
    monkeypatch.setattr(placement, "available_bytes", lambda _: 3 * WEIGHTS)
    with pytest.raises(
        LoadError, match="needs 0.0 GiB for its weights as float32, but cpu has 0.0 GiB free; set dtype"
    ):
        load_language_model(model, CPU)
    assert load_language_model(spec(tmp_path, dtype="bfloat16"), CPU).model.dtype == torch.bfloat16


def test_a_card_takes_a_model_whole_or_in_part_and_the_machine_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, card, said = spec(folder(tmp_path, llama(num_hidden_layers=4))), torch.device("cuda", 0), list[str]()
    free = {"cuda": 2**30, "cpu": 2**30}
    monkeypatch.setattr(placement, "available_bytes", lambda device: free[device.type])
    source = placement.Source(str(tmp_path))
    assert placement.placed(model, source, card, said.append) == {"device_map": {"": card}}
    layer = placement._size(llama().model.layers[0])
    beside = placement._size(llama()) - 2 * layer
    free["cuda"] = int((beside + 2.5 * layer) / (1 - placement.CACHE_SHARE))
    places = placement.placed(model, source, card, said.append)["device_map"]
    assert [places[f"model.layers.{at}"] for at in range(4)] == [0, 0, "cpu", "cpu"]
    assert places["lm_head"] == places["model.embed_tokens"] == places["model.norm"] == 0
    assert "brought to it at every step" in said[-1]
    free["cpu"] = 100
    with pytest.raises(LoadError, match="cuda:0 has 0.0 GiB free and the machine 0.0 GiB"):
        placement.placed(model, source, card, said.append)
    free |= {"cuda": beside, "cpu": 2**30}
    with pytest.raises(LoadError, match="embeddings and final layer alone"):
        placement.placed(model, source, card, said.append)


def test_layers_that_are_elsewhere_are_brought_for_each_step_and_answer_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU and a disk in place of a card and a machine's memory: accelerate's hooks are the same."""
    model = spec(folder(tmp_path))
    whole = Generator.load(model, CPU)
    wanted = answers(whole)
    whole.close()
    half = placement._size(llama()) - placement._size(llama().model.layers[0])
    places = placement.spread(str(tmp_path), torch.float32, "cpu", "disk", half)
    assert [places[f"model.layers.{at}"] for at in range(2)] == ["cpu", "disk"]
    monkeypatch.setattr(language_models, "placed", lambda *_: {"device_map": places, "offload_folder": str(tmp_path)})
    parted = Generator.load(model, CPU)
    try:
        assert parted.language_model.model.model.layers[1].mlp.up_proj.weight.is_meta
        assert parted.fingerprint == whole.fingerprint
        assert answers(parted) == wanted
    finally:
        parted.close()
