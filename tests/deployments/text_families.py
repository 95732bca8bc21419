"""Every architecture of a causal language model that transformers has, tiny and of random weights, by one recipe.

What is wide enough that greedy answers neither stand still nor tie is enough: the judge is `generate`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from deployments.config import ModelSpec, Task
from tests.deployments.tokenizer_support import words

VOCABULARY, CONTEXT, WINDOW, ORIGINAL = 320, 256, 64, 192
NAMES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)

_SIZES = {
    VOCABULARY: "vocab_size vocab_size_per_layer_input",
    CONTEXT: "max_position_embeddings n_positions n_ctx max_seq_len",
    WINDOW: "sliding_window",
    96: "intermediate_size ffn_dim n_inner ffn_hidden_size dim_ff d_inner decoder_ffn_dim encoder_ffn_dim"
    " intermediate_size_mlp block_ff_dim",
    64: "hidden_size d_model n_embd dim embed_dim emb_dim embedding_size word_embed_proj_dim",
    48: "shared_expert_intermediate_size moe_intermediate_size expert_ffn_hidden_size",
    32: "mamba_d_head mamba_head_dim",
    16: "head_dim q_lora_rank kv_lora_rank v_head_dim o_lora_rank linear_key_head_dim linear_value_head_dim",
    8: "qk_rope_head_dim qk_nope_head_dim hidden_size_per_layer_input state_size mamba_d_state rotary_dim",
    4: "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads"
    " num_decoder_attention_heads num_encoder_attention_heads num_experts num_local_experts n_routed_experts"
    " moe_num_experts mamba_n_heads mamba_num_heads linear_num_value_heads",
    2: "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_decoder_layers"
    " num_encoder_layers num_key_value_heads num_experts_per_tok top_k moe_topk moe_k linear_num_key_heads",
    1: "n_shared_experts n_group topk_group first_k_dense_replace",
}
SMALL: dict[str, int | None] = {name: size for size, names in _SIZES.items() for name in names.split()}
SMALL |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))

_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_EYES = {
    "model_type": "siglip_vision_model", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1,
    "num_attention_heads": 4, "image_size": 28, "patch_size": 14,
}  # fmt: skip
_DECODERS = (
    "bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert rembert reformer roberta"
    " roberta-prelayernorm roc_bert roformer xlm-roberta xlm-roberta-xl xmod"
)
MORE: dict[str, dict[str, Any]] = {
    **{name: {"is_decoder": True} for name in _DECODERS.split()},
    "cwm": _IDS,
    "dots3_note_text": {"num_key_value_heads": 4},
    "falcon_h1": {"mamba_d_ssm": 128},
    "fuyu": {"text_config": {
        "model_type": "persimmon", "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": CONTEXT,
        "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
    }},
    "gemma3": {"vision_config": _EYES, "mm_tokens_per_image": 1},
    "gemma3n_text": {"num_kv_shared_layers": 0, "layer_types": ["sliding_attention", "full_attention"],
                     "activation_sparsity_pattern": [0.0, 0.0]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "modernbert-decoder": _IDS,
    "reformer": {"is_decoder": True, "axial_pos_embds": False},
    "zamba2": {"num_hidden_layers": 6, "layers_block_type": ["mamba", "mamba", "hybrid"] * 2},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
"""What a family needs beyond the recipe."""

MIXED = {"layer_types": ["sliding_attention", "full_attention"]}
_DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
_LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8,
    "original_max_position_embeddings": ORIGINAL,
}  # fmt: skip
_SLIDING = {"use_sliding_window": True}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama untied": ("llama", {"tie_word_embeddings": False}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama dynamic": ("llama", {"rope_parameters": _DYNAMIC}),
    "qwen2 sliding": ("qwen2", {**_SLIDING, "max_window_layers": 1}),
    "qwen3_moe sliding": ("qwen3_moe", _SLIDING),
    "mistral full": ("mistral", {"sliding_window": None}),
    "gemma2 capped": ("gemma2", {**MIXED, "attn_logit_softcapping": 1.0, "final_logit_softcapping": 2.0}),
    "gemma3_text capped": ("gemma3_text", {**MIXED, "final_logit_softcapping": 2.0}),
    "gpt_oss mixed": ("gpt_oss", MIXED),
    "phi partial": ("phi", {"partial_rotary_factor": 0.25}),
    "phi3 full": ("phi3", {"sliding_window": None}),
    "phi3 longrope": ("phi3", {"sliding_window": None, "rope_parameters": _LONGROPE,
                               "original_max_position_embeddings": ORIGINAL}),
    "granite scaled": ("granite", {"logits_scaling": 8.0, "residual_multiplier": 0.5, "attention_multiplier": 0.25}),
    "cohere scaled": ("cohere", {"logit_scale": 0.0625}),
    "cohere2 mixed": ("cohere2", MIXED),
    "starcoder2 full": ("starcoder2", {"sliding_window": None}),
    "smollm3 without rope": ("smollm3", {"no_rope_layers": [1, 0]}),
}  # fmt: skip
"""Name: family, and what of it is otherwise than the recipe has it."""

CACHE = "cannot be served: the engine fails at its first request"
LAYERS = "cannot be served: transformers' continuous batching does not take its layers"
HEAD = "cannot be modulated: its logits must come from one nn.Linear and its forward take logits_to_keep"
DIFFERS = "cannot be served: the engine's answer to a prompt of"
_REFUSED = {
    CACHE: "axk1 bart bert bert-generation big_bird bigbird_pegasus blenderbot blenderbot-small camembert"
    " cpmant ctrl data2vec-text deepseek_v2 deepseek_v3 dory electra ernie falcon git glm4_moe_lite gpt_bigcode"
    " gpt_neo gpt_neox_japanese hrm_text longcat_flash marian mbart megatron-bert mimo_v2_flash minicpm3 mpt"
    " mvp pegasus plbart rembert roberta roberta-prelayernorm roc_bert roformer sarvam_mla xglm xlm xlm-roberta"
    " xlm-roberta-xl xmod youtu",
    LAYERS: "axk2 bailing_hybrid bamba deepseek_v32 deepseek_v4 dots3_note_text falcon_h1 falcon_mamba gemma4"
    " gemma4_text gemma4_unified gemma4_unified_text glm_moe_dsa granitemoehybrid hy_v4 inkling_text jamba kimi_linear"
    " lara_mini lfm2 lfm2_moe lfm3 llama4 llama4_text mamba mamba2 minimax nemotron_h olmo_hybrid qwen3_5 qwen3_5_moe"
    " qwen3_5_moe_text qwen3_5_text qwen3_next qwen4_exp qwen4_exp_text recurrent_gemma rwkv zamba2 zaya",
    HEAD: "prophetnet trocr whisper xlstm",
    DIFFERS: "openai-gpt reformer xlnet",
}
REFUSED = {name: why for why, names in _REFUSED.items() for name in names.split()}
"""Family: what its one line begins with, behind its class."""

NOT_BUILT = frozenset(
    "blt cohere_compass_text dbrx dots3_note emu3 gemma3n gemma4_assistant gemma4_unified_assistant got_ocr2"
    " inkling2_loop_text inkling2_text mllama moshi moss_transcribe_diarize musicgen musicgen_melody zamba".split()
)
"""Families whose configuration has no small form, which take more than text, or which transformers cannot build."""


def small(config_class: Any) -> dict[str, Any]:
    """The arguments that make a configuration class small, its parts' too."""
    aliases = getattr(config_class, "attribute_map", {})
    known = set(config_class().to_dict()) | set(aliases)
    chosen: dict[str, Any] = {name: value for name, value in SMALL.items() if name in known}
    for alias, own in aliases.items():
        if own in chosen:
            chosen.pop(alias, None)
    for part, part_class in (getattr(config_class, "sub_configs", None) or {}).items():
        if hasattr(part_class, "model_type") and part_class.__name__ != "AutoConfig":
            chosen[part] = small(part_class)
    return chosen


