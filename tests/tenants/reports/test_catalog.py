"""Misspelt models and classes are refused where they are written, and named by the check."""

from __future__ import annotations

import pytest

from tenants.admin.admin import TenantAdmin
from tenants.reports import catalog
from tenants.store.store import TenantStore
from tests.tenants.conftest import Run, prepare


@pytest.fixture
async def served(tenants: Run, store: TenantStore) -> None:
    await prepare(tenants)
    await catalog.enter(store, "segformer", ["pedestrian", "tench, Tinca tinca", "a=b"])
    await catalog.enter(store, "cifar", ["cat", "dog"], ["resnet", "org/cifar"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["set", "acme", "utility:segfromer=0.5"], "no model 'segfromer' has been served; did you mean 'segformer'?"),
        (["set", "acme", "models=cifar,segfromer"], "no model 'segfromer'"),
        (["set", "acme", "focus:segformer:pedestrain=0.5"], "no class 'pedestrain'; did you mean 'pedestrian'?"),
        (["set", "acme", "focus_allow=cat,dgo"], "no served model has a class 'dgo'; did you mean 'dog'?"),
        (["focus", "acme", "segformer", "pedestrain=0.5"], "did you mean 'pedestrian'?"),
        (["focus", "acme", "segfromer", "pedestrian=0.5"], "did you mean 'segformer'?"),
        (["tier", "set", "silver", "models=cifra"], "did you mean 'cifar'?"),
        (
            ["set", "acme", "utility:resnet=0.5"],
            "'resnet' is another name of the model cifar",
        ),
        (["tier", "set", "silver", "models=org/cifar"], "write cifar"),
        (["focus", "acme", "org/cifar", "cat=0.5"], "write cifar"),
        (["key", "create", "acme", "--scopes", "model:cifra"], "did you mean 'cifar'?"),
    ],
)
async def test_a_misspelt_name_is_refused_with_the_one_that_was_meant(
    served: None, invoke: Run, tenants: Run, words: list[str], said: str
) -> None:
    refused = await invoke(*words)
    assert refused.exit_code == 1 and said in refused.stderr and len(refused.stderr.splitlines()) == 1
    assert "--unchecked" in refused.stderr
    assert (await invoke("--unchecked", *words)).exit_code == 0
    found = await invoke("check")
    assert found.exit_code == 1 and said in found.stdout


async def test_what_is_served_passes(served: None, tenants: Run) -> None:
    await tenants("focus", "acme", "segformer", "pedestrian=0.5", "tench=0.2", "tench, Tinca tinca=0", "a=b=0.1")
    await tenants("set", "acme", "focus_allow=cat,pedestrian", "models=cifar,segformer", "utility:cifar=0.5")
    await tenants("set", "acme", "focus_allow=*", "models=*", "--remove", "utility:gone")
    assert "valid" in await tenants("check")


async def test_a_text_model_takes_any_word_and_a_store_that_served_nothing_any_name(
    tenants: Run, store: TenantStore, admin: TenantAdmin
) -> None:
    await prepare(tenants)
    await tenants("focus", "acme", "later", "whatever=0.5")
    assert "valid" in await tenants("check")
    await catalog.enter(store, "text", None)
    await catalog.enter(store, "later", ["whatever"])
    await tenants("focus", "acme", "text", "ocean=0.5")
    await tenants("set", "acme", "focus_allow=ocean")
    assert "valid" in await tenants("check")
