"""Which architectures of language models the engine serves, token for token as `generate`, and which it refuses.

The models are tiny and of random weights, wide enough that greedy answers neither stand still nor tie.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from deployments.config import ModelSpec, Task
from deployments.engines.errors import LoadError
from deployments.engines.text.generator import Generator, SamplingParams
from deployments.engines.text.smoke import TIE
from policies.terms import Modulation, Share

VOCABULARY, CONTEXT, WINDOW, ANSWER = 320, 256, 64, 12
ORIGINAL = 192
LENGTHS = (5, 40, 150)
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
GROUPED = {"num_key_value_heads": 2}
WIDE = {**GROUPED, "head_dim": 16}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
MIXED = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}
LATENT = {
    "num_key_value_heads": 4, "moe_intermediate_size": 48, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip
PER_LAYER = {"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8}
SLIDING = {"use_sliding_window": True, "sliding_window": WINDOW}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
GEMMA3 = {**WIDE, **MIXED, "query_pre_attn_scalar": 16}
GRANITE = {**GROUPED, "logits_scaling": 8.0}
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8,
    "original_max_position_embeddings": ORIGINAL,
}  # fmt: skip

SERVED: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {**GROUPED, "tie_word_embeddings": False}),
    "llama tied": ("llama", {**GROUPED, "tie_word_embeddings": True}),
    "llama dynamic": ("llama", {**GROUPED, "rope_parameters": DYNAMIC}),
    "qwen2": ("qwen2", GROUPED),
    "qwen2 sliding": ("qwen2", {**GROUPED, **SLIDING, "max_window_layers": 1}),
    "qwen2_moe": ("qwen2_moe", {**GROUPED, **EXPERTS, "shared_expert_intermediate_size": 48}),
    "qwen3": ("qwen3", WIDE),
    "qwen3_moe": ("qwen3_moe", {**WIDE, **EXPERTS}),
    "qwen3_moe sliding": ("qwen3_moe", {**WIDE, **EXPERTS, **SLIDING}),
    "mistral": ("mistral", {**GROUPED, "sliding_window": None}),
    "mistral sliding": ("mistral", {**GROUPED, "sliding_window": WINDOW}),
    "mixtral": ("mixtral", {**GROUPED, **LOCAL_EXPERTS}),
    "gemma": ("gemma", WIDE),
    "gemma3_text": ("gemma3_text", GEMMA3),
    "gemma3_text capped": ("gemma3_text", {**GEMMA3, "final_logit_softcapping": 2.0}),
    "phi": ("phi", {}),
    "phi partial": ("phi", {"partial_rotary_factor": 0.25}),
    "phi3": ("phi3", GROUPED),
    "phi3 sliding": ("phi3", {**GROUPED, "sliding_window": WINDOW}),
    "phi3 longrope": ("phi3", {**GROUPED, "rope_parameters": LONGROPE, "original_max_position_embeddings": ORIGINAL}),
    "gpt2": ("gpt2", GPT2),
    "gptj": ("gptj", {**GPT2, "rotary_dim": 8}),
    "codegen": ("codegen", {**GPT2, "rotary_dim": 8}),
    "granite": ("granite", {**GRANITE, "residual_multiplier": 0.5, "attention_multiplier": 0.25}),
    "granitemoe": ("granitemoe", {**GRANITE, **LOCAL_EXPERTS}),
    "cohere": ("cohere", {**GROUPED, "logit_scale": 0.0625}),
    "cohere2": ("cohere2", {**GROUPED, **MIXED}),
    "olmo": ("olmo", GROUPED),
    "olmo2": ("olmo2", GROUPED),
    "starcoder2": ("starcoder2", GROUPED),
    "starcoder2 sliding": ("starcoder2", {**GROUPED, "sliding_window": WINDOW}),
    "smollm3": ("smollm3", {**GROUPED, "no_rope_layers": [1, 0]}),
    "glm": ("glm", WIDE),
}
"""Name: model type, and what its configuration has beyond the shape."""

AT_FIRST_REQUEST = "the engine fails at its first request"
NO_SDPA = "transformers has no scaled dot product attention for it"
LAYERS = "transformers' continuous batching does not take its layers"
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "gpt_neox": ("GPTNeoXForCausalLM", {}, AT_FIRST_REQUEST),
    "opt": ("OPTForCausalLM", {"ffn_dim": 96, "word_embed_proj_dim": 64}, AT_FIRST_REQUEST),
    "falcon": ("FalconForCausalLM", {}, AT_FIRST_REQUEST),
    "stablelm": ("StableLmForCausalLM", {"num_key_value_heads": 4}, AT_FIRST_REQUEST),
    "nemotron": ("NemotronForCausalLM", GROUPED, AT_FIRST_REQUEST),
    "biogpt": ("BioGptForCausalLM", {}, AT_FIRST_REQUEST),
    "deepseek_v3": ("DeepseekV3ForCausalLM", LATENT, AT_FIRST_REQUEST),
    "llama4_text": ("Llama4ForCausalLM", {**WIDE, "num_local_experts": 4, "intermediate_size_mlp": 96}, LAYERS),
    "gemma4_text": ("Gemma4ForCausalLM", {**WIDE, **PER_LAYER}, LAYERS),
    "bloom": ("BloomForCausalLM", {}, NO_SDPA),
    "gemma2": ("Gemma2ForCausalLM", WIDE, NO_SDPA),
    "gpt_oss": ("GptOssForCausalLM", {**WIDE, **LOCAL_EXPERTS}, NO_SDPA),
    "mpt": ("MptForCausalLM", {"d_model": 64, "n_layers": 2, "n_heads": 4}, NO_SDPA),
    "mamba": ("MambaForCausalLM", {"state_size": 8}, NO_SDPA),
}
"""Model type: class, what its configuration has beyond the shape, and why it is refused."""


@pytest.fixture(autouse=True)
def quiet_and_alone() -> Iterator[None]:
    """No trace of what kills transformers' loop, which some of these tests are for; no threads for tiny products."""
    logging.disable(logging.ERROR)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    logging.disable(logging.NOTSET)


