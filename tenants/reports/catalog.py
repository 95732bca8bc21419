"""Which models have been served, and their classes: what a misspelt name is held against before it is written."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping

from tenants.records import keyspace, schedule
from tenants.records.fields import names_of
from tenants.records.prices import ANY, UNITS
from tenants.records.schema import LIMIT_FIELDS, MODEL_SCOPE
from tenants.store.store import TenantStore

_ALIAS = "alias_of"


class Catalog(dict[str, "frozenset[str] | None"]):
    """Model to its classes; None where it answers in words, of which any may be meant.

    Attributes:
        aliases: other names that clients may call models by, to the model of each. No record goes by one.
    """

    def __init__(
        self, models: Mapping[str, frozenset[str] | None] | None = None, aliases: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(models or {})
        self.aliases = dict(aliases or {})


async def enter(store: TenantStore, model: str, classes: Iterable[str] | None, aliases: Iterable[str] = ()) -> None:
    """Say, as a replica, what a model's classes are, None for one that answers in words; and its other names."""
    listed = None if classes is None else sorted(classes)
    others = [word for name in aliases for word in (name, json.dumps({_ALIAS: model}))]
    await store.execute("HSET", keyspace.CATALOG, model, json.dumps(listed), *others)


async def read(store: TenantStore) -> Catalog:
    """Every model that has ever been served; none in a store that no replica has seen."""
    raw = (await store.hashes(keyspace.CATALOG))[0]
    entries = {name.decode("utf-8", "replace"): _listed(value) for name, value in raw.items()}
    aliases = {name: str(listed[_ALIAS]) for name, listed in entries.items() if isinstance(listed, dict)}
    return Catalog({name: _classes(listed) for name, listed in entries.items() if name not in aliases}, aliases)


def misspelt(catalog: Catalog, fields: Mapping[str, str | None]) -> Iterator[tuple[str, str]]:
    """Fields of a record that name a model or a class that there is not, each with what is wrong."""
    if not catalog:
        return
    for field, value in fields.items():
        target = schedule.sets(field)
        kind, _, subject = target.partition(":")
        model, _, term = subject.partition(":")
        models: list[str] = []
        if value is None:
            continue
        if subject and model != ANY and kind in ("utility", "focus", *LIMIT_FIELDS, *UNITS):
            models = [model]
        elif target == "models":
            models = names_of(value)
        elif target == "scopes":
            models = [s.removeprefix(MODEL_SCOPE) for s in names_of(value) if s.startswith(MODEL_SCOPE)]
        for name in models:
            if name in catalog.aliases and name not in catalog:
                of = catalog.aliases[name]
                yield field, f"'{name}' is another name of the model {of}, and records go by its id: write {of}"
            elif name not in catalog:
                yield field, f"no model '{name}' has been served{_meant(name, catalog)}"
        if kind == "focus" and (classes := catalog.get(model)) is not None and term not in classes:
            yield field, f"{model} has no class '{term}'{_meant(term, classes)}"
        if target == "focus_allow":
            yield from _not_allowed(catalog, field, value)


def _not_allowed(catalog: Catalog, field: str, value: str) -> Iterator[tuple[str, str]]:
    classes = [known for known in catalog.values() if known is not None]
    if len(classes) == len(catalog):  # else it may be a word
        every = frozenset().union(*classes)
        for name in names_of(value):
            if name not in every:
                yield field, f"no served model has a class '{name}'{_meant(name, every)}"


def _meant(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean '{near[0]}'?" if near else ""


def _listed(value: bytes) -> list[str] | dict[str, str] | None:
    """An entry as it was written; None of one that was not."""
    try:
        listed = json.loads(value)
    except ValueError:
        return None
    if isinstance(listed, dict) and _ALIAS in listed:
        return listed
    return listed if isinstance(listed, list) else None


def _classes(listed: object) -> frozenset[str] | None:
    if not isinstance(listed, list):
        return None
    names = {str(name) for name in listed}
    # A class goes by the first of its names too.
    return frozenset(names | {name.partition(",")[0].strip() for name in names})
