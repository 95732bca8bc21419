"""Prices: which one holds, and that no micro-unit is lost or made."""

import random
from fractions import Fraction

import pytest

from tenants.records.prices import MOST, Plan, parse_plan, spoken
from tenants.records.schema import RecordError


def plan(**prices: str) -> Plan:
    return parse_plan(
        "standard@1", {name.replace("__", ":").encode(): value.encode() for name, value in prices.items()}
    )


def of(prices: dict[str, int]) -> Plan:
    return parse_plan("standard@1", {name.encode(): str(value).encode() for name, value in prices.items()})


def test_a_models_price_goes_before_any_models_and_a_levels_holds_up_to_the_next() -> None:
    own = of({"image": 9, "image:*:0.5": 8, "image:a": 7, "image:a:0.7": 3, "image:a:0.9": 5, "request": 1})
    levels = {0.5: 7, 0.69: 7, 0.7: 3, 0.89: 3, 0.9: 5, 0.99: 5, 1.0: 5}
    assert {level: own.tariff("a", level).cost(images=1) for level in levels} == levels
    assert [own.tariff("b", level).cost(images=1) for level in (0.3, 0.49, 0.5, 1.0)] == [9, 9, 8, 8]
    assert own.tariff("a", 0.7).cost(images=2, requests=1) == 7
    assert of({"image:a": 7}).tariff("b", 1.0).cost(images=5, requests=1, tokens_in=9) == 0


def test_a_request_is_rounded_once_to_the_nearest_micro_unit() -> None:
    rough = of({"tokens_in_1m": 150_000, "tokens_out_1k": 600, "request": 2}).tariff("m", 1.0)
    assert rough.cost(tokens_in=10, tokens_out=1, requests=1) == 4  # 1.5 + 0.6 + 2 = 4.1
    assert of({"tokens_in_1m": 1}).tariff("m", 1.0).cost(tokens_in=499_999) == 0
    assert of({"tokens_in_1m": 1}).tariff("m", 1.0).cost(tokens_in=500_000) == 1  # a half up
    draw = random.Random(7)
    for _ in range(500):
        prices = [draw.choice([draw.randrange(1, MOST + 1), draw.randrange(1, 1000), MOST, MOST - 1]) for _ in range(4)]
        names = ("request", "image", draw.choice(["tokens_in_1k", "tokens_in_1m"]), "tokens_out_1m")
        used = [draw.randrange(10), draw.randrange(100), draw.randrange(10**6), draw.randrange(10**6)]
        per = [1, 1, 1000 if names[2].endswith("1k") else 10**6, 10**6]
        exact = sum(Fraction(price * amount, unit) for price, amount, unit in zip(prices, used, per, strict=True))
        cost = (
            of(dict(zip(names, prices, strict=True)))
            .tariff("m", 0.7)
            .cost(requests=used[0], images=used[1], tokens_in=used[2], tokens_out=used[3])
        )
        assert abs(cost - exact) <= Fraction(1, 2) and cost < 2**53


def test_what_a_request_may_cost_at_most_is_never_less_than_it_costs() -> None:
    draw = random.Random(3)
    for _ in range(300):
        own = of({"tokens_in_1m": draw.randrange(10**7), "tokens_out_1k": draw.randrange(10**4), "request": 5})
        tariff, prompt, answer = own.tariff("m", 0.9), draw.randrange(5000), draw.randrange(5000)
        read, made = draw.randrange(prompt + 1), draw.randrange(answer + 1)
        cost = tariff.cost(requests=1, tokens_in=read, tokens_out=made)
        for known in (prompt, None):
            assert tariff.most(requests=1, images=0, tokens=prompt + answer, prompt=known) >= cost


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("picture", "1", "is no price"),
        ("image:", "1", "names no model"),
        ("image:a/b/c", "1", "names no model"),
        ("image:a:", "1", "names no level"),
        ("image:a:0", "1", "names no level"),
        ("image:a:0.705", "1", "names no level"),
        ("image:a:gold", "1", "names no level"),
        ("image", "0.5", "a whole number of micro-units"),
        ("image", "-1", "a whole number of micro-units"),
        ("image", "1e3", "a whole number of micro-units"),
        ("image", str(MOST + 1), "a whole number of micro-units"),
        ("image", "²", "a whole number of micro-units"),
        ("currency", "euro", "three capital letters"),
    ],
)
def test_a_price_that_is_none_is_refused_by_its_field(field: str, value: str, problem: str) -> None:
    with pytest.raises(RecordError, match=problem) as caught:
        parse_plan("standard@1", {field.encode(): value.encode()})
    assert (caught.value.key, caught.value.field) == ("plan:standard@1", field)


@pytest.mark.parametrize(
    "twice", [("tokens_in_1k", "tokens_in_1m"), ("image:a:0.9", "image:a:0.90"), ("image", "image:*")]
)
def test_one_price_may_stand_once(twice: tuple[str, str]) -> None:
    with pytest.raises(RecordError, match="says again"):
        of(dict.fromkeys(twice, 5))


def test_money_is_said_with_all_its_digits() -> None:
    amounts = {0: "0.00", 1: "0.000001", 1500: "0.0015", 12_500_000: "12.50", 10**12: "1000000.00", -250_000: "-0.25"}
    assert {micro: spoken(micro) for micro in amounts} == amounts
    assert spoken(12_500_000, "EUR") == "12.50 EUR"
