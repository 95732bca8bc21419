"""Random JSON Schemas, what judges an answer to one, and a walk through a grammar that asks no model."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import jsonschema
import torch
from hypothesis import strategies as st

from deployments.engines.text.grammars.matcher import Matcher

Schema = Any
_NAMES = st.sampled_from(["a", "name", "é", "x y", 'q"', "$ref", "type", "\n"])
_FORMATS = ["date", "time", "date-time", "email", "ipv4", "ipv6", "uuid", "hostname", "duration", "uri"]
_PATTERNS = ["^[a-c]{2,5}$", "x+", "^$", "^(foo|bar)-[0-9]{2}$", "é", "^\\S+$", "^.{0,4}$", "a/b", '"']
_VALUES: list[Any] = [None, True, 0, 1.5, -3, "", "a", 'é\n"', [1], {"b": []}]
_FEW = st.integers(0, 4)
_NUMBER = st.integers(-50, 50) | st.floats(-50, 50, allow_subnormal=False)


def _some(*required: tuple[str, Any], **optional: Any) -> st.SearchStrategy[Schema]:
    """Schemas with these keywords, and some of those."""
    return st.fixed_dictionaries({name: _drawn(value) for name, value in required}, optional=optional)


def _drawn(value: Any) -> st.SearchStrategy[Any]:
    return value if isinstance(value, st.SearchStrategy) else st.just(value)


_LEAVES: st.SearchStrategy[Schema] = st.one_of(
    _some(("const", st.sampled_from(_VALUES))),
    _some(("enum", st.lists(st.sampled_from(_VALUES), min_size=1, max_size=3))),
    _some(("type", st.sampled_from(["null", "boolean", ["string", "null"], ["integer", "boolean"]]))),
    _some(("type", "string"), minLength=_FEW, maxLength=_FEW),
    _some(("type", "string"), pattern=st.sampled_from(_PATTERNS), maxLength=st.just(9)),
    _some(("type", "string"), ("format", st.sampled_from(_FORMATS))),
    _some(("type", "integer"), minimum=_NUMBER, exclusiveMaximum=_NUMBER, multipleOf=st.sampled_from([1, 3, 7])),
    _some(("type", "number"), exclusiveMinimum=_NUMBER, maximum=_NUMBER, multipleOf=st.sampled_from([0.5, 0.25])),
    st.sampled_from([True, {}]),
)


def _around(inner: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    few = st.lists(inner, min_size=1, max_size=3)
    fields = st.dictionaries(_NAMES, inner, max_size=3)
    more: dict[str, Any] = {
        "required": st.lists(_NAMES, max_size=3, unique=True),
        "additionalProperties": st.just(False) | inner,
        "minProperties": st.integers(0, 1),
        "maxProperties": _FEW,
    }
    return st.one_of(
        _some(("type", "array"), items=inner, minItems=_FEW, maxItems=_FEW),
        _some(("type", "array"), ("prefixItems", few), items=st.just(False) | inner, minItems=_FEW, maxItems=_FEW),
        _some(("type", "object"), ("properties", fields), **more),
        _some(("type", "object"), ("patternProperties", st.fixed_dictionaries({"^k[0-9]$": inner})), **more),
        _some(("anyOf", few)),
        _some(("oneOf", few)),
        _some(("allOf", few)),
    )


def random_schemas() -> st.SearchStrategy[Schema]:
    """Schemas of everything that is enforced; some cannot be fulfilled, or not be kept to, and are to be refused."""
    schemas = st.recursive(_LEAVES, _around, max_leaves=6).filter(lambda schema: isinstance(schema, dict))
    return schemas | _some(("$ref", "#/$defs/d"), ("$defs", st.fixed_dictionaries({"d": schemas})))


def valid(schema: Schema, value: Any) -> bool:
    """Whether a value is of a schema, as `jsonschema` says."""
    judge = jsonschema.Draft202012Validator
    return bool(judge(schema, format_checker=judge.FORMAT_CHECKER).is_valid(value))


def walked(
    matcher: Matcher, tokens: Mapping[int, bytes], ends: set[int], draw: random.Random, most: int = 300
) -> bytes | None:
    """A text that the grammar allows, token by token at random; None where it came to no end in so many."""
    text = b""
    for _ in range(most):
        bits = torch.empty(matcher.words, dtype=torch.int32)
        matcher.fill(bits)
        allowed = (bits[:, None] >> torch.arange(32) & 1).flatten().nonzero().flatten().tolist()
        if matcher.fault is not None:
            return None
        if ends & set(allowed) and (draw.random() < 0.5 or ends >= set(allowed)):
            return text
        # Otherwise most strings and lists would find no end.
        closing = [at for at in allowed if tokens[at] in (b'"', b"}", b"]")]
        token = draw.choice(closing if closing and draw.random() < 0.4 else sorted(set(allowed) - ends))
        text += tokens[token]
        matcher.take(token)
    return None