def build(model_type: str, more: dict[str, Any] | None = None) -> Any:
    """A model of random weights, float32."""
    config_class = CONFIG_MAPPING[model_type]
    chosen = small(config_class)
    for name, value in {**MORE.get(model_type, {}), **(more or {})}.items():
        merged = isinstance(value, dict) and isinstance(chosen.get(name), dict)
        chosen[name] = {**chosen[name], **value} if merged else value
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_class(**chosen), dtype=torch.float32)
    draw = torch.Generator().manual_seed(0)
    for name, value in sorted(model.named_parameters()):
        if value.dim() >= 2:  # small embeddings, or a tied model says the last token again
            deviation = 0.02 if "gemma" in model_type else 0.1
            scale = deviation if value.shape[0] == VOCABULARY else 3 * value.shape[-1] ** -0.5
            value.data = torch.randn(value.shape, generator=draw) * scale
        elif name.endswith("bias"):
            value.data = torch.randn(value.shape, generator=draw) * 0.2
    model.tie_weights()
    return model


def write(folder: Path, model_type: str, more: dict[str, Any] | None = None) -> ModelSpec:
    """A model with a tokenizer of words 't0' to 't319', as a folder that is served."""
    build(model_type, more).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=words(VOCABULARY)).save_pretrained(folder)
    return ModelSpec(id=model_type, task=Task.TEXT, source=str(folder), max_batch_size=4)
