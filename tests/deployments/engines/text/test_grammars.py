"""Grammars without a model: what is built, what is refused and why, and that a fault stays where it is."""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import os
import random
import re
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings

from deployments.contracts.grammar import Grammar, GrammarKind
from deployments.engines.text.grammars.grammars import Grammars
from deployments.engines.text.grammars.masks import Masks
from deployments.engines.text.grammars.matcher import TOO_SLOW, Matcher
from deployments.engines.text.grammars.trials import Trials
from policies.errors import InvalidRequest
from policies.terms import Share
from tests.deployments.schema_support import Schema, random_schemas, valid, walked
from tests.deployments.tokenizer_support import byte_fallback, chat_tokenizer, words

VOCABULARY, END = 288, 259
OWN = Share(flow="own")


@pytest.fixture(scope="module")
def grammars() -> Iterator[Grammars]:
    made = Grammars("tiny", chat_tokenizer(), VOCABULARY, {END})
    yield made
    made.close()


@pytest.fixture(scope="module")
def tokens() -> dict[int, bytes]:
    tokenizer = chat_tokenizer().backend_tokenizer
    alphabet = tokenizer.get_vocab()
    plain = [token for token in alphabet if alphabet[token] < 257]
    # GPT-2's bytes: those that print stand for themselves, the others for letters from 256 on.
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    byte = {chr(at): at for at in shown} | {
        chr(256 + at): b for at, b in enumerate(b for b in range(256) if b not in shown)
    }
    return {alphabet[token]: bytes(byte[letter] for letter in token) for token in plain}


def schema(value: Any, param: str = "response_format") -> Grammar:
    return Grammar(GrammarKind.SCHEMA, value if isinstance(value, str) else json.dumps(value), param)


def built(grammars: Grammars, grammar: Grammar) -> Matcher:
    return asyncio.run(grammars.matcher(grammar, OWN))


