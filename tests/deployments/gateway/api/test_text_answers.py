"""Answers on the wire from the pieces of an engine: where each token stands, and the work of many answers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE

from deployments.contracts.catalog import TextDelta, TokenLogprob
from deployments.engines.text.seat import LogprobRecord
from deployments.engines.text.transcript import Transcript
from deployments.gateway.api.text_answers import ChatShape, CompletionShape, Tally
from tests.deployments.tokenizer_support import byte_fallback

PIECES = ["\u2581The", "\u2581sky", "\u2581is", "blue", "\u2581n", "\u00e9", "<0xE2>", "<0x82>", "<0xAC>", "\u2581."]
"""Words as SentencePiece has them; the last but one character comes as three bytes."""


def sentencepiece() -> Tokenizer:
    """Bytes put together, and the space before the first word left out."""
    made = Tokenizer(BPE({piece: at for at, piece in enumerate(PIECES)}, []))
    made.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return made


@pytest.mark.parametrize("prompt", [[], [0, 1]])
@pytest.mark.parametrize("stops", [(), ("zzz",), (" .",)])
def test_a_tokens_offset_is_where_its_text_begins_in_the_answer(prompt: list[int], stops: tuple[str, ...]) -> None:
    text = Transcript(sentencepiece(), prompt, stops, frozenset(), float)
    record = LogprobRecord(torch.tensor(-1.0), torch.tensor([-1.0]), torch.tensor([0]))
    told, tokens = "", []
    for token in range(len(PIECES)):
        told += text.push([token], [record], 1)
        tokens += text.logprobs(False)
    told += text.flush()
    tokens += text.logprobs(True)
    assert told.strip() == "The sky isblue n\u00e9\u20ac" + ("" if " ." in stops else " .")
    logprobs = CompletionShape("m", True).logprobs(tokens)
    starts = logprobs["text_offset"]
    assert len(starts) == len(PIECES) - (" ." in stops)
    for piece, start in zip(PIECES[:6], starts, strict=False):
        first = start == 0 and not prompt
        assert told[start:].startswith(piece.replace("\u2581", "" if first else " "))
    assert starts[6] == starts[7] == starts[8] == told.index("\u20ac")
    assert len(starts) < 10 or starts[9] == told.index(" .")


def test_a_stop_text_of_many_bytes_ends_an_answer_where_it_begins() -> None:
    tokenizer = byte_fallback()
    text = Transcript(tokenizer, [], ("😀漢",), frozenset(), float)
    tokens = tokenizer.encode("é😀 and 😀😀漢 more").ids
    told = "".join(text.push([token], [], 0) for token in tokens) + text.flush()
    assert told == "é😀 and 😀" and text.stopped


class Counted(list[TextDelta]):
    """Counts how often its items are looked at."""

    seen = 0

    def __iter__(self) -> Iterator[TextDelta]:
        for delta in super().__iter__():
            self.seen += 1
            yield delta


def test_a_whole_answer_of_many_choices_looks_at_each_piece_once() -> None:
    deltas = Counted(
        TextDelta(f"{step}", 1, "stop" if step == 3 else None, 1, step, i) for step in range(4) for i in range(128)
    )
    answer = ChatShape("m", False).whole(deltas, Tally())
    assert [choice["index"] for choice in answer["choices"]] == list(range(128))
    assert {choice["message"]["content"] for choice in answer["choices"]} == {"0123"}
    assert deltas.seen == len(deltas)


def test_a_stream_has_each_tokens_own_offset() -> None:
    shape = CompletionShape("m", True)
    token = TokenLogprob("sky", -1.0, (("sky", -1.0),), 3)
    (event,) = shape._events(TextDelta(" sky", 1, None, 1, 1, 0, (token,)), {0})
    assert event["choices"][0]["logprobs"]["text_offset"] == [3]
