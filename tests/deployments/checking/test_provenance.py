"""`tenants trace` from the file to the sentence: the shipped models' answers, and files that nobody can trace."""

from __future__ import annotations

import asyncio
import base64
import json
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch
import typer
import yaml
from PIL import Image
from typer.testing import CliRunner, Result

from deployments.checking.provenance import read_given
from deployments.checking.provenance import trace as command
from deployments.config import REPOSITORY, ModelSpec, Task
from deployments.engines.calibrated import CalibratedEngine
from deployments.engines.errors import LoadError
from deployments.engines.images.classifier import ImageClassifier
from deployments.engines.images.segmenter import ImageSegmenter
from deployments.engines.images.traced import traced_picture
from deployments.engines.text.calibration import answers, calibrating
from deployments.engines.text.generator import Generator
from deployments.engines.text.traced import traced_text
from policies.calibration.calibration import Calibration
from policies.head.slots import Setting
from policies.provenance.answers import Answers
from policies.provenance.decoys import Decoys
from policies.provenance.trace import trace
from tenants.command.console import Chosen
from tenants.store.embedded import EmbeddedValkey
from tenants.store.store import TenantStore
from tests.deployments.text_support import SPEC as TEXT
from tests.deployments.vision_support import SECRET, at, calibrated, scenes, shipped

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's own, at import
    from deployments.upkeep.fields import calibration_key

PICTURES = 120
OTHER = b"the secret of another installation"
CLASSIFIER = shipped("resnet18-cifar10", Task.CLASSIFICATION)
Trace = Callable[..., Any]


class Traced:
    """A store with a model's calibration, and the command on it."""

    def __init__(self, folder: Path, store: TenantStore) -> None:
        self.folder, self.store = folder, store
        self.app = typer.Typer()
        self.app.callback()(_context)
        self.app.command("trace")(command)

    async def calibrate(self, engine: CalibratedEngine, spec: ModelSpec) -> None:
        """As a first start leaves it."""
        key = calibration_key(engine, SECRET)
        await self.store.save_calibration(key, engine.head.calibration.to_json())

    async def run(self, lines: list[Any], *options: str) -> Result:
        """The command on these lines."""
        models = [spec.model_dump(mode="json", exclude_unset=True) for spec in (CLASSIFIER,)]
        args = {"models": models, "store": {"redis_url": self.store.url}}
        (self.folder / "config.yaml").write_text(yaml.safe_dump({"applications": [{"args": args}]}))
        text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
        (self.folder / "answers.jsonl").write_text(text)
        words = [str(self.folder / "answers.jsonl"), "--config", str(self.folder / "config.yaml"), *options]
        environment = {"REDIS_URL": self.store.url, "AIM_NOISE_SECRET": SECRET.decode()}
        return await asyncio.to_thread(lambda: CliRunner().invoke(self.app, ["trace", *words], env=environment))


def _context(context: typer.Context, redis_url: str = typer.Option("", envvar="REDIS_URL")) -> None:
    context.obj = Chosen(redis_url)


@pytest_asyncio.fixture
async def traced(tmp_path: Path) -> AsyncIterator[Traced]:
    with EmbeddedValkey(tmp_path / "store") as valkey:
        async with await TenantStore.connect(valkey.url, timeout_s=5.0) as store:
            yield Traced(tmp_path, store)


@pytest.fixture(scope="module")
def classifier() -> ImageClassifier:
    return calibrated(ImageClassifier.load(CLASSIFIER))


def labelled(engine: ImageClassifier, level: float, folder: Path) -> list[dict[str, str]]:
    """Pictures in files, and the labels that the engine answers at a level."""
    lines = []
    for number, image in enumerate(scenes(PICTURES, 64, 64)):
        image.save(folder / f"{number}.png")
        ((first, *_),) = engine.predict([image], [at(level)])
        lines.append({"input": f"{number}.png", "answer": first.label})
    return lines


async def test_labels_are_traced_to_their_level_from_a_file(
    traced: Traced, classifier: ImageClassifier, tmp_path: Path
) -> None:
    await traced.calibrate(classifier, CLASSIFIER)
    result = await traced.run(labelled(classifier, 0.7, tmp_path), "--json")
    assert result.exit_code == 0 and SECRET.decode() not in result.output, result.output
    (found,) = json.loads(result.stdout)
    assert found["claimed"] and found["model"] == "resnet18-cifar10" and found["p"] == 0.0005
    assert found["lowest"] <= 0.7 <= found["highest"] and found["own"] == PICTURES == found["answers"]
    clean = await traced.run(labelled(classifier, 1.0, tmp_path))
    assert clean.exit_code == 0 and "none" in clean.stdout and f"{PICTURES} of {PICTURES}" in clean.stdout


