"""Prices: what an answer costs, in whole millionths of a currency unit. Here alone money is rounded.

A plan is a price list. Each of its versions is a record of its own, `plan:<name>@<version>`, and is not edited: a new
price is a new version, and who signed an older one keeps it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from tenants.records import keyspace
from tenants.records.hashes import RawHash, decode
from tenants.records.schema import RecordError

MILLION = 1_000_000
MOST = 10**12
"""The dearest price: a million currency units for one unit. Sums stay far below 2**53."""
UNITS: Mapping[str, tuple[str, int]] = {
    "request": ("requests", 1),
    "image": ("images", 1),
    "tokens_in_1k": ("tokens_in", 1_000),
    "tokens_in_1m": ("tokens_in", MILLION),
    "tokens_out_1k": ("tokens_out", 1_000),
    "tokens_out_1m": ("tokens_out", MILLION),
}
"""A price's unit: the counter, and for how many of it the price is."""
ANY = "*"
CURRENCY = "currency"
_CURRENCY = re.compile(r"[A-Z]{3}")
_LEVEL = re.compile(r"1(\.0{1,2})?|0\.\d{1,2}")


@dataclass(frozen=True, slots=True)
class Tariff:
    """Prices of one model at one level: millionths of a micro-unit for one of each counter."""

    requests: int = 0
    images: int = 0
    tokens_in: int = 0
    tokens_out: int = 0

    def cost(self, *, requests: int = 0, images: int = 0, tokens_in: int = 0, tokens_out: int = 0) -> int:
        """What a request costs in micro-units: its exact sum, rounded once, to the nearest, a half up."""
        exact = requests * self.requests + images * self.images
        exact += tokens_in * self.tokens_in + tokens_out * self.tokens_out
        return (2 * exact + MILLION) // (2 * MILLION)

    def most(self, *, requests: int, images: int, tokens: int, prompt: int | None) -> int:
        """What a request can cost at most that uses no more than that.

        Args:
            tokens: prompt and answer together.
            prompt: how many of them are the prompt's; None: not known.
        """
        if prompt is None:
            dearest = max(self.tokens_in, self.tokens_out)
            return Tariff(self.requests, self.images, dearest).cost(requests=requests, images=images, tokens_in=tokens)
        return self.cost(
            requests=requests, images=images, tokens_in=min(prompt, tokens), tokens_out=max(0, tokens - prompt)
        )


FREE = Tariff()


@dataclass(frozen=True)
class Plan:
    """One version of a price list.

    Attributes:
        reference: `<name>@<version>`.
        currency: three letters of ISO 4217, "" where it is not said.
        prices: micro-units, and for how many, by counter, model (`*`: any) and level in hundredths (None: any).
    """

    reference: str
    currency: str = ""
    prices: Mapping[tuple[str, str, int | None], tuple[int, int]] = field(default_factory=dict)
    _tariffs: dict[tuple[str, int], Tariff] = field(default_factory=dict, compare=False, repr=False)

    def tariff(self, model: str, level: float) -> Tariff:
        """The prices of a model at a level; what has no price costs nothing.

        A model's own go before those of any model. A price for a level holds from that level up to the next that has
        one; below the lowest of them, and where there is none, the price without a level.
        """
        hundredths = round(level * 100)
        known = self._tariffs.get((model, hundredths))
        if known is None:
            known = Tariff(*(self._price(counter, model, hundredths) for counter in Tariff.__dataclass_fields__))
            self._tariffs[model, hundredths] = known
        return known

    def _price(self, counter: str, model: str, hundredths: int) -> int:
        for name in (model, ANY):
            stated = [at for of, own, at in self.prices if (of, own) == (counter, name) and at is not None]
            at = max((level for level in stated if level <= hundredths), default=None)
            if (counter, name, at) in self.prices:
                micro, per = self.prices[counter, name, at]
                return micro * (MILLION // per)
        return 0


def parse_plan(reference: str, raw: RawHash) -> Plan:
    """Parse `plan:<name>@<version>`. Raises RecordError, naming key and field."""
    key = keyspace.plan(reference)
    if not keyspace.is_plan(reference):
        raise RecordError(key, "", "is no version of a plan, such as plan:standard@1")
    prices: dict[tuple[str, str, int | None], tuple[int, int]] = {}
    currency = ""
    for name, value in sorted(decode(key, raw).items()):
        if name == CURRENCY:
            if not _CURRENCY.fullmatch(value):
                raise RecordError(key, name, f"expected three capital letters such as EUR, not {value[:40]!r}")
            currency = value
            continue
        what = _priced(key, name)
        if what in prices:
            raise RecordError(key, name, "says again what another field says: give each price for one quantity once")
        prices[what] = _micro(key, name, value), UNITS[name.partition(":")[0]][1]
    return Plan(reference, currency, prices)


def _priced(key: str, name: str) -> tuple[str, str, int | None]:
    unit, _, rest = name.partition(":")
    model, _, level = rest.partition(":")
    if unit not in UNITS:
        known = ", ".join(UNITS)
        raise RecordError(key, name, f"is no price: expected <unit>[:<model or *>[:<level>]], units {known}")
    if ":" in name and not (model == ANY or keyspace.is_model(model)):
        raise RecordError(key, name, "names no model after the unit; * is any model")
    if not level:
        if name.count(":") > 1:
            raise RecordError(key, name, "names no level after the model; leave the last ':' out")
        return UNITS[unit][0], model or ANY, None
    hundredths = round(float(level) * 100) if _LEVEL.fullmatch(level) else 0
    if not hundredths:
        raise RecordError(key, name, "names no level after the model: 0.01 to 1 in steps of 0.01")
    return UNITS[unit][0], model, hundredths


def _micro(key: str, name: str, value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,13}", value) or int(value) > MOST:
        problem = f"expected a whole number of micro-units up to {MOST}, such as 1500 for 0.0015, not {value[:40]!r}"
        raise RecordError(key, name, problem)
    return int(value)


def spoken(micro: int, currency: str = "") -> str:
    """Micro-units for people, with every digit that is not 0: `12.50 EUR`, `0.000015`."""
    whole, rest = divmod(abs(micro), MILLION)
    digits = f"{rest:06d}".rstrip("0").ljust(2, "0")
    return f"{'-' if micro < 0 else ''}{whole}.{digits}{f' {currency}' if currency else ''}"
