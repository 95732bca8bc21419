"""One noise for all copies of one final layer: under other ids, dtypes, labels, and behind another backbone."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deployments.config import ModelSpec, Task
from deployments.engines.errors import LoadError
from deployments.engines.images.classifier import ImageClassifier
from deployments.engines.images.segmenter import ImageSegmenter
from deployments.upkeep.fields import NoiseField, calibration_key
from deployments.upkeep.jobs import Solving
from deployments.upkeep.keeper import Keeper
from policies.calibration.calibration import Calibration
from policies.field.ladder import NoiseLadder
from policies.head.attachment import layer_shape
from tenants.admin import installation
from tenants.records import keyspace
from tenants.records.schema import RecordError
from tenants.reports.jobs import Job
from tenants.reports.replicas import ServedModels
from tenants.store.store import TenantStore
from tests.deployments import upkeep_support as support
from tests.deployments.upkeep_support import MODEL, SAMPLE, SPEC, keep, until
from tests.deployments.vision_support import SECRET, scenes, shipped

POSITION = 16_000
LABELS = tuple(f"class {k}" for k in range(10))


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped classifier with another backbone before the same final layer."""
    folder = tmp_path_factory.mktemp("release") / "model"
    shutil.copytree(SPEC.source, folder)
    state = load_file(folder / "model.safetensors")
    state["conv1.weight"] = 1.01 * state["conv1.weight"]
    save_file(state, folder / "model.safetensors")
    return folder


def spec(**changes: Any) -> ModelSpec:
    return SPEC.model_copy(update=changes)


def field_of(engine: ImageClassifier, own: ModelSpec, store: TenantStore) -> NoiseField:
    return NoiseField(engine, own, SECRET, store)


def solved(engine: ImageClassifier, stored: Calibration | None, rows: int = 600) -> Calibration:
    """Levels on features that the engine itself makes, of a sample of its own size."""
    pictures = torch.stack([engine.preprocess(picture) for picture in scenes(rows, 32, 32, seed=rows)])
    features = torch.cat([engine.final_input(part) for part in pictures.split(100)])
    metric = None if stored else torch.randn(512, 16, generator=torch.Generator().manual_seed(rows))
    return engine.fit(engine._sample(features, 1, metric), SECRET, stored=stored)


def noise(engine: ImageClassifier, calibration: Calibration) -> tuple[NoiseLadder, torch.Tensor]:
    """The ladder that an engine's levels lie on, and its phi [20, D] of twenty pictures as the engine sees them."""
    features, classes = layer_shape(engine.final)
    ladder = calibration.ladder(SECRET, features=features, classes=classes)
    seen = engine.final_input(torch.stack([engine.preprocess(picture) for picture in scenes(20, 32, 32)]))
    return ladder, ladder.phi(seen)


async def test_copies_of_one_final_layer_draw_one_noise(store: TenantStore, release: Path) -> None:
    own = [
        spec(),
        spec(id="other", dtype="bfloat16"),
        spec(id="half", dtype="float16", labels=LABELS),
        spec(id="newer", source=str(release)),
    ]
    engines = [ImageClassifier.load(each) for each in own]
    assert len({engine.field for engine in engines}) == 1 and len({engine.fingerprint for engine in engines}) == 4
    calibrations = []
    for rows, (engine, each) in zip((600, 300, 400, 500), zip(engines, own, strict=True), strict=True):
        field = field_of(engine, each, store)
        await field.join()
        calibrations.append(solved(engine, await field.fixed(), rows))
        assert calibrations[-1].same_field(await field.fix(calibrations[-1]))
    assert [c.fingerprint for c in calibrations] == [engine.fingerprint for engine in engines]
    assert len({c.curve for c in calibrations}) > 1
    first, seen = noise(engines[0], calibrations[0])
    for engine, calibration, near in zip(engines[1:], calibrations[1:], (0.05, 0.05, 0.5), strict=True):
        ladder, phi = noise(engine, calibration)
        assert torch.equal(ladder.matrix(POSITION), first.matrix(POSITION))
        assert torch.equal(ladder.w, first.w) and torch.equal(ladder.b, first.b)
        assert torch.equal(ladder.focus_matrix(), first.focus_matrix())
        assert float((phi - seen).norm(dim=1).max()) < near, (
            "of unit vectors, those of other pictures are about 1 apart"
        )


async def test_models_that_calibrate_at_once_end_with_one_noise(store: TenantStore, keepers: list[Keeper]) -> None:
    own = [spec(), spec(id="other", dtype="bfloat16")]
    engines = [ImageClassifier.load(each) for each in own]
    for engine, each in zip(engines, own, strict=True):
        keepers.append(await keep(engine, store.url, each.id, id=each.id, dtype=each.dtype))
    await until(lambda: all(engine.calibrated for engine in engines), 180.0)
    assert engines[0].fingerprint != engines[1].fingerprint
    assert engines[0].head.calibration.same_field(engines[1].head.calibration)
    assert torch.equal(engines[0].head.matrix_at(POSITION), engines[1].head.matrix_at(POSITION))
    assert len({calibration_key(engine, SECRET) for engine in engines}) == 2


