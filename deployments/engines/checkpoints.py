"""What lies in a model's folder, before a library opens it: whole files, or one line on what is wrong."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from deployments.engines.errors import LoadError, first_line

WEIGHTS = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip
"""Names that transformers looks for, in its own order."""
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What torch.compile, FSDP and activation checkpointing put into names, at any place."""
_WITHIN = rf"(?:{'|'.join(WRAPPERS)})\."
UNWRAPPED = {rf"^(?:{_WITHIN}|module\.)+": "", rf"\.(?:{_WITHIN})+": "."}
"""For `from_pretrained`'s key_mapping: those, and `module.`, which DataParallel and DeepSpeed put before names."""
_READ_BESIDE = frozenset(
    "config.json generation_config.json preprocessor_config.json tokenizer.json tokenizer_config.json"
    " special_tokens_map.json added_tokens.json vocab.json vocab.txt tokenizer.model spiece.model"
    " sentencepiece.bpe.model tiktoken.model chat_template.jinja".split()
)
_POINTER = b"version https://git-lfs"
_SHARD = re.compile(r"(?P<name>.+)-\d+-of-\d+(?P<suffix>\.safetensors|\.bin)")
_UNFINISHED = ("*.incomplete", "*.part", "*.crdownload", "*.aria2", ".cache/huggingface/download/**/*.incomplete")
_AGAIN = "download it again"
_OTHER_FORMS = {
    "adapter_config.json": "an adapter without its base model: merge it with peft's merge_and_unload, save_pretrained"
    " the result, and name that folder",
    "zero_to_fp32.py": "a DeepSpeed checkpoint: write its weights with `python zero_to_fp32.py . .`",
    "*.distcp": "a distributed checkpoint of torch: write its weights with `accelerate merge-weights`",
    "pytorch_model_fsdp_0": "an FSDP checkpoint: write its weights with `accelerate merge-weights`",
    "consolidated*": "weights in their author's own form: convert them with transformers' convert script of that model",
    "*.gguf": "GGUF files: name one of them, with its .gguf, in source",
    "*.onnx": "an ONNX export: name the folder or hub id that it was exported from",
    "*.msgpack": "Flax weights: save them from transformers as safetensors",
    "*.h5": "TensorFlow weights: save them from transformers as safetensors",
}
"""What a folder without weights may hold, and what makes a model of it."""


def check_files(folder: Path) -> None:
    """Check that a folder holds a model's weights, and that what a library would read of it is whole.

    Only that: a git-lfs pointer to another form of the weights, beside whole ones, is nobody's fault.

    Raises:
        LoadError: a missing folder, config.json, weights or shard; a git-lfs pointer, an empty file, one cut short or
            whose download has not finished. One line naming the file and what to do.
    """
    if not folder.is_dir():
        raise LoadError(f"there is no folder {folder}")
    if not (folder / "config.json").is_file():
        raise LoadError(_without_config(folder))
    for path in sorted(folder.iterdir()):
        if path.name in _READ_BESIDE:
            check_file(path)
    for path in weight_files(folder):
        check_file(path)


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers would read a folder's weights from, every shard of an index included.

    Raises:
        LoadError: there are none, or a shard is missing.
    """
    found = next((folder / name for name in WEIGHTS if (folder / name).exists()), None)
    if found is None:
        raise LoadError(_without_weights(folder))
    if found.suffix != ".json":
        return [found]
    check_file(found)
    try:
        shards = sorted({folder / name for name in _json(found)["weight_map"].values()})
    except (KeyError, TypeError, AttributeError) as error:
        raise LoadError(f"{found} is no index of weights: it has no weight_map; {_AGAIN}") from error
    if missing := [path.name for path in shards if not path.exists()]:
        raise LoadError(
            f"{folder} lacks {len(missing)} of the {len(shards)} files of its weights, such as {missing[0]}"
            f"{_unfinished(folder)}; download the rest"
        )
    return shards


def check_file(path: Path) -> None:
    """Check that one file of weights, or a JSON beside them, is there and whole; cheap for any size.

    Raises:
        LoadError: as `check_files`.
    """
    if not path.is_file():
        raise LoadError(f"there is no file {path}")
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise LoadError(f"{path} is empty; {_AGAIN}")
    if head.startswith(_POINTER):
        raise LoadError(f"{path} is a git-lfs pointer, not the file itself: run `git lfs pull` in {path.parent}")
    if head.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")):
        raise LoadError(f"{path} is a web page, not the file itself; {_AGAIN} from the page's download link")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "np"):
                pass
        except (SafetensorError, OSError) as error:
            raise LoadError(f"{path} is cut short or no safetensors file ({first_line(error)}); {_AGAIN}") from error
    elif path.suffix == ".json":
        _json(path)
    elif head.startswith(b"PK") and not zipfile.is_zipfile(path):
        raise LoadError(f"{path} is cut short: it has no end of a torch file; {_AGAIN}")


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LoadError(f"{path} is cut short or no JSON ({first_line(error)}); {_AGAIN}") from error


def _without_config(folder: Path) -> str:
    """Why a folder without config.json is no model."""
    inner = sorted(
        path.parent.relative_to(folder) for form in ("*", "snapshots/*") for path in folder.glob(f"{form}/config.json")
    )
    if inner:
        return f"{folder} has no config.json, but its folder {inner[-1]} has: name that one"
    return f"{folder} has no config.json{_held(folder)}"


def _without_weights(folder: Path) -> str:
    """Why a folder whose weights nothing finds is no model."""
    for path in sorted(folder.iterdir()):
        if shard := _SHARD.fullmatch(path.name):
            index = f"{shard['name']}{shard['suffix']}.index.json"
            return f"{folder} holds parts of weights, such as {path.name}, but not their index {index}; download it"
    return f"{folder} holds no weights ({WEIGHTS[0]}, {WEIGHTS[2]}, or shards of them with their index){_held(folder)}"


def _held(folder: Path) -> str:
    if unfinished := _unfinished(folder):
        return f"{unfinished}; download the rest"
    for pattern, said in _OTHER_FORMS.items():
        if next(folder.glob(pattern), None):
            return f"; it holds {said}"
    return ""


def _unfinished(folder: Path) -> str:
    found = next((path for pattern in _UNFINISHED for path in folder.glob(pattern)), None)
    return "" if found is None else f" (a download has not finished: {found.relative_to(folder)})"