@pytest.mark.parametrize(
    ("lines", "options", "said"),
    [
        ([], (), "holds no answers"),
        (["{"], (), "line 1: expected a JSON object"),
        ([{"input": "a.png"}], (), "line 1: expected a JSON object with answer"),
        ([{"input": "a.png", "answer": 7}], (), "line 1: input must be a path"),
        ([{"prompt": [{}], "answer": "x"}], (), "line 1: prompt must be"),
        ([{"input": "a.png", "answer": "cat"}, {"prompt": "x", "answer": "y"}], (), "answers of several tasks"),
        ([{"prompt": "x", "answer": "y"}], (), "no model of text-generation is configured"),
        ([{"prompt": "x", "answer": "y"}], ("--model", "resnet18-cifar10"), "does image-classification, but"),
        ([{"input": "a.png", "answer": "cat"}], ("--model", "m"), "no model m is configured"),
        ([{"input": "a.png", "answer": "cat"}], (), "has no calibration under this configuration and noise secret"),
    ],
)
async def test_what_cannot_be_traced_is_said_in_a_line(
    traced: Traced, lines: list[Any], options: tuple[str, ...], said: str
) -> None:
    result = await traced.run(lines, *options)
    assert result.exit_code == 1 and said in result.stderr.splitlines()[-1], result.output


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none.jsonl cannot be read: No such file"):
        read_given(tmp_path / "none.jsonl")


async def test_an_unreadable_picture_or_label_is_named_by_its_line(
    traced: Traced, classifier: ImageClassifier, tmp_path: Path
) -> None:
    await traced.calibrate(classifier, CLASSIFIER)
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    for line, said in (({"input": "b.png", "answer": "cat"}, "b.png"), ({"input": "a.png", "answer": "cow"}, "cow")):
        result = await traced.run([{"input": "a.png", "answer": "cat"}, line])
        last = result.stderr.splitlines()[-1]
        assert result.exit_code == 1 and "line 2" in last and said in last


def test_masks_are_traced_to_their_level_as_pngs_and_as_the_api_answers_them(tmp_path: Path) -> None:
    engine = calibrated(ImageSegmenter.load(shipped("segformer-b0-camvid", Task.SEGMENTATION)))
    images, parts = scenes(4, 480, 360), []
    for number, image in enumerate(images):
        image.save(tmp_path / f"{number}.png")
        answer = [part.to_json() for part in engine.predict([image], [at(0.7)])[0]]
        indices = np.zeros((360, 480), dtype=np.uint8)
        for part in answer:
            (tmp_path / "class.png").write_bytes(base64.b64decode(str(part["mask"])))
            with Image.open(tmp_path / "class.png") as mask:
                indices[np.asarray(mask) > 0] = engine.classes.index(str(part["label"]))
        Image.fromarray(indices).save(tmp_path / f"mask{number}.png")
        (tmp_path / f"mask{number}.json").write_text(json.dumps(answer))
        ways = [traced_picture(engine, tmp_path / f"{number}.png", given) for given in
                (str(tmp_path / f"mask{number}.png"), str(tmp_path / f"mask{number}.json"), answer)]  # fmt: skip
        assert all(torch.equal(way.given, ways[0].given) for way in ways)
        parts.append(ways[0])
    joined, calibration = Answers.join(parts), engine.head.calibration
    shared = Decoys(joined, calibration, count=49)
    # So few pictures, unlike those that calibrated, say little; what the level's own pixels are is known all the same.
    found = trace(joined, calibration, SECRET, decoys=shared)
    assert found.lowest <= 0.7 <= found.highest
    assert found.own > 0.995 * found.answers and found.explained > 0.99 * found.changed
    strange = trace(joined, calibration, OTHER, decoys=shared, levels=[0.7])
    assert strange.own < 0.8 * strange.answers and strange.deviations < found.deviations

    Image.new("L", (480, 360), 11).save(tmp_path / "beyond.png")
    Image.new("L", (48, 36)).save(tmp_path / "small.png")
    for name, said in (("beyond.png", "class index 11"), ("small.png", "48 x 36 pixels"), ("0.png", "mode RGB")):
        with pytest.raises(LoadError, match=said):
            traced_picture(engine, tmp_path / "0.png", str(tmp_path / name))


def test_texts_of_the_serving_engine_are_traced_by_reading_them_again() -> None:
    generator = Generator.load(calibrating(TEXT), torch.device("cpu"))
    with closing(generator):
        conversations = [[{"role": "user", "content": f"Write a few words about {thing}."}] for thing in
                         ("rain", "bread", "the sea", "a clock", "winter", "tea", "a bridge", "sleep")]  # fmt: skip
        # Any positions will do for levels: what they deliver is not judged here.
        curve = ((0, 1.0), (16_000, 0.95), (17_500, 0.7), (18_500, 0.4))
        calibration = Calibration(generator.fingerprint, 25.0, 32, curve, (1.0,), (1.0,), 100)
        generator.install(calibration, SECRET)
        asked = [(generator.encode_chat(messages), Setting(0.7)) for messages in conversations]
        given = [generator.tokenizer.decode(one.tokens, skip_special_tokens=True) for one in answers(generator, asked)]
        generator.uninstall()
        parts = [traced_text(generator, *pair) for pair in zip(conversations, given, strict=True)]
        joined = Answers.join(parts)
        found = trace(
            joined, calibration, SECRET, levels=[0.5, 0.7, 0.9], decoys=Decoys(joined, calibration, count=1000)
        )
        assert found.claimed and found.level == 0.7 and found.own > 0.95 * found.answers
        strange = Decoys(joined, calibration, count=99)
        assert trace(joined, calibration, OTHER, levels=[0.7], decoys=strange).p > 0.01
        with pytest.raises(LoadError, match="no tokens"):
            traced_text(generator, "x", "")


def test_the_command_is_found_by_name() -> None:
    from tenants.command.entry import WITH_MODELS

    assert (
        WITH_MODELS == {"trace": "deployments.checking.provenance"}
        and (REPOSITORY / "deployments/checking/provenance.py").exists()
    )
