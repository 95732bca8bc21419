"""Every family of transformers' image classifiers and segmenters, with random weights: its pipeline's own answer at
level 1.0, levels and focus that move it, or one line on why it is not served. docs/vision-models.md lists them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, pipeline
from transformers.models.auto import modeling_auto
from transformers.utils import logging

from deployments.config import REPOSITORY, Task
from deployments.engines.errors import LoadError
from tests.deployments.random_vision_models import (
    PICTURES,
    check_levels_of_labels,
    check_levels_of_masks,
    class_map,
    first,
    load,
    write,
)
from tests.deployments.shards import shard
from tests.deployments.vision_families import (
    CLASSES,
    CLASSIFIERS,
    REFUSED,
    SEGMENTERS,
    TORCHVISION,
    TORCHVISION_REFUSED,
    TORCHVISION_SEGMENTERS,
    UNBUILT,
    UNIVERSAL,
)
from tests.deployments.vision_support import GOLD


@pytest.fixture(autouse=True)
def quiet() -> None:
    logging.set_verbosity_error()


@pytest.mark.parametrize("model_type", shard(CLASSIFIERS))
def test_a_classifier_of_transformers_is_its_pipeline(model_type: str, tmp_path: Path) -> None:
    class_name = first(modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES[model_type])
    write(tmp_path, class_name, model_type, CLASSIFIERS[model_type])
    engine = load(Task.CLASSIFICATION, str(tmp_path))
    theirs = pipeline("image-classification", model=str(tmp_path), top_k=len(CLASSES))
    for picture in PICTURES[::10]:
        (answer,), own = engine.predict([picture], [GOLD]), theirs(picture)
        assert dict(answer) == pytest.approx({row["label"]: row["score"] for row in own}, abs=2e-5)
    check_levels_of_labels(engine, PICTURES)


@pytest.mark.parametrize("model_type", shard(SEGMENTERS))
def test_a_segmenter_of_transformers_is_its_pipeline(model_type: str, tmp_path: Path) -> None:
    class_name = first(modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES[model_type])
    write(tmp_path, class_name, model_type, SEGMENTERS[model_type])
    engine = load(Task.SEGMENTATION, str(tmp_path))
    theirs = pipeline("image-segmentation", model=str(tmp_path))
    for picture in (PICTURES[0], PICTURES[-1]):
        (answer,) = engine.predict([picture], [GOLD])
        assert (class_map(answer) == class_map(theirs(picture))).mean() > 0.9999
    check_levels_of_masks(engine, PICTURES[:16])


@pytest.mark.parametrize("class_name", shard(REFUSED))
def test_what_is_not_served_is_refused_at_load_in_one_line(class_name: str, tmp_path: Path) -> None:
    model_type, config, why = REFUSED[class_name]
    if model_type in {*UNIVERSAL, "dinat"}:  # whose configuration is read before any weights are
        AutoConfig.for_model(model_type).save_pretrained(tmp_path)
        torch.save({}, tmp_path / "pytorch_model.bin")
    else:
        write(tmp_path, class_name, model_type, config, served=False)
    task = Task.CLASSIFICATION if class_name.endswith(("Classification", "Teacher")) else Task.SEGMENTATION
    with pytest.raises(LoadError) as refused:
        load(task, str(tmp_path))
    said = re.sub(r"'[\w.]+' and '[\w.]+'", "'A' and 'B'", str(refused.value))
    assert why in said and "\n" not in said


def test_every_family_of_transformers_is_served_or_refused_by_name() -> None:
    refused = {model_type for model_type, _, _ in REFUSED.values()} | set(UNBUILT)
    classifiers = set(modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES)
    segmenters = set(modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES)
    assert classifiers == set(CLASSIFIERS) | (refused & classifiers)
    assert segmenters == set(SEGMENTERS) | (refused & segmenters)
    kinds = ("UNIVERSAL_SEGMENTATION", "INSTANCE_SEGMENTATION", "IMAGE_SEGMENTATION")
    assert UNIVERSAL == {n for kind in kinds for n in getattr(modeling_auto, f"MODEL_FOR_{kind}_MAPPING_NAMES")}


def test_the_documentation_lists_every_family() -> None:
    text = (REPOSITORY / "docs/vision-models.md").read_text()
    families = {*CLASSIFIERS, *SEGMENTERS, *UNBUILT, *UNIVERSAL, *(row[0] for row in REFUSED.values())}
    assert not [name for name in families if f"`{name}`" not in text]
    assert not [
        name for name in [*TORCHVISION, *TORCHVISION_REFUSED, *TORCHVISION_SEGMENTERS] if f"`{name}`" not in text
    ]
