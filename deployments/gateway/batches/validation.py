"""Whether a file is a batch: read once, from its first line to its last, before any request of it is made."""

from __future__ import annotations

from deployments.gateway.batches.lines import MOST_FAULTS, Fault, parsed, split
from policies.errors import NotFound
from tenants.batches.batches import Asked
from tenants.batches.files import Files


async def validate(files: Files, asked: Asked, most_lines: int) -> int | list[Fault]:
    """How many requests a batch's file holds, or what is wrong with it, the first `MOST_FAULTS` of it."""
    faults: list[Fault] = []
    seen: dict[str, int] = {}
    try:
        file = await files.get(asked.tenant, asked.input_file_id)
        async for some in split(files.read(asked.tenant, file)):
            for line in await parsed(some, asked.endpoint):
                if isinstance(line, Fault):
                    faults.append(line)
                elif (first := seen.setdefault(line.custom_id, line.number)) != line.number:
                    said = f"custom_id '{line.custom_id[:80]}' is that of line {first}, too; each must be another."
                    faults.append(Fault("duplicate_custom_id", said, line.number, "custom_id"))
            if len(faults) >= MOST_FAULTS:
                return faults[:MOST_FAULTS]
            if len(seen) > most_lines:
                return [Fault("too_many_lines", f"A batch has at most {most_lines:,} lines; send several.")]
    except NotFound as error:
        return [Fault("input_file_not_found", error.message)]
    if not seen and not faults:
        return [Fault("empty_file", "The file has no line.")]
    return faults or len(seen)
