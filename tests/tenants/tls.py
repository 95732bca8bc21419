"""A TLS server for the tests: Debian's redis-server with a certificate made here, and the users that the docs give."""

from __future__ import annotations

import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"


@dataclass(frozen=True)
class TlsServer:
    """Its port, the folder of its certificates, and the password that every user has."""

    port: int
    folder: Path
    password: str
    client: Redis

    def url(self, user: str, authority: str = "ca.pem", certificate: str = "server") -> str:
        files = f"ssl_certfile={self.folder}/{certificate}.pem&ssl_keyfile={self.folder}/{certificate}.key"
        return f"rediss://{user}:{self.password}@127.0.0.1:{self.port}/0?ssl_ca_certs={self.folder}/{authority}&{files}"


@contextmanager
def running_tls(folder: Path) -> Iterator[TlsServer]:
    """A server that takes TLS alone and wants a client's certificate; skips where none of the machine's can."""
    binary = shutil.which("redis-server")
    if binary is None or shutil.which("openssl") is None:
        pytest.skip("needs redis-server and openssl")
    make_certificates(folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    files = {f"tls-{name}-file": folder / f for name, f in (("cert", "server.pem"), ("key", "server.key"))}
    options = {"port": 0, "tls-port": port, "tls-ca-cert-file": folder / "ca.pem", **files}
    options |= {"bind": "127.0.0.1", "dir": folder, "save": "", "logfile": folder / "redis.log"}
    process = subprocess.Popen([binary, *(str(w) for name, value in options.items() for w in (f"--{name}", value))])
    own = {f"ssl_{name}": f"{folder}/{f}" for name, f in (("certfile", "server.pem"), ("keyfile", "server.key"))}
    client = Redis(port=port, host="127.0.0.1", ssl=True, ssl_ca_certs=f"{folder}/ca.pem", **own)  # type: ignore[arg-type]
    try:
        deadline = time.monotonic() + 30
        while not _answers(client):
            if process.poll() is not None and "tls" in (folder / "redis.log").read_text().lower():
                pytest.skip("this redis-server is built without TLS")
            assert time.monotonic() < deadline, (folder / "redis.log").read_text()
            time.sleep(0.02)
        password = secrets.token_hex(16)
        newer = tuple(client.info("server")["redis_version"].split(".")[:2]) >= ("7", "2")
        for user, rules in documented_users().items():
            words = rules.replace("PASSWORD", password).split() + ["+client|setinfo"] * newer
            client.execute_command("ACL", "SETUSER", user, *words)
        yield TlsServer(port, folder, password, client)
    finally:
        client.close()
        process.terminate()
        process.wait()


def documented_users() -> dict[str, str]:
    """The ACL lines of docs/operations.md, by user."""
    return dict(re.findall(r"^user (\w+) (.+)$", OPERATIONS.read_text(), re.MULTILINE))


def make_certificates(folder: Path) -> None:
    """An authority, a certificate of it for 127.0.0.1, and another authority that has signed nothing."""
    for authority in ("ca", "stranger"):
        _openssl(folder, "req", "-x509", *_key(authority), "-subj", f"/CN={authority}", "-out", f"{authority}.pem")
    _openssl(folder, "req", "-new", *_key("server"), "-subj", "/CN=server", "-out", "server.csr")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1")
    signed_by = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
    _openssl(folder, "x509", "-req", "-in", "server.csr", *signed_by, "-out", "server.pem")


def _key(name: str) -> tuple[str, ...]:
    return "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{name}.key"


def _openssl(folder: Path, *words: str) -> None:
    subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)


def _answers(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except RedisConnectionError:
        return False
