"""Tiny Llamas as folders and as GGUF files, with a tokenizer of bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from deployments.config import ModelSpec, Task
from tests.deployments.tokenizer_support import CHATML, byte_fallback, byte_level, chat_tokenizer

SHAPE: dict[str, Any] = {
    "vocab_size": 272, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256, "tie_word_embeddings": False,
    "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
PROMPT = [72, 101, 108, 108, 111]


def llama(**more: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE | more)).eval()


def folder(path: Path, model: Any = None, tokenizer: Any = None) -> Path:
    (model or llama()).save_pretrained(path)
    (tokenizer or chat_tokenizer()).save_pretrained(path)
    return path


def spec(source: Path | str, **more: Any) -> ModelSpec:
    return ModelSpec(id="tiny", task=Task.TEXT, source=str(source), max_batch_size=2, **more)


def write_gguf(path: Path, *, per_part: int = 0, sentences: bool = False, **keys: int) -> list[Path]:
    """A Llama of random weights; `keys` are ids under `tokenizer.ggml.`. The files, parts of so many tensors each."""
    path.parent.mkdir(exist_ok=True)
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=per_part)
    writer.add_block_count(2)
    writer.add_context_length(256)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(16)
    writer.add_rope_freq_base(10000.0)
    size = _add_tokenizer(writer, sentences)
    writer.add_vocab_size(size)
    for name, token in keys.items():
        writer.add_uint32(f"tokenizer.ggml.{name}", token)
    draw = np.random.default_rng(0)
    shapes = {"token_embd.weight": (size, 32), "output.weight": (size, 32), "output_norm.weight": (32,)}
    for block in range(2):
        shapes |= {f"blk.{block}.{norm}.weight": (32,) for norm in ("attn_norm", "ffn_norm")}
        inner = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
        shapes |= {f"blk.{block}.{name}.weight": (32, 32) for name in inner}
    for name, shape in shapes.items():
        writer.add_tensor(name, draw.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(path.parent.glob(f"{path.stem}*.gguf"))


def _add_tokenizer(writer: gguf.GGUFWriter, sentences: bool) -> int:
    tokenizer = byte_fallback() if sentences else byte_level(("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|x|>"))
    tokens = [text for text, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    special = set(tokenizer.get_added_tokens_decoder())
    kinds = [gguf.TokenType.CONTROL if at in special else gguf.TokenType.NORMAL for at in range(len(tokens))]
    if sentences:
        kinds = [
            gguf.TokenType.BYTE if text.startswith("<0x") else kind for text, kind in zip(tokens, kinds, strict=True)
        ]
        writer.add_tokenizer_model("llama")
        writer.add_token_scores([0.0] * len(tokens))
        writer.add_eos_token_id(2)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_merges(["a b"])
        writer.add_eos_token_id(257)
        writer.add_chat_template(CHATML)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    return len(tokens)