async def test_who_comes_second_solves_again_on_what_the_first_has_fixed(store: TenantStore) -> None:
    engine = ImageClassifier.load(spec())
    field, served = field_of(engine, spec(), store), ServedModels(store)
    asked: list[Calibration | None] = []

    class Calibrator:
        spec = SPEC

        async def solve(self, *_: Any, stored: Calibration | None, **__: Any) -> Calibration:
            asked.append(stored)
            if stored is None:  # another model of the field is faster
                await field.fix(solved(engine, None, 300))
            return solved(engine, stored, 600)

    job = await served.claim(Job(MODEL, "r", str(SAMPLE), "test", first="key"))
    calibrator: Any = Calibrator()
    taken: list[int] = []

    async def take(version: int) -> None:
        taken.append(version)

    await Solving(engine, calibrator, "key", field, None, job).run(served, take)
    fixed, stored = await field.fixed(), await store.load_calibration("key")
    assert fixed is not None and stored is not None and taken == [1]
    assert asked[0] is None and asked[1] is not None and asked[1].same_field(fixed) and len(asked) == 2
    placed = Calibration.from_json(json.dumps(stored))
    assert placed.same_field(fixed) and placed.answers == 600 and len(placed.curve) > 2


async def test_models_of_one_named_field_draw_one_noise_and_others_another(store: TenantStore) -> None:
    names = {"a": "shared", "b": "shared", "c": "apart", "d": None}
    matrices = {}
    for name, shared in names.items():
        own = spec(id=name, field=shared, dtype="float32" if name == "a" else "bfloat16")
        engine = ImageClassifier.load(own)
        field = field_of(engine, own, store)
        calibration = solved(engine, await field.fixed(), 200)
        await field.fix(calibration)
        matrices[name] = noise(engine, calibration)[0].matrix(POSITION)
    assert torch.equal(matrices["a"], matrices["b"])
    assert not torch.equal(matrices["a"], matrices["c"]) and not torch.equal(matrices["a"], matrices["d"])


async def test_a_final_layer_of_another_shape_cannot_share_a_field(store: TenantStore) -> None:
    own = spec(field="shared")
    await field_of(ImageClassifier.load(own), own, store).join()
    other = shipped("segformer-b0-camvid", Task.SEGMENTATION).model_copy(update={"field": "shared"})
    segmenter = ImageSegmenter.load(other)
    with pytest.raises(LoadError, match="'shared' is of final layers of 512x10") as refused:
        await NoiseField(segmenter, other, SECRET, store).join()
    assert "segformer-b0-camvid" in str(refused.value) and "another `field`" in str(refused.value)
    await NoiseField(segmenter, other, b"another secret of the tests", store).join()


@pytest.mark.parametrize(
    ("change", "says"),
    [({"depth": 64}, "depth 64, but .* fixed with 512; set depth: 512"), ({"length_scale": 0.5}, "0.5, but .* 1.6;")],
)
async def test_a_configuration_that_disagrees_with_the_field_is_refused_at_the_start(
    store: TenantStore, change: dict[str, Any], says: str
) -> None:
    engine = ImageClassifier.load(spec())
    await field_of(engine, spec(), store).fix(solved(engine, None, 200))
    agreed = field_of(engine, spec(depth=512, length_scale=1.6), store)
    assert await agreed.fixed() is not None
    with pytest.raises(LoadError, match=says) as refused:
        await field_of(engine, spec(**change), store).fixed()
    assert "\n" not in str(refused.value) and "another `field`" in str(refused.value)
    await store.save_calibration(calibration_key(engine, SECRET), solved(engine, None, 200).to_json())
    with pytest.raises(LoadError, match=says):
        await keep(engine, store.url, "replica", **change)


async def test_a_replica_without_the_installations_secret_does_not_start(
    store: TenantStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = ImageClassifier.load(spec())
    await installation.join(store, b"another secret of the tests")
    with pytest.raises(RecordError, match="restore that one"):
        await keep(engine, store.url, "replica")

    async def from_store(_self: support.Access, own: TenantStore) -> bytes:
        return (await installation.noise_secret(own)).encode()

    monkeypatch.setattr(support.Access, "noise_secret", from_store)
    with pytest.raises(RecordError, match="tenants init"):
        await keep(engine, store.url, "replica")


async def test_an_installation_of_before_fields_had_names_keeps_its_noise(
    store: TenantStore, keepers: list[Keeper]
) -> None:
    engine = ImageClassifier.load(spec())
    old = replace(solved(engine, None, 300), field_name=engine.fingerprint)
    stored = json.loads(old.to_json())
    del stored["field_name"]
    field = field_of(engine, spec(), store)
    await store.save_calibration(field._earlier, json.dumps(stored))
    keepers.append(await keep(engine, store.url, "replica"))
    assert engine.calibrated and engine.head.calibration.curve == old.curve
    earlier = NoiseLadder(
        SECRET,
        engine.fingerprint,
        features=512,
        classes=10,
        length_scale=old.length_scale,
        depth=512,
        metric=old.metric,
    )
    assert torch.equal(engine.head.matrix_at(POSITION), earlier.matrix(POSITION))
    copy = ImageClassifier.load(spec(dtype="bfloat16"))
    kept = await field_of(copy, spec(dtype="bfloat16"), store).fixed()
    assert kept is not None and solved(copy, kept, 200).same_field(old)


async def test_levels_say_what_a_field_is_whose_record_was_lost_and_are_not_used_on_another(
    store: TenantStore, keepers: list[Keeper]
) -> None:
    engine = ImageClassifier.load(spec())
    calibration = solved(engine, None, 300)
    await store.save_calibration(calibration_key(engine, SECRET), calibration.to_json())
    keepers.append(await keep(engine, store.url, "replica"))
    field = field_of(engine, spec(), store)
    fixed = await field.fixed()
    assert fixed is not None and fixed.same_field(calibration)
    await store.execute("DEL", keyspace.field(field._key))
    await field.fix(solved(engine, None, 200))
    with pytest.raises(ValueError, match="another noise than its field"):
        await keep(ImageClassifier.load(spec()), store.url, "another")
