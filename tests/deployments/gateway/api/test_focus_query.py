"""Focus in the query of an image call: names with commas, repeated parameters, nothing dropped without a word."""

import pytest

from deployments.gateway.api.image_requests import parse_focus
from policies.errors import InvalidRequest


@pytest.mark.parametrize(
    ("texts", "focus"),
    [
        (["pedestrian=0.9,car=-0.5"], {"pedestrian": "0.9", "car": "-0.5"}),
        (["tench, Tinca tinca=0.5,goldfish=0.3"], {"tench, Tinca tinca": "0.5", "goldfish": "0.3"}),
        (["tench, Tinca tinca=0.5", "great white shark, white shark, man-eater=-0.2"],
         {"tench, Tinca tinca": "0.5", "great white shark, white shark, man-eater": "-0.2"}),
        (["a=b=0.5,c=1"], {"a=b": "0.5", "c": "1"}),
        (["ocean=0.5,"], {"ocean": "0.5"}),
        ([""], {}),
    ],
)  # fmt: skip
def test_pairs_are_read_whatever_the_names_hold(texts: list[str], focus: dict[str, str]) -> None:
    assert parse_focus(texts) == focus


@pytest.mark.parametrize("texts", [["a=0.5", "a=0.5"], ["a=0.5,b=0.1,a=0.2"]])
def test_a_name_that_is_given_twice_is_refused(texts: list[str]) -> None:
    with pytest.raises(InvalidRequest, match="'a' more than once") as refused:
        parse_focus(texts)
    assert refused.value.param == "focus.a"


@pytest.mark.parametrize("text", ["car", "car=0.5,bus", "=0.5"])
def test_what_is_no_pair_is_named(text: str) -> None:
    with pytest.raises(InvalidRequest, match="class=strength"):
        parse_focus([text])
