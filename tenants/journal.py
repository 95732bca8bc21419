"""Settlements on disk while the store cannot take them: a killed gateway's usage is booked by the next one."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tenants.settlement import Settlement

logger = logging.getLogger(__name__)

SUFFIX = ".jsonl"
MOST_LINES = 100_000


class Journal:
    """One process's file of JSON lines in a folder that the gateways of a machine share.

    A line is handed to the kernel before the request is answered, so that it outlives the process, not a power
    failure. The owner holds the file's lock: a file that can be locked has lost its owner, and is adopted.
    """

    def __init__(self, folder: Path, most_lines: int = MOST_LINES) -> None:
        self._folder = folder
        self._most = most_lines
        self._file: int | None = None
        self._path = folder / f"{os.getpid()}-{secrets.token_hex(4)}{SUFFIX}"
        self._lines = 0

    def append(self, settlement: Settlement) -> None:
        """Keep a settlement. A disk that refuses is logged: serving goes on, with memory alone."""
        if self._lines >= self._most:
            return
        try:
            if self._file is None:
                self._file = self._create()
            os.write(self._file, json.dumps(dataclasses.asdict(settlement)).encode() + b"\n")
        except OSError as error:
            logger.error("usage that is held for the store is kept in memory alone: %s", error.strerror)
            return
        self._lines += 1
        if self._lines == self._most:
            logger.error("the file of held usage is full: what follows is kept in memory alone")

    def clear(self) -> None:
        """The store has everything: empty the file."""
        if self._file is not None and self._lines:
            os.ftruncate(self._file, 0)
            os.lseek(self._file, 0, os.SEEK_SET)
            self._lines = 0

    def close(self, *, keep: bool) -> None:
        """Let go of the file, and of its content unless the next gateway shall have it."""
        if self._file is not None:
            if not keep:
                self._path.unlink(missing_ok=True)
            os.close(self._file)
            self._file, self._lines = None, 0

    def orphans(self) -> Iterator[list[dict[str, Any]]]:
        """What each gateway left behind that has ended; a file is removed once its content has been taken."""
        for path in sorted(self._folder.glob(f"*{SUFFIX}")):
            if path == self._path:
                continue
            with contextlib.suppress(OSError):
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # OSError: its owner lives
                    yield list(_lines(descriptor, path))
                    path.unlink(missing_ok=True)
                finally:
                    os.close(descriptor)

    def _create(self) -> int:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Locked before it has its name, or another gateway could adopt it in between.
        draft = self._path.with_suffix(".new")
        descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.rename(draft, self._path)
        return descriptor


def _lines(descriptor: int, path: Path) -> Iterator[dict[str, Any]]:
    with os.fdopen(os.dup(descriptor), "rb") as file:
        for line in file:
            try:
                found = json.loads(line)
            except ValueError:
                logger.error("a line of %s is damaged and left out", path)  # the last, where its owner was killed
                continue
            if isinstance(found, dict):
                yield found
