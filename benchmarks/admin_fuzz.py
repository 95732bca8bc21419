"""Fuzz the administration over HTTP by its own OpenAPI document, with Schemathesis, on a private store.

Usage: python -m benchmarks.admin_fuzz SCHEMATHESIS [MAX_EXAMPLES]

SCHEMATHESIS is the path of its command (`pip install schemathesis` in an environment of its own: it brings a pytest
plugin). Fails where any answer is a server error or not in the document.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import tempfile

import uvicorn
from fastapi import FastAPI

from deployments.gateway.api.admin.app import PREFIX, build_admin
from tenants.admin import installation
from tenants.admin.admin import TenantAdmin
from tenants.admin.operators import Operators, Role
from tenants.store.embedded import EmbeddedValkey
from tenants.store.store import TenantStore

CHECKS = "not_a_server_error,content_type_conformance,response_schema_conformance"


async def fuzz(command: str, examples: int) -> int:
    """Serve on a free port, let Schemathesis loose on it; its exit status."""
    with tempfile.TemporaryDirectory() as folder, EmbeddedValkey(folder) as server:
        async with await TenantStore.connect(server.url, timeout_s=5.0) as owner:
            await installation.create_secrets(owner)
        async with await TenantStore.connect(server.url_of("admin"), timeout_s=5.0) as store:
            admin = TenantAdmin(store, who="fuzz")
            await admin.create_tier("gold", {"utility": "1.0"})
            await admin.create_tenant("acme", tier="gold")
            secret, own = await Operators(store, admin.log).create("fuzz", Role.OWNER)
            app = FastAPI()
            app.mount(PREFIX, build_admin(store))
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            http = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
            serving = asyncio.create_task(http.serve())
            words = [command, "run", f"http://127.0.0.1:{port}{PREFIX}/openapi.json", "--checks", CHECKS]
            words += ["-H", f"Authorization: Bearer {secret}", "--max-examples", str(examples), "--seed", "1"]
            # It would end its own key.
            words += ["--exclude-path-regex", "admin-keys/.*/revoke"]
            status = await asyncio.to_thread(lambda: subprocess.run(words).returncode)
            http.should_exit = True
            await serving
            found = await admin.log.verify()
            print(f"audit log: {found['entries']} entries, broken: {found['broken']}")
            return status or bool(found["broken"])


if __name__ == "__main__":
    sys.exit(asyncio.run(fuzz(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 50)))
