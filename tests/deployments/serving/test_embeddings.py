"""The deployment of embeddings, outside Serve: level 1.0 alone, many texts of one request, and what was used."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deployments.config import ModelSpec, Task
from deployments.prompts.form import Form
from policies.errors import InvalidRequest, NotEntitled
from policies.terms import Modulation, Share
from tests.deployments.engines.text.test_embedder import bert
from tests.deployments.tiny_models import folder

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's own, at import
    from deployments.serving.embeddings import EmbeddingReplica

OWN = Share(flow="own")


class Store:
    """In the place of a store: remembers what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    async def execute(self, *command: Any) -> None:
        self.told.append(command)

    async def connect(self) -> Any:
        @asynccontextmanager
        async def opened() -> AsyncIterator[Store]:
            yield self

        return opened()


async def replica_of(tmp_path: Path, store: Store) -> EmbeddingReplica:
    spec = ModelSpec(
        id="tiny", task=Task.EMBEDDING, source=str(folder(tmp_path, bert())), max_queue_per_tenant=4, aliases=("ada",)
    )
    made = EmbeddingReplica.__new__(EmbeddingReplica)
    await EmbeddingReplica.__init__(made, spec, store, SimpleNamespace(count=lambda: 1))  # type: ignore[arg-type]
    return made


async def test_a_replica_embeds_at_level_one_alone(tmp_path: Path) -> None:
    store = Store()
    replica = await replica_of(tmp_path, store)
    info = replica.info()
    assert (info.dimensions, info.context, info.floor, info.aliases) == (32, 64, 0.01, ("ada",))
    assert store.told[0][:3] == ("HSET", "catalog", "tiny") and "ada" in store.told[0]
    assert Form.unpack(b"".join([part async for part in replica.form()])).digest == info.form
    prompts = [[5 + at % 7] * (1 + at % 5) for at in range(40)]  # more than a tenant may have queued
    made = await replica.embed(prompts, "input", Modulation(), OWN)
    alone = await replica.embed(prompts[:1], "input", Modulation(), OWN)
    np.testing.assert_allclose(np.frombuffer(made[0], "<f4"), np.frombuffer(alone[0], "<f4"), atol=1e-5)
    assert len(made) == 40 and made[0] != made[1]
    for terms in (Modulation(utility=0.9), Modulation(focus={"a": 0.5})):
        with pytest.raises(NotEntitled, match="no level"):
            await replica.embed(prompts, "input", terms, OWN)
    with pytest.raises(InvalidRequest) as error:
        await replica.embed([[5], [272]], "input", Modulation(), OWN)
    assert error.value.param == "input"
    await replica.check_health()
    await replica._batcher.aclose()


async def test_what_a_call_had_used_that_was_cut_short_is_told(tmp_path: Path) -> None:
    replica = await replica_of(tmp_path, Store())
    begun = asyncio.Event()
    embed, loop = replica.engine.embed, asyncio.get_running_loop()

    def slow(prompts: Any) -> list[bytes]:
        loop.call_soon_threadsafe(begun.set)
        return embed(prompts)

    replica.engine.embed = slow  # type: ignore[method-assign]
    call = asyncio.create_task(replica.embed([[5, 6]] * 30, "input", Modulation(), OWN, "n1"))
    await begun.wait()
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    spent = await replica.spent("n1")
    assert spent is not None and 2 <= spent.tokens_in <= 60 and spent.tokens_out == 0
    await replica._batcher.aclose()
