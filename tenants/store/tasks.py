"""The end of a background task, in one place."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

logger = logging.getLogger(__name__)


async def end(task: asyncio.Task[Any] | None) -> None:
    """Cancel a task and wait until it has ended; None is none. A failure of its own is logged, not raised."""
    if task is None:
        return
    task.cancel()
    # Not `await task` under suppress(CancelledError): that would also swallow the caller's own cancellation.
    await asyncio.wait([task])
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("task %s failed", task.get_name(), exc_info=error)
