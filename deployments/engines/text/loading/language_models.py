"""Causal language models from where they lie: a hub id, a local folder, a GGUF file, or one inside a Python package."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, GgufConfig, PreTrainedModel, PreTrainedTokenizerBase

from deployments.config import ModelSpec
from deployments.engines.checkpoints import UNWRAPPED
from deployments.engines.errors import LoadError, first_line
from deployments.engines.text.loading.gguf_files import end_tokens
from deployments.engines.text.loading.own_library import OwnLibrary, form_of
from deployments.engines.text.loading.packed_linear import packed
from deployments.engines.text.loading.placement import at_hand, placed
from deployments.engines.text.loading.sources import Source, located
from deployments.engines.text.loading.tokenizers import load_tokenizer
from deployments.engines.text.loading.weights import check_weights
from deployments.prompts.chat import Chat
from deployments.prompts.encoder import Encoder
from deployments.prompts.form import Form
from deployments.prompts.lengths import characters_per_token
from deployments.prompts.library import Portable

_NO_LIMIT = 2048
"""Tokens of a sequence where a configuration names no limit."""
_NO_SDPA = re.compile(r"does not support an attention implementation through .*scaled_dot_product_attention")


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model with its tokenizer, in evaluation mode on its device.

    Attributes:
        final: the module that makes the logits; its weight may be the embedding's; packed on a CPU.
        context: tokens of prompt and answer together that the model was made for.
        end_tokens: ids that end an answer.
        sampling: the `temperature`, `top_p` and `top_k` that its makers name, for requests that name none.
        fingerprint: 16 hex digits over shapes, dtype and weights; the same in every process.
        id: what clients call it.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    final: nn.Linear
    context: int
    end_tokens: frozenset[int]
    fingerprint: str
    id: str = "the model"
    sampling: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def form(self) -> Form | None:
        """Its tokenizer and chat template as data, for gateways; None where they are more than that."""
        return form_of(self.tokenizer, self.final.out_features, self.end_tokens)

    @cached_property
    def characters(self) -> int | None:
        """Most characters that one of its tokens stands for; None where that is not known."""
        return characters_per_token(json.loads(self.form.tokenizer)) if self.form else None

    @cached_property
    def encoder(self) -> Encoder:
        """Its prompts to tokens."""
        library = Portable(self.form) if self.form else OwnLibrary(self.tokenizer)
        return Encoder(self.id, library, self.final.out_features, self.end_tokens)

    def refused(self, why: str) -> LoadError:
        """The error, in one line, that keeps this model from being served."""
        return LoadError(
            f"{self.id}: {type(self.model).__name__} cannot be served: {why}; name another model in source"
        )


def load_language_model(
    spec: ModelSpec, device: torch.device, say: Callable[[str], None] = lambda _: None
) -> LanguageModel:
    """Load the model that `spec.source` names.

    Args:
        say: told what memory the weights take, before they are loaded.

    Raises:
        LoadError: it is not there, not whole, not a causal language model, has other weights than its own, or cannot be
            modulated; the message says what to do.
    """
    with located(spec) as source:
        places = placed(spec, source, device, say)
        model = _load_model(spec, source, places)
        tokenizer = load_tokenizer(spec, source)
        ends = _end_tokens(model, tokenizer) | (end_tokens(source.gguf) if source.gguf else frozenset())
    final = model.get_output_embeddings()
    if not isinstance(final, nn.Linear) or not model._supports_logits_to_keep():
        raise LoadError(
            f"{spec.id}: {type(model).__name__} cannot be modulated: its logits must come from one nn.Linear and its"
            " forward take logits_to_keep; name another model in source"
        )
    if not final.weight.is_floating_point():
        raise LoadError(
            f"{spec.id}: {type(model).__name__} cannot be modulated: its final layer is quantised; take a copy that"
            " leaves lm_head as it is"
        )
    model = model.requires_grad_(False).eval()
    model = model if places else model.to(device)
    final = packed(final)
    model.set_output_embeddings(final)
    return LanguageModel(
        model=model,
        tokenizer=tokenizer,
        final=final,
        context=context_of(model.config.get_text_config()),
        end_tokens=ends | Chat(spec.id, OwnLibrary(tokenizer), ends).turn_end(),
        sampling=_sampling(model),
        fingerprint=_fingerprint(model, spec.dtype),
        id=spec.id,
    )


def _load_model(spec: ModelSpec, source: Source, places: Mapping[str, Any]) -> Any:
    """The model with all its weights and no others, by the library's own loader."""
    options: dict[str, Any] = {"dtype": getattr(torch, spec.dtype), "trust_remote_code": False, **places}
    if source.gguf_file:
        # Kernels for packed weights are had or not by chance, and a head needs a plain final layer.
        options |= {"gguf_file": source.gguf_file, "quantization_config": GgufConfig(dequantize=True)}
    else:
        options |= {"key_mapping": UNWRAPPED}
    try:
        model, info = _with_attention(source.where, options)
    except Exception as error:  # libraries raise their plain ones for files that they cannot read
        raise LoadError(
            f"{spec.id}: {spec.source} cannot be loaded as a causal language model ({first_line(error)}); give a hub"
            " id, a folder with config.json, weights and tokenizer, or a .gguf file (of the hub: <id>:<file>.gguf)"
        ) from error
    check_weights(f"{spec.id}: {spec.source}", model, info)
    return model


def _with_attention(where: str, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Load with scaled dot product attention, or the model's own where there is no other for it.

    The attention is pinned: another kernel, found by chance on one machine, would round differently.
    """
    load = partial(AutoModelForCausalLM.from_pretrained, where, **options)
    try:
        # Shapes that differ are told apart by check_weights, which can say which; the library does in a table.
        loaded: Any = load(attn_implementation="sdpa", output_loading_info=True, ignore_mismatched_sizes=True)
    except ValueError as error:
        if not _NO_SDPA.search(str(error)):
            raise
        loaded = load(attn_implementation="eager", output_loading_info=True, ignore_mismatched_sizes=True)
    return loaded  # type: ignore[no-any-return]


def context_of(config: Any) -> int:
    """Most tokens of a sequence.

    Not past where LongRoPE changes its frequencies: it does so for all sequences of a step at once, by the longest.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    every = [rope, *(part for part in rope.values() if isinstance(part, dict))]
    changes = [part["original_max_position_embeddings"] for part in every if part.get("rope_type") == "longrope"]
    made_for = getattr(config, "max_position_embeddings", None) or 0
    return int(min([made_for if made_for > 0 else _NO_LIMIT, *changes]))


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    configured = model.generation_config.eos_token_id if model.generation_config else None
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(int(i) for i in [*ids, tokenizer.eos_token_id] if i is not None)


def _sampling(model: PreTrainedModel) -> dict[str, float]:
    """Of the model's generation_config, where that says to sample at all; its penalties are left to requests."""
    config = model.generation_config
    if config is None or not config.do_sample:
        return {}
    named = {name: getattr(config, name, None) for name in ("temperature", "top_p", "top_k")}
    return {name: value for name, value in named.items() if value is not None}


def _fingerprint(model: PreTrainedModel, dtype: str) -> str:
    """Over every tensor's name, shape and a strided thousandth of its values: cheap, and no fine-tuning keeps it."""
    digest = hashlib.sha256(f"text-generation {dtype}".encode())
    for name, value in sorted(model.state_dict().items()):
        with at_hand(model, name, value) as held:
            flat = held.detach().reshape(-1)
            some = flat[:: max(1, flat.numel() // 1024)].cpu().contiguous()
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)}".encode())
        digest.update(some.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
