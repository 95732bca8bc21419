"""Texts to embeddings: an encoder of transformers, or a language model's hidden states, pooled to one vector a text."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModel, GgufConfig

from deployments.config import ModelSpec
from deployments.engines.errors import LoadError, first_line
from deployments.engines.text.loading.language_models import context_of
from deployments.engines.text.loading.own_library import OwnLibrary, form_of
from deployments.engines.text.loading.sources import Source, located
from deployments.engines.text.loading.tokenizers import load_tokenizer
from deployments.engines.text.loading.weights import check_weights
from deployments.prompts.encoder import Encoder
from deployments.prompts.form import Form
from deployments.prompts.lengths import characters_per_token
from deployments.prompts.library import Portable

TOKENS_AT_ONCE = 4096
"""Of a forward, padding included: its memory is bounded whatever a batch holds."""
_POOLINGS = {
    **{"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "last"},
    **{"mean": "mean", "cls": "cls", "lasttoken": "last"},
}
"""Names of sentence-transformers' poolings that are served."""
_MODULES = ("Transformer", "Pooling", "Normalize")


class Embedder:
    """A model that makes an embedding of each text: of unit length, as OpenAI's are. An embedding has no level.

    Made by `load`; `embed` from one thread at a time.

    Attributes:
        context: most tokens of a text.
        dimensions: of an embedding.
        pooling: what of a text's hidden states it is: `mean`, `cls` (the first) or `last`.
        form: the tokenizer as data, for gateways; None where it is more than that.
        characters: most that a token stands for, where that is known.
        encoder: texts to tokens.
    """

    def __init__(self, spec: ModelSpec, model: Any, tokenizer: Any, pooling: str) -> None:
        self.spec, self.pooling = spec, pooling
        self._model = model.requires_grad_(False).eval()
        self._device = next(model.parameters()).device
        config = model.config.get_text_config()
        self._pad = config.pad_token_id if getattr(config, "pad_token_id", None) is not None else 0
        self.context = min(context_of(config), spec.max_context or context_of(config))
        if config.model_type in ("roberta", "xlm-roberta", "camembert"):
            self.context -= self._pad + 1  # whose positions begin behind the padding's
        self.dimensions = int(config.hidden_size)
        vocabulary = model.get_input_embeddings().num_embeddings
        self.form: Form | None = form_of(tokenizer, vocabulary, frozenset())
        self.characters = characters_per_token(json.loads(self.form.tokenizer)) if self.form else None
        library = Portable(self.form) if self.form else OwnLibrary(tokenizer)
        self.encoder = Encoder(spec.id, library, vocabulary)

    @classmethod
    def load(cls, spec: ModelSpec, device: torch.device) -> Embedder:
        """Load the model that `spec.source` names, and have it embed a first text.

        Raises:
            LoadError: it is not there, not whole, or does more than pool hidden states; the message says what to do.
        """
        with located(spec) as source:
            pooling = spec.pooling or _pooling(spec, source)
            model = _load(spec, source)
            embedder = cls(spec, model.to(device), load_tokenizer(spec, source), pooling)
        try:
            embedder.trial()
        except Exception as error:
            raise LoadError(
                f"{spec.id}: {type(model).__name__} makes no hidden states of a text ({first_line(error)}); name an"
                " encoder, or a language model, in source"
            ) from error
        return embedder

    @torch.inference_mode()
    def embed(self, prompts: Sequence[Sequence[int]]) -> list[bytes]:
        """Embeddings of token ids, in order, each of unit length: float32 numbers, little-endian."""
        made: list[bytes] = [b""] * len(prompts)
        for places in _groups([len(prompt) for prompt in prompts]):
            vectors = self._forward([prompts[at] for at in places]).cpu().numpy().astype("<f4")
            for at, vector in zip(places, vectors, strict=True):
                made[at] = vector.tobytes()
        return made

    def trial(self) -> None:
        """Have the model embed a token. Raises what the device raises."""
        if len(self.embed([[1]])[0]) != 4 * self.dimensions:
            raise ValueError("its hidden states are not as wide as its config.json says")

    def _forward(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        longest = max(map(len, prompts))
        ids = torch.tensor([[*prompt, *[self._pad] * (longest - len(prompt))] for prompt in prompts])
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self._device)
        mask = (torch.arange(longest, device=self._device) < lengths[:, None]).long()
        hidden = self._model(input_ids=ids.to(self._device), attention_mask=mask).last_hidden_state.float()
        return F.normalize(self._pooled(hidden, mask, lengths), dim=1)

    def _pooled(self, hidden: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        match self.pooling:
            case "cls":
                return hidden[:, 0]
            case "last":
                return hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]
            case _:
                return (hidden * mask[:, :, None]).sum(dim=1) / lengths[:, None]


def _groups(lengths: Sequence[int]) -> list[list[int]]:
    """Texts that go in one forward, by their places: of like lengths, and bounded with their padding."""
    groups: list[list[int]] = []
    for at in sorted(range(len(lengths)), key=lambda at: lengths[at], reverse=True):
        if groups and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= TOKENS_AT_ONCE:
            groups[-1].append(at)
        else:
            groups.append([at])
    return groups


def _load(spec: ModelSpec, source: Source) -> Any:
    options: dict[str, Any] = {"dtype": getattr(torch, spec.dtype), "trust_remote_code": False}
    if source.gguf_file:
        options |= {"gguf_file": source.gguf_file, "quantization_config": GgufConfig(dequantize=True)}
    load: Callable[..., Any] = AutoModel.from_pretrained
    try:
        model, info = load(source.where, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    except Exception as error:  # libraries raise their plain ones for files that they cannot read
        raise LoadError(
            f"{spec.id}: {spec.source} cannot be loaded as an encoder ({first_line(error)}); give a hub id, a folder"
            " with config.json, weights and tokenizer, or a .gguf file"
        ) from error
    # A layer behind the hidden states has no part in them.
    missing = [name for name in info["missing_keys"] if not name.startswith("pooler.")]
    check_weights(f"{spec.id}: {spec.source}", model, {**info, "missing_keys": missing})
    return model


def _pooling(spec: ModelSpec, source: Source) -> str:
    """As sentence-transformers saved it beside the weights, else the mean."""
    modules, pooling = Path(source.where) / "modules.json", Path(source.where) / "1_Pooling" / "config.json"
    if modules.is_file():
        kinds = [str(module["type"]).rpartition(".")[2] for module in json.loads(modules.read_text("utf-8"))]
        if other := [kind for kind in kinds if kind not in _MODULES]:
            raise LoadError(
                f"{spec.id}: {spec.source} has a module {other[0]}, which is not served; name another model"
            )
    if not pooling.is_file():
        return "mean"
    config = json.loads(pooling.read_text("utf-8"))
    asked = [name for name, on in config.items() if name.startswith("pooling_mode_") and on]
    if "pooling_mode" in config:
        asked = [str(config["pooling_mode"])]
    if len(asked) != 1 or asked[0] not in _POOLINGS:
        raise LoadError(f"{spec.id}: {spec.source} is pooled by {', '.join(asked)}; say mean, cls or last in pooling")
    return _POOLINGS[asked[0]]
