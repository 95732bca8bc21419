"""Half of a model's folder, or something else in its place: one line each, that says what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from deployments.engines.checkpoints import check_files, weight_files
from deployments.engines.errors import LoadError

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4665\nsize 137022720\n"
TINY = LlamaConfig(
    vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, head_dim=8
)
Break = Callable[[Path], object]


def save(folder: Path, **options: object) -> Path:
    LlamaForCausalLM(TINY).save_pretrained(folder, **options)
    return folder


def write(name: str, text: str) -> Break:
    return lambda folder: (folder / name).write_text(text)


def cut(name: str, share: float = 0.5) -> Break:
    def shorten(folder: Path) -> None:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: int(len(whole) * share)])

    return shorten


def instead(name: str | None, gone: str = "model.safetensors") -> Break:
    def replace(folder: Path) -> None:
        (folder / gone).unlink()
        if name:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("{}")

    return replace


BROKEN: dict[str, tuple[Break, str]] = {
    "pointer": (write("model.safetensors", POINTER), "model.safetensors is a git-lfs pointer.*git lfs pull"),
    "pointer of a tokenizer": (write("tokenizer.json", POINTER), "tokenizer.json is a git-lfs pointer"),
    "pointer of sentences": (write("tokenizer.model", POINTER), "tokenizer.model is a git-lfs pointer"),
    "empty": (write("model.safetensors", ""), "model.safetensors is empty; download it again"),
    "web page": (write("model.safetensors", "<!DOCTYPE html><html>Sign in"), "is a web page, not the file itself"),
    "half of it": (cut("model.safetensors"), "model.safetensors is cut short or no safetensors"),
    "half a header": (cut("model.safetensors", 0.01), "model.safetensors is cut short or no safetensors"),
    "all but a byte": (cut("model.safetensors", 0.99999), "model.safetensors is cut short or no safetensors"),
    "half a config": (cut("config.json"), "config.json is cut short or no JSON"),
    "half a tokenizer": (write("tokenizer.json", '{"model": {"voc'), "tokenizer.json is cut short or no JSON"),
    "nothing": (instead(None), "holds no weights"),
    "on its way": (instead("model.safetensors.part"), "has not finished: model.safetensors.part"),
    "on its way by the hub": (instead(".cache/huggingface/download/a1.b2.incomplete"), "has not finished: .cache"),
    "part without index": (instead("model-00001-of-00002.safetensors"), "not their index model.safetensors.index.json"),
    "an adapter": (instead("adapter_config.json"), "an adapter without its base model: merge it"),
    "an adapter alone": (instead("adapter_config.json", "config.json"), "no config.json; it holds an adapter"),
    "DeepSpeed": (instead("zero_to_fp32.py"), "python zero_to_fp32.py"),
    "FSDP": (instead("__0_0.distcp"), "accelerate merge-weights"),
    "GGUF": (instead("llama.Q8_0.gguf", "config.json"), "name one of them, with its .gguf"),
    "a run's last step": (instead("checkpoint-500/config.json", "config.json"), "its folder checkpoint-500 has"),
    "the hub's cache": (instead("snapshots/abc/config.json", "config.json"), "its folder snapshots/abc has"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_not_whole_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    spoil, said = BROKEN[kind]
    spoil(save(tmp_path))
    with pytest.raises(LoadError, match=said) as refused:
        check_files(tmp_path)
    assert "\n" not in str(refused.value) and str(tmp_path) in str(refused.value)


def test_a_shard_that_is_missing_empty_or_short_is_named(tmp_path: Path) -> None:
    save(tmp_path, max_shard_size="4KB")
    shards = weight_files(tmp_path)
    assert len(shards) > 2
    check_files(tmp_path)
    whole = shards[1].read_bytes()
    for broken in (b"", whole[:-1]):
        shards[1].write_bytes(broken)
        with pytest.raises(LoadError, match=shards[1].name):
            check_files(tmp_path)
    shards[1].unlink()
    with pytest.raises(LoadError, match=f"lacks 1 of the {len(shards)} files of its weights, such as {shards[1].name}"):
        check_files(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}}))
    with pytest.raises(LoadError, match="is no index of weights"):
        check_files(tmp_path)


def test_torch_files_are_read_where_there_are_no_safetensors(tmp_path: Path) -> None:
    save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    path = tmp_path / "pytorch_model.bin"
    torch.save({"w": torch.zeros(64)}, path)
    check_files(tmp_path)
    torch.save({"w": torch.zeros(64)}, path, _use_new_zipfile_serialization=False)
    check_files(tmp_path)
    torch.save({"w": torch.zeros(64)}, path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(LoadError, match="pytorch_model.bin is cut short"):
        check_files(tmp_path)


def test_what_no_library_would_read_costs_nobody(tmp_path: Path) -> None:
    save(tmp_path)
    for name in ("pytorch_model.bin", "flax_model.msgpack", "original.pth", "model.safetensors.index.json"):
        (tmp_path / name).write_text(POINTER)
    (tmp_path / "model.safetensors.part").write_text("")
    check_files(tmp_path)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="there is no folder .*nowhere"):
        check_files(tmp_path / "nowhere")
