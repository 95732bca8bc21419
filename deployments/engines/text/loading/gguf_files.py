"""GGUF files: whole or in parts, and the tokens that end an answer."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
from transformers.integrations.gguf import GgufHeader, read_gguf_metadata

from deployments.engines.checkpoints import check_file
from deployments.engines.errors import LoadError, first_line

_PART = re.compile(r"(?P<name>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_TOKENS, _TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
_SPECIAL = (gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED)
_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
_ENDS = frozenset(
    "<|eot_id|> <|eom_id|> <|im_end|> <|end|> <|return|> <|call|> <end_of_turn> <|endoftext|> <|end_of_text|>"
    " <|END_OF_TURN_TOKEN|> <|end_of_turn|> <EOT> _<EOT> [EOT] [EOS] <｜end▁of▁sentence｜> <end_of_utterance>".split()
)
"""Special tokens that llama.cpp ends an answer at, whatever a file's metadata say."""


def part_names(name: str) -> list[str]:
    """Every part's name of the split file that `name` is a part of; `name` alone where it is none."""
    part = _PART.fullmatch(name)
    if part is None:
        return [name]
    return [f"{part['name']}-{n:05d}-of-{part['count']}.gguf" for n in range(1, int(part["count"]) + 1)]


def end_tokens(path: Path) -> frozenset[int]:
    """Ids that end an answer: of the metadata (end of sequence, turn, message), and special tokens known to do so."""
    metadata, _ = read_gguf_metadata(str(path), {_TOKENS})
    named = {metadata.get(f"tokenizer.ggml.{key}") for key in _END_KEYS}
    types = metadata.get(_TYPES, [])
    known = {
        text: at
        for at, (text, kind) in enumerate(zip(metadata.get(_TOKENS, []), types, strict=False))
        if kind in _SPECIAL and text in _ENDS
    }
    if "<|return|>" in known:  # Harmony: <|end|> parts an answer's channels there
        known.pop("<|end|>", None)
    return frozenset({int(i) for i in named if i is not None} | set(known.values()))


@contextmanager
def whole(paths: list[Path]) -> Iterator[Path]:
    """One file of all parts, for as long as the context is open; a file that is whole is itself.

    Raises:
        LoadError: a part is missing or cut short, or there is no room for the parts together.
    """
    check_gguf(paths[0])
    count = _metadata(paths[0]).get("split.count", 1)
    if count > 1 and len(paths) != count:
        raise LoadError(
            f"{paths[0]} is one of the {count} parts of a split GGUF: give all of them the names that they were split"
            f" to, such as {paths[0].stem}-00001-of-{count:05d}.gguf, or merge them with `llama-gguf-split --merge`"
        )
    if len(paths) == 1:
        yield paths[0]
        return
    size = sum(path.stat().st_size for path in paths)
    with tempfile.TemporaryDirectory(prefix="gguf-") as folder:
        if shutil.disk_usage(folder).free < size:
            raise LoadError(
                f"{paths[0]} is split, and {folder} has no room for its {size / 2**30:.1f} GiB in one file: set TMPDIR"
                " to a larger disk, or merge the parts with `llama-gguf-split --merge` and name the result"
            )
        merged = Path(folder) / f"{paths[0].stem}-merged.gguf"
        _merge([_reader(path) for path in paths], merged)
        yield merged


def check_gguf(path: Path) -> None:
    """Check that a GGUF file is there, is one, and is as long as its table of tensors says.

    Raises:
        LoadError: it is not; one line.
    """
    check_file(path)
    try:
        header = GgufHeader.from_file(str(path))
    except ValueError as error:
        if "holds tensors of ggml type" in str(error):  # a longer list of types may read it
            return
        raise LoadError(f"{path} is no GGUF file ({first_line(error)}); download it again") from error
    except Exception as error:  # of reading past the end
        raise LoadError(f"{path} is cut short: its header is not whole; download it again") from error
    end = max((header.data_start + info.offset + info.nbytes for info in header.tensors), default=0)
    if (size := path.stat().st_size) < end:
        raise LoadError(f"{path} is cut short: {size} of {end} bytes; download it again")


def _metadata(path: Path) -> dict[str, Any]:
    metadata, _ = read_gguf_metadata(str(path))
    return metadata


def _reader(path: Path) -> gguf.GGUFReader:
    check_file(path)
    try:
        return gguf.GGUFReader(path)
    except Exception as error:  # of reading past the end
        raise LoadError(f"{path} is cut short or no GGUF file ({first_line(error)}); download it again") from error


def _merge(readers: list[gguf.GGUFReader], out: Path) -> None:
    """Write the tensors of all parts behind the first part's metadata, as they are."""
    architecture = readers[0].fields[gguf.Keys.General.ARCHITECTURE].contents()
    writer = gguf.GGUFWriter(out, arch=architecture, endianess=readers[0].endianess)
    for key, field in readers[0].fields.items():
        if key == gguf.Keys.General.ARCHITECTURE or key.startswith(("GGUF.", "split.")):
            continue
        array = field.types[0] == gguf.GGUFValueType.ARRAY
        writer.add_key_value(key, field.contents(), field.types[0], sub_type=field.types[-1] if array else None)
    tensors = [tensor for reader in readers for tensor in reader.tensors]
    for tensor in tensors:
        data = tensor.data
        writer.add_tensor_info(tensor.name, data.shape, data.dtype, data.nbytes, tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(tensor.data, tensor_endianess=readers[0].endianess)
    writer.close()
