"""Text models get their file's weights, all of them: nothing is made up, and nothing of the file is left out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaModel

from deployments.engines.errors import LoadError
from deployments.engines.text.loading.language_models import load_language_model
from tests.deployments.tiny_models import folder, llama, spec

CPU = torch.device("cpu")
Names = Callable[[str], str]


def rewrite(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    file = path / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def renamed(name: Names) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {name(key): value for key, value in state.items()}


WRAPPED: dict[str, Names] = {
    "torch.compile": lambda key: f"_orig_mod.{key}",
    "DataParallel": lambda key: f"module.{key}",
    "both": lambda key: f"module._orig_mod.{key}",
    "compiled layers": lambda key: key.replace("layers.1.", "layers.1._orig_mod."),
    "FSDP": lambda key: (
        "_fsdp_wrapped_module." + key.replace("layers.1.", "layers.1._fsdp_wrapped_module._checkpoint_wrapped_module.")
    ),
    "without the base model's name": lambda key: key.removeprefix("model."),
}


@pytest.mark.parametrize("how", WRAPPED)
def test_names_that_training_wrapped_are_the_models_own(how: str, tmp_path: Path) -> None:
    rewrite(folder(tmp_path), renamed(WRAPPED[how]))
    loaded = load_language_model(spec(tmp_path), CPU).model
    for name, value in llama().state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]
REFUSED: dict[str, tuple[Change, str]] = {
    "a layer is missing": (
        lambda state: {k: v for k, v in state.items() if "layers.1." not in k},
        r"lacks model\.layers\.1\.input_layernorm\.weight, .* and 6 more",
    ),
    "no head": (
        lambda state: {k: v for k, v in state.items() if k != "lm_head.weight"},
        r"lacks lm_head\.weight; it is not of the LlamaForCausalLM that its config\.json describes",
    ),
    "a strange prefix": (renamed(lambda k: f"student.{k}"), r"lacks lm_head\.weight"),
    "another vocabulary": (
        lambda state: state | {"model.embed_tokens.weight": torch.zeros(300, 32)},
        r"has in another shape model\.embed_tokens\.weight \(300, 32\) instead of \(272, 32\)",
    ),
    "layers too many": (
        lambda state: state | {k.replace("layers.1.", "layers.2."): v.clone() for k, v in state.items()},
        r"the model has no place for, model\.layers\.2\.",
    ),
    "biases too many": (
        lambda state: state | {"model.layers.0.self_attn.q_proj.bias": torch.zeros(32)},
        r"the model has no place for, model\.layers\.0\.self_attn\.q_proj\.bias",
    ),
    "an adapter in it": (
        lambda state: (
            {k.replace("q_proj.", "q_proj.base_layer."): v for k, v in state.items()}
            | {"model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(4, 32)}
        ),
        "merge it with peft's merge_and_unload",
    ),
    "quantised without a word": (
        lambda state: state | {"model.layers.0.self_attn.q_proj.weight_scale": torch.zeros(32, 1)},
        "quantised in a way that its config.json does not tell",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_other_weights_than_the_models_are_refused_by_name(what: str, tmp_path: Path) -> None:
    change, said = REFUSED[what]
    rewrite(folder(tmp_path), change)
    with pytest.raises(LoadError, match=said) as refused:
        load_language_model(spec(tmp_path), CPU)
    assert str(refused.value).startswith(f"tiny: {tmp_path}: its file") and "\n" not in str(refused.value)


def test_layers_are_named_in_order(tmp_path: Path) -> None:
    rewrite(
        folder(tmp_path, llama(num_hidden_layers=12)),
        lambda state: {k: v for k, v in state.items() if not re.search(r"layers\.(2|10)\.self_attn\.q", k)},
    )
    with pytest.raises(LoadError, match=r"lacks model\.layers\.2\..*, model\.layers\.10\."):
        load_language_model(spec(tmp_path), CPU)


def test_a_tied_head_is_not_missing_and_other_heads_are_left_out(tmp_path: Path) -> None:
    model = llama(tie_word_embeddings=True)
    folder(tmp_path, model)
    extra = {
        "v_head.summary.weight": torch.zeros(1, 32),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8),
    }
    rewrite(tmp_path, lambda state: state | extra)
    loaded = load_language_model(spec(tmp_path), CPU)
    assert torch.equal(loaded.final.weight, model.lm_head.weight)


def test_a_base_model_alone_has_a_head_only_where_it_is_tied(tmp_path: Path) -> None:
    for tied in (True, False):
        path = tmp_path / str(tied)
        model = llama(tie_word_embeddings=tied)
        folder(path, model)
        base = LlamaModel(model.config)
        base.load_state_dict(model.model.state_dict())
        base.save_pretrained(path)
        if tied:
            assert torch.equal(load_language_model(spec(path), CPU).final.weight, model.lm_head.weight)
        else:
            with pytest.raises(LoadError, match=r"lacks lm_head\.weight"):
                load_language_model(spec(path), CPU)


def test_torch_files_and_shards_are_read_the_same(tmp_path: Path) -> None:
    model = llama()
    folder(tmp_path, model)
    (tmp_path / "model.safetensors").unlink()
    torch.save({f"_orig_mod.{k}": v for k, v in model.state_dict().items()}, tmp_path / "pytorch_model.bin")
    first = load_language_model(spec(tmp_path), CPU)
    assert torch.equal(first.final.weight, model.lm_head.weight)
    (tmp_path / "pytorch_model.bin").unlink()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert load_language_model(spec(tmp_path), CPU).fingerprint == first.fingerprint


def quantise(path: Path, scale_name: str, config: dict[str, object]) -> dict[str, Tensor]:
    """Make a folder's layers 8-bit floats with a scale each; what they are without it."""
    plain: dict[str, Tensor] = {}

    def change(state: dict[str, Tensor]) -> dict[str, Tensor]:
        out = dict(state)
        for name, value in state.items():
            if "_proj" in name:
                scale = value.abs().max() / 448
                out[name] = (value / scale).to(torch.float8_e4m3fn)
                out[name.replace("weight", scale_name)] = scale.reshape(1, 1)
                plain[name] = out[name].float() * scale
        return out

    rewrite(path, change)
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": config}))
    return plain


def test_a_quantised_checkpoint_is_unpacked_where_no_card_computes_with_it(tmp_path: Path) -> None:
    fp8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    plain = quantise(folder(tmp_path), "weight_scale_inv", fp8)
    loaded = load_language_model(spec(tmp_path), CPU).model.state_dict()
    for name, value in plain.items():
        torch.testing.assert_close(loaded[name], value)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "or that transformers does not know"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "requires bitsandbytes: `pip install"),
        ({"quant_method": "awq", "bits": 4}, "AWQ quantized model requires"),
    ],
)
def test_a_quantised_checkpoint_that_cannot_be_read_is_refused_by_name(
    config: dict[str, object], said: str, tmp_path: Path
) -> None:
    quantise(folder(tmp_path), "weight_scale", config)
    with pytest.raises(LoadError, match=said) as refused:
        load_language_model(spec(tmp_path), CPU)
    assert "\n" not in str(refused.value)