def write_model(folder: Path, model_type: str, more: dict[str, Any]) -> ModelSpec:
    """A model of random weights and a tokenizer of words 't0' to 't319', as a folder that is served."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SHAPE | more), dtype=torch.float32)
    draw = torch.Generator().manual_seed(0)
    for name, value in sorted(model.named_parameters()):
        if value.dim() >= 2:  # small embeddings, or a tied model says the last token again
            deviation = 0.02 if "gemma" in model_type else 0.1
            scale = deviation if value.shape[0] == VOCABULARY else 3 * value.shape[-1] ** -0.5
            value.data = torch.randn(value.shape, generator=draw) * scale
        elif name.endswith("bias"):
            value.data = torch.randn(value.shape, generator=draw) * 0.2
    model.tie_weights()
    model.save_pretrained(folder)
    words = Tokenizer(WordLevel({f"t{i}": i for i in range(VOCABULARY)}, unk_token="t0"))
    words.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    return ModelSpec(id=model_type, task=Task.TEXT, source=str(folder), max_batch_size=4)


def prompts() -> list[list[int]]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randint(VOCABULARY, (length,), generator=draw).tolist() for length in LENGTHS]


async def answers(generator: Generator) -> list[list[int]]:
    """The engine's to all prompts at once; the tokenizer's words tell the tokens."""
    greedy = SamplingParams(max_tokens=ANSWER, temperature=0.0)

    async def answer(prompt: list[int]) -> list[int]:
        share = Share(flow="tenant")
        text = "".join([d.text async for d in generator.generate(prompt, greedy, Modulation(), share)])
        return [int(number) for number in re.findall(r"\d+", text)]

    return await asyncio.gather(*(answer(prompt) for prompt in prompts()))


@torch.no_grad()
def generated(model: Any, prompt: list[int]) -> tuple[list[int], list[float]]:
    """What `generate` answers, and each step's gap between the two best tokens."""
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=ANSWER,
        return_dict_in_generate=True,
        output_logits=True,
    )
    gaps = [float(row[0].topk(2).values.diff().abs()) for row in out.logits]
    return out.sequences[0, len(prompt) :].tolist(), gaps


@pytest.mark.parametrize("family", SERVED)
async def test_an_answer_at_level_one_is_that_of_generate(family: str, tmp_path: Path) -> None:
    model_type, more = SERVED[family]
    generator = Generator.load(write_model(tmp_path, model_type, more), torch.device("cpu"))
    try:
        got = await answers(generator)
    finally:
        generator.close()
    ties, saved = 0, AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    for prompt, mine in zip(prompts(), got, strict=True):
        wanted, gaps = generated(saved, prompt)
        differs = next((i for i in range(ANSWER) if mine[i : i + 1] != wanted[i : i + 1]), None)
        ties += differs is not None
        assert differs is None or gaps[differs] < TIE, f"prompt of {len(prompt)}: token {differs}, gap {gaps[differs]}"
        assert len(set(wanted)) > 4, "the model says the same all the time"
    print(f"{family}: {ties} ties")
    assert ties <= 1


@pytest.mark.parametrize("model_type", REFUSED)
def test_what_the_engine_cannot_serve_is_refused_at_load_in_one_line(model_type: str, tmp_path: Path) -> None:
    cls, more, why = REFUSED[model_type]
    spec = write_model(tmp_path, model_type, more)
    with pytest.raises(LoadError) as refused:
        Generator.load(spec, torch.device("cpu"))
    said = str(refused.value)
    print(said)
    assert said.startswith(f"{model_type}: {cls} cannot be served: {why}") and "\n" not in said


def test_a_model_is_served_up_to_where_longrope_changes_its_frequencies(tmp_path: Path) -> None:
    generator = Generator.load(write_model(tmp_path, *SERVED["phi3 longrope"]), torch.device("cpu"))
    generator.close()
    assert generator.context == ORIGINAL
