"""A model's tokenizer: one of the `tokenizers` library that knows words, or a line on what is missing."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from deployments.config import ModelSpec
from deployments.engines.errors import LoadError, first_line
from deployments.engines.text.loading.sources import Source

_READY = ("tokenizer.json", "vocab.json", "vocab.txt", "tekken.json")
_SENTENCES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
_TIKTOKEN = ("tiktoken.model", "*.tiktoken")


def load_tokenizer(spec: ModelSpec, source: Source) -> Any:
    """The tokenizer of a source.

    Raises:
        LoadError: there is none, a package that reads it is missing, or it is none of the `tokenizers` library.
    """
    extra = {"gguf_file": source.gguf_file} if source.gguf_file else {}
    if not extra and Path(source.where).is_dir():
        _check_folder(spec, Path(source.where))
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(source.where, trust_remote_code=False, **extra)
    except Exception as error:  # libraries raise their plain ones for files that they cannot read
        raise LoadError(
            f"{spec.id}: the tokenizer of {spec.source} cannot be loaded ({first_line(error)}); save one beside the"
            " weights with its save_pretrained"
        ) from error
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise LoadError(
            f"{spec.id}: the tokenizer of {spec.source}, {type(tokenizer).__name__}, is none of the tokenizers library,"
            " which streams text; save it as a tokenizer.json"
        )
    # Transformers makes an empty one for some models where there is no file.
    if not set(tokenizer.get_vocab().values()) - set(tokenizer.added_tokens_decoder):
        raise LoadError(
            f"{spec.id}: the tokenizer of {spec.source} knows no words, as where its files are missing; {_COPY}"
        )
    return tokenizer


_COPY = "copy tokenizer.json and tokenizer_config.json of the model that it was trained from"


def _check_folder(spec: ModelSpec, folder: Path) -> None:
    """Refuse a folder without a tokenizer, or whose tokenizer needs what is not installed."""
    if any((folder / name).is_file() for name in _READY):
        return
    pieces = next((folder / name for name in _SENTENCES if (folder / name).is_file()), None)
    ranks = next((path for form in _TIKTOKEN for path in folder.glob(form)), None)
    if pieces is None and ranks is None:
        raise LoadError(f"{spec.id}: {folder} has no tokenizer; {_COPY}")
    # Both lie under the name tokenizer.model; only one is text.
    if pieces is not None and not _is_ranks(pieces):
        needed = [name for name in ("sentencepiece", "google.protobuf") if not _installed(name)]
    else:
        needed = [name for name in ("tiktoken",) if not _installed(name)]
    if needed:
        name = "protobuf" if needed[0].startswith("google") else needed[0]
        raise LoadError(f"{spec.id}: {pieces or ranks} needs the package {name}: `pip install {name}`")


def _is_ranks(path: Path) -> bool:
    """Whether a file is tiktoken's: lines of base64 and a rank."""
    with path.open("rb") as file:
        first = file.readline(4096).split()
    return len(first) == 2 and first[1].isdigit()


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
