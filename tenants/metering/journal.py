"""Settlements on disk while the store cannot take them: a killed gateway's usage is booked by the next one."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tenants.metering.outcome import Outcome
from tenants.metering.settlement import Settlement, Sold, State

logger = logging.getLogger(__name__)

SUFFIX = ".jsonl"
MOST_LINES = 100_000
VERSION = 2
"""Of the lines. What another version wrote stays in its file."""


class Journal:
    """One process's file of JSON lines in a folder that the gateways of a machine share.

    A line is handed to the kernel before the request is answered, so that it outlives the process, not a power
    failure. The owner holds the file's lock: a file that can be locked has lost its owner, and is adopted. A line names
    its store and its form; what is of another is left where it is.

    Attributes:
        store: the store's name for itself; "" until it is known.
    """

    def __init__(self, folder: Path, most_lines: int = MOST_LINES, store: str = "") -> None:
        self.store = store
        self._folder = folder
        self._most = most_lines
        self._file: int | None = None
        self._path = folder / f"{os.getpid()}-{secrets.token_hex(4)}{SUFFIX}"
        self._lines = 0
        self._left: set[str] = set()

    def append(self, settlement: Settlement) -> None:
        """Keep a settlement. A disk that refuses is logged: serving goes on, with memory alone."""
        if self._lines >= self._most:
            return
        line = {"version": VERSION, "store": self.store, "written": time.time(), **dataclasses.asdict(settlement)}
        try:
            if self._file is None:
                self._file = self._create()
            os.write(self._file, json.dumps(line).encode() + b"\n")
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

    def orphans(self) -> Iterator[list[Settlement]]:
        """What each gateway left behind that has ended. A file is removed once all of it has been taken; lines of
        another store or version stay in it, for who understands them."""
        for path in sorted(self._folder.glob(f"*{SUFFIX}")):
            if path == self._path:
                continue
            with contextlib.suppress(OSError):
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # OSError: its owner lives
                    taken, left = self._read(descriptor, path)
                    if taken:
                        yield taken
                    if left:
                        self._leave(path, left, rewrite=bool(taken))
                    else:
                        path.unlink(missing_ok=True)
                finally:
                    os.close(descriptor)

    def _read(self, descriptor: int, path: Path) -> tuple[list[Settlement], list[bytes]]:
        """The settlements that are ours to book, and the lines that are not."""
        taken, left = [], []
        with os.fdopen(os.dup(descriptor), "rb") as file:
            for line in file:
                try:
                    found = json.loads(line)
                except ValueError:
                    logger.error("a line of %s is damaged and left out", path)  # the last, where its owner was killed
                    continue
                settlement = self._understood(found)
                if settlement is None:
                    left.append(line)
                else:
                    taken.append(settlement)
        return taken, left

    def _understood(self, line: Any) -> Settlement | None:
        if not isinstance(line, Mapping) or line.get("version") != VERSION:
            return None
        if line.get("store") not in (self.store, ""):
            return None
        try:
            fields = {name: value for name, value in line.items() if name not in ("version", "store", "written")}
            sold = fields["sold"]
            fields["sold"] = Sold(**{**sold, "parts": tuple(sold["parts"]), "periods": tuple(sold["periods"])})
            fields |= {"state": State(fields["state"]), "status": Outcome(fields["status"])}
            # It may have been sent after it was written.
            fields["sent_at"] = fields["sent_at"] or float(line["written"])
            return Settlement(**fields)
        except (TypeError, KeyError, ValueError):
            return None

    def _leave(self, path: Path, lines: list[bytes], *, rewrite: bool) -> None:
        if path.name not in self._left:
            self._left.add(path.name)
            logger.error("%d lines of %s are of another store or version, and stay there", len(lines), path)
        if rewrite:
            draft = path.with_suffix(".left")
            draft.write_bytes(b"".join(lines))
            draft.chmod(0o600)
            os.replace(draft, path)

    def _create(self) -> int:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Locked before it has its name, or another gateway could adopt it in between.
        draft = self._path.with_suffix(".new")
        descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.rename(draft, self._path)
        return descriptor
