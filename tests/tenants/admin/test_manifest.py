import json
from pathlib import Path

import pytest
import yaml

from tenants.admin import manifest
from tenants.admin.admin import TenantAdmin
from tenants.changes.edits import AdminError, Conflict
from tenants.records.schema import RecordError
from tenants.store.store import TenantStore
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
        nothing = {section: dict[str, dict[str, str]]() for section in manifest.KINDS}
        manifest.plan(manifest.parse(text), manifest.Stored(nothing, {}))


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


async def test_a_suspended_tenant_stays_so_where_the_file_says_nothing_of_it(tenants: Run, tmp_path: Path) -> None:
    await prepare(tenants)
    await tenants("suspend", "acme")
    file = tmp_path / "tenants.yaml"
    file.write_text("tenants: {acme: {tier: gold, name: Acme}}")
    await tenants("apply", str(file), "--yes")
    shown = json.loads(await tenants("show", "acme", "--json"))
    assert (shown["status"], shown["tier"]) == ("suspended", "gold")
    file.write_text("tenants: {acme: {tier: gold, name: Acme, status: active}}")
    await tenants("apply", str(file), "--yes")
    assert json.loads(await tenants("show", "acme", "--json"))["status"] == "active"


@pytest.mark.parametrize("prune", [False, True])
async def test_what_somebody_changed_since_the_plan_is_not_overwritten(admin: TenantAdmin, prune: bool) -> None:
    await admin.create_tier("gold", {"utility": "1.0"})
    await admin.create_tenant("acme", tier="gold")
    text = "tiers: {new: {utility: 0.1}}\ntenants: {}" if prune else "tenants: {acme: {tier: gold, rpm: 5}}"
    steps = manifest.plan(manifest.parse(text), await manifest.current(admin), prune=prune)
    await admin.set_tenant("acme", {"tpm": "7"})
    with pytest.raises(Conflict, match="'acme' was changed since it was read.*apply the file again"):
        await manifest.apply(admin, steps)
    assert (await admin.tenant("acme")).overrides.tpm == 7


async def test_yaml_words_are_names_and_texts_as_they_stand(tenants: Run, tmp_path: Path) -> None:
    file = tmp_path / "tenants.yaml"
    file.write_text(
        "tiers: {no: {utility: 1.0, lower_utility: no}, 1e3: {utility: .5}, 010: {utility: 1}}\n"
        "tenants: {no: {tier: no, name: no}, on: {tier: 1e3}, 2026-01-02: {tier: 010, name: 1.10}}\n"
    )
    await tenants("apply", str(file), "--yes")
    listed = {t["id"]: (t["tier"], t["name"]) for t in json.loads(await tenants("list", "--json"))}
    assert listed == {"no": ("no", "no"), "on": ("1e3", "on"), "2026-01-02": ("010", "1.10")}
    assert json.loads(await tenants("tier", "show", "no", "--json"))["lower_utility"] == "false"
    assert "Nothing to change" in await tenants("apply", str(file), "--yes")
    file.write_text(await tenants("export"))
    assert "Nothing to change" in await tenants("apply", str(file), "--yes", "--prune")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tiers: {a: {utility: 1, utility: 0.5}}", "'utility' stands there twice"),
        ("tiers: {a: {utility: 1}, a: {utility: 1}}", "'a' stands there twice"),
        ("tiers: {~: {utility: 1}}", "expected a name before"),
        ("tiers: {a: {utility: }}", "tiers.a.utility: expected a text"),
        ("tiers: " + "[" * 2000, "not YAML"),
    ],
)
def test_what_yaml_would_swallow_is_refused(text: str, said: str) -> None:
    with pytest.raises(AdminError, match=said):
        manifest.parse(text)
