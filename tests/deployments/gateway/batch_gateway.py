"""A gateway as a process of its own, to be killed:
`STORE_URL=<store> python -m tests.deployments.gateway.batch_gateway <port> <file>`.

Its model is a script, which appends each line that it is asked to a file.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import uvicorn

from deployments.config import AppArgs, GatewayArgs, StoreArgs, Task
from deployments.contracts.catalog import ModelInfo
from deployments.gateway.batches import runner
from tests.deployments.gateway_support import Scripted, opened


async def main(store_url: str, port: int, asked: Path) -> None:
    """Serve until killed."""
    runner.PERIOD_S, runner.LEASE_S, runner.RENEW_S = 0.1, 1.0, 0.2

    def answer(method: str, data: bytes, *_: Any) -> list[dict[str, Any]]:
        with asked.open("ab") as log:
            log.write(data + b"\n")
        return [{"label": data.decode(), "score": 1.0}]

    models = Scripted(answer)
    models.add(ModelInfo(id="labels", task=Task.CLASSIFICATION, classes=("sky",), floor=0.1, created=1))
    spec = {"id": "m", "task": "image-classification", "source": "nowhere"}
    args = AppArgs(
        models=(spec,),  # type: ignore[arg-type]
        store=StoreArgs(redis_url=store_url, data_dir=str(asked.parent)),
        gateway=GatewayArgs(batch_at_once=8),
    )
    gateway = await opened(args)
    gateway.service.models = models
    api = gateway.__serve_build_asgi_app__()
    await uvicorn.Server(uvicorn.Config(api, host="127.0.0.1", port=port, log_level="warning", lifespan="off")).serve()


if __name__ == "__main__":
    asyncio.run(main(os.environ["STORE_URL"], int(sys.argv[1]), Path(sys.argv[2])))
