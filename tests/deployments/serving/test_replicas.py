"""A text replica's messages: paced where they are streamed, a piece an answer where they are not."""

from __future__ import annotations

import warnings
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from deployments.contracts.catalog import TextDelta
from deployments.contracts.spending import Spending
from policies.terms import Modulation, Share

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's own, at import
    from deployments.serving import replicas


class Replica(replicas.TextReplica):
    """Without an engine."""

    def __init__(self) -> None:
        self._spending = Spending()

    def __del__(self) -> None:
        pass


@pytest.mark.parametrize(("whole", "texts"), [(True, ["abc"]), (False, ["a", "bc"])])
async def test_pieces_share_messages(monkeypatch: pytest.MonkeyPatch, whole: bool, texts: list[str]) -> None:
    asked: list[dict[str, Any]] = []

    async def answer(engine: Any, prompts: Any, params: Any, *_: Any, **__: Any) -> AsyncGenerator[TextDelta]:
        asked.append(params)
        for at, text in enumerate("abc"):
            yield TextDelta(text, 1, "stop" if text == "c" else None, 1, at + 1)

    monkeypatch.setattr(replicas, "answer", answer)
    monkeypatch.setattr(replicas, "PACE_S", 3600.0)
    monkeypatch.setattr(Replica, "engine", None, raising=False)
    given = {"max_tokens": 3, "whole": whole}
    pieces = Replica().generate([[1]], "prompt", given, Modulation(), Share(flow="a"))
    assert [piece.text async for piece in pieces] == texts
    assert asked == [{"max_tokens": 3}] and given["whole"] is whole