def test_whatever_a_grammar_lets_through_is_valid_as_jsonschema_says(
    grammars: Grammars, tokens: dict[int, bytes]
) -> None:
    draw, ended = random.Random(0), list[Schema]()

    @settings(
        max_examples=200, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(random_schemas())
    def check(given_schema: Schema) -> None:
        try:
            matcher = built(grammars, schema(given_schema))
        except InvalidRequest as refused:
            assert refused.param == "response_format" and "Invalid schema" in refused.message
            return
        text = walked(matcher, tokens, {END}, draw)
        assert matcher.fault is None
        if text is not None:
            ended.append(given_schema)
            assert valid(given_schema, json.loads(text)), (given_schema, text)

    check()
    assert len(ended) > 60


@pytest.mark.parametrize(
    ("kind", "text", "judge"),
    [
        (GrammarKind.REGEX, r"[a-f]{3}-\d+(é|\n)", re.compile(r"[a-f]{3}-\d+(é|\n)").fullmatch),
        (GrammarKind.REGEX, r"^a/b\?$", re.compile(r"a/b\?").fullmatch),
        (GrammarKind.CHOICE, json.dumps(['a"b', "é😀\n", "x\\y", "/"]), ['a"b', "é😀\n", "x\\y", "/"].__contains__),
    ],
)
def test_expressions_and_choices_are_kept_to(
    grammars: Grammars, tokens: dict[int, bytes], kind: GrammarKind, text: str, judge: Any
) -> None:
    draw = random.Random(0)
    for _ in range(20):
        answer = walked(built(grammars, Grammar(kind, text, "guided")), tokens, {END}, draw)
        assert answer is not None and judge(answer.decode())


_CHAIN = {"$defs": {f"a{i}": {"items": {"$ref": f"#/$defs/a{i + 1}"}} for i in range(20_000)}, "$ref": "#/$defs/a0"}
_LATTICE: dict[str, Any] = {
    "$defs": {f"a{i}": {"anyOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(3000)}, "$ref": "#/$defs/a0",
}  # fmt: skip


@pytest.mark.parametrize(
    ("given_schema", "said"),
    [
        ("nonsense", "Invalid schema in response_format"),
        ("[]", "a schema is a JSON object"),
        ('{"const": NaN}', "Invalid schema"),
        ({"type": "strin"}, "strin"),
        ({"not": {"type": "string"}}, "keyword 'not' is not supported"),
        ({"type": "array", "uniqueItems": True}, "'uniqueItems'"),
        ({"properties": {"a": {"if": True, "then": False}}}, "'if' in /properties/a"),
        ({"$defs": {"d": {"dependentRequired": {"a": ["b"]}}}, "$ref": "#/$defs/d"}, "'dependentRequired' in /$defs/d"),
        ({"items": [{"contains": {}}]}, "'contains' in /items/0"),
        ({"type": "string", "nullable": True}, "'nullable'"),
        ({"$schema": "http://json-schema.org/draft-04/schema#", "contains": {}}, "'contains'"),
        ({"x-guidance": {"lenient": True}, "type": "object"}, "'x-guidance'"),
        ({"type": "object", "minProperties": 2}, "'minProperties'"),
        ({"type": "string", "format": "ipv9"}, "ipv9"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-ahead"),
        ({"type": "string", "pattern": "("}, "unclosed"),
        ({"oneOf": [{"type": "string"}, {"minLength": 3}]}, "oneOf"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "Unsatisfiable"),
        ({"$ref": "#/nowhere"}, "nowhere"),
        ({"$ref": "http://127.0.0.1/x.json"}, "not present"),
        ({"enum": []}, "Invalid schema"),
        (_CHAIN, "more time, memory or depth"),
        (_LATTICE, "more time, memory or depth"),
        ('{"items":' * 5000 + "{}" + "}" * 5000, "Invalid schema"),
    ],
)
def test_a_schema_that_is_not_enforced_as_a_whole_is_refused_by_name_and_the_next_is_built(
    grammars: Grammars, given_schema: Any, said: str
) -> None:
    for _ in range(2):  # the second time from what is kept
        with pytest.raises(InvalidRequest) as refused:
            built(grammars, schema(given_schema))
        assert said in refused.value.message and refused.value.param == "response_format"
        assert len(refused.value.message) < 400 and "\n" not in refused.value.message
    assert built(grammars, schema({"type": "boolean"})).fault is None


def test_a_tokenizer_or_a_model_that_cannot_is_told_so_by_its_name() -> None:
    class Other:
        backend_tokenizer = words(50)

    for made in (Grammars("odd", Other(), 50, {1}), Grammars("odd", chat_tokenizer(), VOCABULARY, ())):
        with pytest.raises(InvalidRequest, match="odd"):
            built(made, schema({"type": "object"}))
        made.close()


def test_a_tokenizer_of_sentencepieces_kind_writes_json() -> None:
    class Sentences:
        backend_tokenizer = byte_fallback()

    made, draw = Grammars("llama", Sentences(), 300, {2}), random.Random(0)
    own = made.__dict__
    for _ in range(5):
        matcher = built(made, schema({"type": "object", "properties": {"a": {"enum": ["a", "é b"]}}, "required": ["a"],
                                      "additionalProperties": False}))  # fmt: skip
        pieces = {at: own["_tokens"].decode_bytes([at]) for at in range(own["_tokens"].vocab_size)}
        text = walked(matcher, pieces, {2}, draw)
        assert text is not None and json.loads(text)["a"] in ("a", "é b")
    made.close()


def test_a_fault_on_the_way_ends_its_own_answer_alone(grammars: Grammars) -> None:
    faulty, sound = (built(grammars, schema({"type": "boolean"})) for _ in range(2))
    masks, scores = Masks(VOCABULARY, torch.device("cpu")), torch.zeros(4, VOCABULARY)  # one of a prompt half read
    masks.applied(scores, [faulty, None, sound])
    letters = chat_tokenizer().backend_tokenizer.get_vocab()
    masks.chose(torch.tensor([letters["x"], 5, letters["t"], 0]))  # no answer of booleans begins with x
    masks.advance()
    assert faulty.fault is not None and sound.fault is None
    allowed = masks.applied(scores, [faulty, None, sound]).isfinite()
    assert allowed[0].nonzero().flatten().tolist() == [END]
    assert bool(allowed[[1, 3]].all()) and allowed[2].nonzero().flatten().tolist() == [letters["r"]]
    assert masks.applied(scores, [None, None]) is scores


def test_the_end_is_allowed_where_the_grammar_has_one_and_nowhere_else(grammars: Grammars) -> None:
    letters = chat_tokenizer().backend_tokenizer.get_vocab()
    matcher = built(grammars, Grammar(GrammarKind.CHOICE, '["a", "ab"]', "guided_choice"))
    masks = Masks(VOCABULARY, torch.device("cpu"))
    for token, expected in ((letters["a"], {"a", "ab"}), (letters["b"], {"b", "<|im_end|>"}), (END, {"<|im_end|>"})):
        allowed = masks.applied(torch.zeros(1, VOCABULARY), [matcher])[0].isfinite().nonzero().flatten().tolist()
        assert set(allowed) == {letters[text] for text in expected}
        masks.chose(torch.tensor([token]))
        masks.advance()
    assert matcher.fault is None


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_process_that_tries_grammars_is_begun_anew_whoever_ends_it(how: signal.Signals) -> None:
    trials = Trials()
    assert trials.fault("regex", "a+") == ""
    assert trials._process is not None
    os.kill(trials._process.pid, how)
    trials._process.wait()
    assert trials.fault("regex", "(") != "" and trials.fault("regex", "b") == ""
    trials.close()


async def test_grammars_are_kept_and_bounded(monkeypatch: pytest.MonkeyPatch, grammars: Grammars) -> None:
    monkeypatch.setattr("deployments.engines.text.grammars.grammars.KEPT", 2)
    made = Grammars("tiny", chat_tokenizer(), VOCABULARY, {END})
    asked: list[str] = []
    fault = made._trials.fault
    monkeypatch.setattr(made._trials, "fault", lambda kind, text: asked.append(text) or fault(kind, text))
    for text in ("a", "b", "a", "c", "b"):
        await made.matcher(Grammar(GrammarKind.REGEX, text, "guided_regex"), OWN)
    assert asked == ["a", "b", "c", "b"]
    await asyncio.gather(*(made.matcher(Grammar(GrammarKind.REGEX, "d", "guided_regex"), OWN) for _ in range(8)))
    assert asked.count("d") == 1
    made.close()


async def test_answers_of_one_grammar_go_their_own_ways(grammars: Grammars) -> None:
    one, two = [await grammars.matcher(Grammar(GrammarKind.CHOICE, '["a", "b"]', "c"), OWN) for _ in range(2)]
    letters = chat_tokenizer().backend_tokenizer.get_vocab()
    one.take(letters["a"])
    two.take(letters["b"])
    assert one.fault is two.fault is None


async def test_a_grammar_whose_masks_hold_up_the_steps_of_others_ends_and_is_refused_from_then_on(
    monkeypatch: pytest.MonkeyPatch, grammars: Grammars
) -> None:
    slow, quick = [Grammar(GrammarKind.REGEX, text, "guided_regex") for text in ("[a-b]{90}", "[c-d]{90}")]
    now = itertools.count()
    letters = chat_tokenizer().backend_tokenizer.get_vocab()
    bits = torch.empty(-(-VOCABULARY // 32), dtype=torch.int32)
    one, other, beside = [await grammars.matcher(grammar, OWN) for grammar in (slow, slow, quick)]
    for matcher, letter in ((beside, "c"), (one, "a")):
        for _ in range(60):
            matcher.fill(bits)
            matcher.take(letters[letter])
        monkeypatch.setattr("time.thread_time", lambda: next(now) * 0.02)  # of a processor, each time it is asked
    assert one.fault == TOO_SLOW and beside.fault is None
    other.fill(bits)
    assert other.fault == TOO_SLOW, "answers of one grammar share what it may take"
    monkeypatch.undo()
    with pytest.raises(InvalidRequest, match="its masks take more of each step") as refused:
        await grammars.matcher(slow, OWN)
    assert refused.value.param == "guided_regex"
    assert (await grammars.matcher(quick, OWN)).fault is None


@pytest.mark.parametrize(("kinds", "depth", "followed"), [(100, 3, True), (300, 1, False), (300, 3, False)])
def test_a_grammar_of_more_ways_on_at_once_than_a_step_may_follow_ends_its_own_answer_alone(
    grammars: Grammars, kinds: int, depth: int, followed: bool
) -> None:
    def nested(value: int) -> Schema:
        return functools.reduce(lambda inner, _: {"type": "array", "items": inner}, range(depth), {"const": value})

    # Each kind of array is a way of its own that the first bracket leaves open, and costs every step of it.
    wide = built(grammars, schema({"anyOf": [nested(value) for value in range(kinds)]}))
    beside = built(grammars, schema({"type": "array", "items": {"const": 1}, "minItems": 1}))
    masks, scores = Masks(VOCABULARY, torch.device("cpu")), torch.zeros(2, VOCABULARY)
    bracket = chat_tokenizer().backend_tokenizer.get_vocab()["["]
    assert bool(masks.applied(scores, [wide, beside])[:, bracket].isfinite().all())
    masks.chose(torch.tensor([bracket, bracket]))
    masks.advance()
    allowed = masks.applied(scores, [wide, beside]).isfinite()
    assert beside.fault is None and not allowed[1, END]
    if followed:
        assert wide.fault is None and not allowed[0, END]
    else:
        assert "Too many items (limit 1500" in str(wide.fault)
        assert allowed[0].nonzero().flatten().tolist() == [END]
