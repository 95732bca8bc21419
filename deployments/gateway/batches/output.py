"""A batch's output files: one line for each line that was answered, in the input's order."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from tenants.batches.batches import Asked, Batches
from tenants.batches.files import Files

_AT_ONCE = 50


@dataclass
class Written:
    """Ids of the files, where there is anything to write, and how many lines they have."""

    output: str | None = None
    errors: str | None = None
    completed: int = 0
    failed: int = 0


async def write_outputs(
    files: Files, batches: Batches, asked: Asked, unasked: AsyncIterator[tuple[int, bytes]] | None
) -> Written:
    """Write both files. Done again, by whoever, it writes the same ones.

    Args:
        unasked: what is said of lines that were never asked, by number.
    """
    numbers = sorted(await batches.done(asked))
    written = Written()

    async def answered(kind: bytes) -> AsyncIterator[bytes]:
        for at in range(0, len(numbers), _AT_ONCE):
            for result in await batches.results(asked, numbers[at : at + _AT_ONCE]):
                if result is not None and result[:1] == kind:
                    written.completed, written.failed = _counted(written, kind)
                    yield result[1:] + b"\n"

    async def failed() -> AsyncIterator[bytes]:
        async for line in answered(b"-"):
            yield line
        if unasked is not None:
            async for _, text in unasked:
                written.completed, written.failed = _counted(written, b"-")
                yield text + b"\n"

    for what, lines in (("output", answered(b"+")), ("error", failed())):
        file_id = "file-" + hashlib.sha256(f"{asked.id} {what}".encode()).hexdigest()[:24]
        name = f"{asked.id}_{what}.jsonl"
        file = await files.put(asked.tenant, name, "batch_output", lines, keep_s=asked.output_keep_s, file_id=file_id)
        if not file.bytes:
            await files.delete(asked.tenant, file.id)
        elif what == "output":
            written.output = file.id
        else:
            written.errors = file.id
    return written


def _counted(written: Written, kind: bytes) -> tuple[int, int]:
    return written.completed + (kind == b"+"), written.failed + (kind == b"-")
