import json
from pathlib import Path

import pytest
import yaml

from tenants import manifest
from tenants.edits import AdminError
from tenants.records import RecordError
from tenants.store import TenantStore
from tests.tenants.conftest import Run, prepare

FILE = """\
tiers:
  gold: {utility: 1.0, weight: 4, lower_utility: no}
  bronze: {utility: 0.8, rpm: 600, models: [resnet18-cifar10, "segformer-b0-camvid"]}
tenants:
  acme:
    tier: bronze
    utility:resnet18-cifar10: 0.6
    focus:segformer-b0-camvid:traffic light: 0.5
    focus_locked: true
"""


async def test_what_is_applied_is_there_and_applying_it_again_changes_nothing(tenants: Run, tmp_path: Path) -> None:
    await prepare(tenants)
    file = tmp_path / "tenants.yaml"
    file.write_text(FILE)
    dry = await tenants("apply", str(file), "--dry-run")
    assert "+ tier bronze" in dry and "~ tenant acme" in dry and "tier: silver → bronze" in dry
    assert "name: Acme → acme" in dry and "- tier" not in dry
    assert json.loads(await tenants("show", "acme", "--json"))["tier"] == "silver"
    await tenants("apply", str(file), "--yes")
    shown = json.loads(await tenants("show", "acme", "--json"))
    assert json.loads(await tenants("tier", "show", "gold", "--json"))["lower_utility"] == "false"
    assert shown["tier"] == "bronze" and shown["focus:segformer-b0-camvid:traffic light"] == "0.5"
    assert (
        json.loads(await tenants("tier", "show", "bronze", "--json"))["models"]
        == "resnet18-cifar10,segformer-b0-camvid"
    )
    entries = len(json.loads(await tenants("audit", "--json")))
    assert "Nothing to change" in await tenants("apply", str(file), "--yes")
    assert json.loads(await tenants("apply", str(file), "--yes", "--json")) == []
    assert len(json.loads(await tenants("audit", "--json"))) == entries
    assert "silver" in await tenants("tier", "list")


async def test_pruning_deletes_what_the_file_lacks_with_its_keys_and_nothing_else(tenants: Run, tmp_path: Path) -> None:
    await prepare(tenants)
    await tenants("create", "leaver", "--tier", "silver")
    await tenants("key", "create", "leaver")
    await tenants("key", "create", "acme")
    file = tmp_path / "tenants.yaml"
    file.write_text(FILE)
    await tenants("apply", str(file), "--yes", "--prune")
    assert {t["id"] for t in json.loads(await tenants("list", "--json"))} == {"acme"}
    assert {t["tier"] for t in json.loads(await tenants("tier", "list", "--json"))} == {"gold", "bronze"}
    assert len(json.loads(await tenants("key", "list", "acme", "--json"))) == 1
    assert "valid" in await tenants("check")
    assert "Nothing to change" in await tenants("apply", str(file), "--prune", "--yes")


async def test_what_is_exported_applies_without_a_change_even_to_an_empty_store(
    tenants: Run, store: TenantStore, tmp_path: Path
) -> None:
    await prepare(tenants)
    await tenants("set", "acme", "rpm=60", "name=Ümlaut: 1.0", "focus:m:a=b: c=0.25", "utility:m=0.5")
    file = tmp_path / "tenants.yaml"
    file.write_text(await tenants("export"))
    before = await tenants("export", "--json")
    assert "Nothing to change" in await tenants("apply", str(file), "--prune")
    await store.execute("FLUSHALL")
    await tenants("apply", str(file), "--yes")
    assert await tenants("export", "--json") == before
    assert yaml.safe_load(file.read_text())["tenants"]["acme"]["rpm"] == 60


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tiers: [", "not YAML"),
        ("tenant: {}", "nothing else"),
        ("tiers: [gold]", "`tiers:` must map"),
        ("tenants: {a: gold}", "`tenants:` must map"),
        ("tenants: {a: {tier: {x: 1}}}", "tenants.a.tier"),
        ("tenants: {'a b': {tier: gold}}", "'a b' is no name"),
        ("tenants: {a: {tier: platinum}}", "no tier 'platinum'"),
        ("tenants: {a: {}}", "tenant:a tier"),
        ("tiers: {gold: {utility: 2}}", "tier:gold utility"),
        ("tiers: {gold: {rpm: 5}}", "tier:gold utility: is missing"),
    ],
)
def test_a_mistake_in_the_file_is_named_before_anything_is_written(text: str, said: str) -> None:
    with pytest.raises((AdminError, RecordError), match=said):
        manifest.plan(manifest.parse(text), {"tiers": {}, "tenants": {}})


async def test_a_file_that_cannot_be_read_is_one_line(invoke: Run, tmp_path: Path) -> None:
    result = await invoke("apply", str(tmp_path / "none.yaml"))
    assert result.exit_code == 1 and len(result.stderr.splitlines()) == 1 and "none.yaml" in result.stderr


async def test_names_that_hold_commas_survive_file_store_and_file(tenants: Run, tmp_path: Path) -> None:
    await prepare(tenants)
    names = ["goldfish", "tench, Tinca tinca"]
    file = tmp_path / "tenants.yaml"
    focus = {"focus:m:tench, Tinca tinca": 0.5}
    file.write_text(yaml.safe_dump({"tiers": {"fish": {"utility": 1.0, "focus_allow": names}},
                                    "tenants": {"acme": {"tier": "fish", **focus}}}))  # fmt: skip
    await tenants("apply", str(file), "--yes")
    exported = yaml.safe_load(await tenants("export"))
    assert exported["tiers"]["fish"]["focus_allow"] == names
    assert exported["tenants"]["acme"]["focus:m:tench, Tinca tinca"] == 0.5
    assert "Nothing to change" in await tenants("apply", str(file), "--yes")
    await tenants("focus", "acme", "m", "tench, Tinca tinca=0.25")
    assert '["goldfish", "tench, Tinca tinca"]' in await tenants("tier", "show", "fish")
