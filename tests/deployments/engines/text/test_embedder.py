"""Embeddings of tiny encoders and language models, against transformers' own hidden states."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from deployments.config import ModelSpec, Task
from deployments.engines.errors import LoadError
from deployments.engines.text.embedder import TOKENS_AT_ONCE, Embedder, _groups
from tests.deployments.tiny_models import folder, llama, write_gguf

CPU = torch.device("cpu")
TEXTS = ["Hello", "a longer text than that", "x"]


def spec(source: Path, **more: Any) -> ModelSpec:
    return ModelSpec(id="tiny", task=Task.EMBEDDING, source=str(source), max_batch_size=4, **more)


def bert() -> BertModel:
    torch.manual_seed(0)
    return BertModel(
        BertConfig(
            vocab_size=272, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=64,
        )
    ).eval()  # fmt: skip


def sentences(path: Path, **pooling: Any) -> Path:
    """As sentence-transformers saves a model."""
    folder(path, bert())
    kinds = ("models.Transformer", "models.Pooling", "models.Normalize")
    (path / "modules.json").write_text(json.dumps([{"type": f"sentence_transformers.{kind}"} for kind in kinds]))
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return path


def vectors(embedder: Embedder, texts: list[str]) -> np.ndarray[Any, Any]:
    made = embedder.embed([embedder.encoder.text(text) for text in texts])
    return np.stack([np.frombuffer(one, "<f4") for one in made])


@torch.no_grad()
def expected(model: Any, ids: list[int], pooling: str) -> np.ndarray[Any, Any]:
    hidden = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    pooled = {"mean": hidden.mean(dim=0), "cls": hidden[0], "last": hidden[-1]}[pooling]
    return (pooled / pooled.norm()).numpy()


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("make", [bert, llama], ids=["encoder", "language model"])
def test_an_embedding_is_the_models_own_hidden_states_alone_and_beside_others(
    tmp_path: Path, make: Any, pooling: Any
) -> None:
    model = make()
    embedder = Embedder.load(spec(folder(tmp_path, model), pooling=pooling), CPU)
    made = vectors(embedder, TEXTS)
    base = getattr(model, "model", model)
    for text, vector in zip(TEXTS, made, strict=True):
        np.testing.assert_allclose(vector, expected(base, embedder.encoder.text(text), pooling), atol=1e-5)
    np.testing.assert_allclose(made[0], vectors(embedder, TEXTS[:1])[0], atol=1e-5)
    assert embedder.dimensions == 32 and embedder.form is not None


def test_pooling_is_what_the_folder_says(tmp_path: Path) -> None:
    mean = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False, "word_embedding_dimension": 32}
    assert Embedder.load(spec(sentences(tmp_path / "a", **mean)), CPU).pooling == "mean"
    assert Embedder.load(spec(sentences(tmp_path / "b", pooling_mode="lasttoken")), CPU).pooling == "last"
    source = sentences(tmp_path / "c", pooling_mode_cls_token=True)
    assert Embedder.load(spec(source), CPU).pooling == "cls"
    assert Embedder.load(spec(source, pooling="mean"), CPU).pooling == "mean"


@pytest.mark.parametrize(
    ("modules", "pooling", "said"),
    [
        (["Transformer", "Pooling", "Dense"], {"pooling_mode": "mean"}, "Dense"),
        (["Transformer", "Pooling"], {"pooling_mode_max_tokens": True}, "pooling_mode_max_tokens"),
        (["Transformer", "Pooling"], {"pooling_mode": "weightedmean"}, "weightedmean"),
    ],
)
def test_what_more_is_done_to_it_is_named(
    tmp_path: Path, modules: list[str], pooling: dict[str, Any], said: str
) -> None:
    source = sentences(tmp_path, **pooling)
    (source / "modules.json").write_text(json.dumps([{"type": f"models.{kind}"} for kind in modules]))
    with pytest.raises(LoadError, match=said):
        Embedder.load(spec(source), CPU)


def test_a_gguf_file_and_what_is_no_model(tmp_path: Path) -> None:
    (gguf,) = write_gguf(tmp_path / "tiny.gguf")
    made = vectors(Embedder.load(spec(gguf), CPU), TEXTS)
    assert made.shape == (3, 32) and np.allclose(np.linalg.norm(made, axis=1), 1.0, atol=1e-5)
    with pytest.raises(LoadError, match="tiny: there is no folder"):
        Embedder.load(spec(tmp_path / "nothing"), CPU)
    with pytest.raises(ValueError, match="pooling applies"):
        ModelSpec(id="a", task=Task.TEXT, source="x", pooling="mean")


def test_a_forward_is_bounded_with_its_padding() -> None:
    lengths = [1, 4000, 5000, 7, 2000, 2000, *[64] * 100]
    groups = _groups(lengths)
    assert sorted(at for group in groups for at in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) * max(lengths[at] for at in group) <= max(TOKENS_AT_ONCE, 5000)
    assert len(groups) < 8 and math.prod(map(len, groups)) > 1


async def test_a_tenants_flood_leaves_another_its_turn(tmp_path: Path) -> None:
    """By tokens, in the batches of the replica."""
    from deployments.queues.batching import FairBatcher
    from policies.terms import Share

    embedder = Embedder.load(spec(folder(tmp_path, bert())), CPU)
    order: list[int] = []

    def run(items: list[list[int]]) -> list[bytes]:
        order.extend(len(ids) for ids in items)
        return embedder.embed(items)

    batcher: FairBatcher[list[int], bytes] = FairBatcher(run, max_batch_size=2, max_wait_ms=0.0, queue_bound=99)
    flood = [asyncio.ensure_future(batcher.submit([5] * 60, Share(flow="flood"), 60.0)) for _ in range(20)]
    quiet = [asyncio.ensure_future(batcher.submit([5], Share(flow="quiet"), 1.0)) for _ in range(4)]
    await asyncio.gather(*flood, *quiet)
    await batcher.aclose()
    assert max(at for at, length in enumerate(order) if length == 1) <= 5, "sixty of theirs weigh one of the other's"
