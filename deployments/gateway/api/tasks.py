"""Which route serves which task."""

from __future__ import annotations

from deployments.config import Task
from deployments.contracts.catalog import ModelInfo
from policies.errors import InvalidRequest


def check_task(info: ModelInfo, *tasks: Task) -> None:
    """Refuse a model of another task. Raises InvalidRequest, which names the route that serves it."""
    if info.task in tasks:
        return
    match info.task:
        case Task.TEXT:
            instead = "generates text; use POST /v1/chat/completions"
        case Task.EMBEDDING:
            instead = "makes embeddings; use POST /v1/embeddings"
        case _:
            instead = f"does {info.task}; send images to POST /models/{info.id}"
    raise InvalidRequest(f"'{info.id}' {instead}.", param="model", code="wrong_task")
