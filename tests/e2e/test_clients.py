"""Stock clients, given a URL and a key and nothing else."""

from __future__ import annotations

import io
from pathlib import Path

import openai
import pytest
from huggingface_hub import InferenceClient
from PIL import Image

from deployments.config import REPOSITORY
from tests.e2e.conftest import CLASSIFIER, SEGMENTER, TEXT, Application

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def openai_client(app: Application, tier: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{app.base_url}/v1", api_key=app.key(tier), timeout=180)


def huggingface(app: Application, tier: str, model: str) -> InferenceClient:
    return InferenceClient(model=f"{app.base_url}/models/{model}", token=app.key(tier), timeout=180)


@pytest.mark.parametrize("tier", ["gold", "silver", "free"])
def test_openai_chat_streamed_and_not_say_the_same(app: Application, tier: str) -> None:
    with openai_client(app, tier) as client:
        whole = client.chat.completions.create(model=TEXT, messages=QUESTION, temperature=0, max_tokens=24)
        stream = client.chat.completions.create(
            model=TEXT,
            messages=QUESTION,
            temperature=0,
            max_tokens=24,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
    assert whole.choices[0].message.content
    assert whole.usage is not None and whole.usage.completion_tokens <= 24
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason


def test_gold_answers_the_question(app: Application) -> None:
    with openai_client(app, "gold") as client:
        answer = client.chat.completions.create(model=TEXT, messages=QUESTION, temperature=0, max_tokens=24)
    assert "Paris" in str(answer.choices[0].message.content)


def test_openai_text_completion_and_models(app: Application) -> None:
    with openai_client(app, "gold") as client:
        answer = client.completions.create(model=TEXT, prompt="Two and two make", temperature=0, max_tokens=8)
        assert answer.choices[0].text
        assert {m.id for m in client.models.list()} == {CLASSIFIER, SEGMENTER, TEXT}


def test_a_seed_repeats_a_sampled_answer(app: Application) -> None:
    with openai_client(app, "gold") as client:
        texts = [
            client.chat.completions.create(model=TEXT, messages=QUESTION, seed=seed, max_tokens=24)
            .choices[0]
            .message.content
            for seed in (7, 7, 8)
        ]
    assert texts[0] == texts[1] != texts[2]


def test_a_stop_string_ends_the_answer(app: Application) -> None:
    with openai_client(app, "gold") as client:
        answer = client.chat.completions.create(
            model=TEXT, messages=QUESTION, temperature=0, max_tokens=40, stop=["France"]
        )
    assert answer.choices[0].finish_reason == "stop"
    assert "France" not in str(answer.choices[0].message.content)


def test_openai_errors_are_of_the_right_kind(app: Application) -> None:
    with openai.OpenAI(base_url=f"{app.base_url}/v1", api_key="sk-wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
    with openai_client(app, "free") as client, pytest.raises(openai.PermissionDeniedError):
        client.chat.completions.create(model=TEXT, messages=QUESTION, max_tokens=4, extra_body={"utility": 0.95})


@pytest.mark.parametrize("tier", ["gold", "free"])
def test_huggingface_image_classification(app: Application, tier: str, ship: bytes, tmp_path: Path) -> None:
    client = huggingface(app, tier, CLASSIFIER)
    (tmp_path / "ship.jpg").write_bytes(ship)
    by_bytes, by_path = client.image_classification(ship), client.image_classification(str(tmp_path / "ship.jpg"))
    assert by_bytes == by_path
    assert len(by_bytes) == (10 if tier == "gold" else 1)
    if tier == "gold":
        assert by_bytes[0].label == "ship"


@pytest.mark.parametrize("tier", ["gold", "free"])
def test_huggingface_image_segmentation(app: Application, tier: str, street: bytes) -> None:
    parts = huggingface(app, tier, SEGMENTER).image_segmentation(street)
    size = Image.open(io.BytesIO(street)).size
    assert all(part.mask.size == size for part in parts)
    assert {"road", "sky", "building"} <= {part.label for part in parts} or tier == "free"


@pytest.mark.parametrize("stream", [False, True])
def test_huggingface_chat(app: Application, stream: bool) -> None:
    client = huggingface(app, "gold", TEXT)
    answer = client.chat_completion(QUESTION, max_tokens=16, temperature=0, stream=stream)
    text = (
        "".join(chunk.choices[0].delta.content or "" for chunk in answer if chunk.choices)
        if stream
        else answer.choices[0].message.content
    )
    assert "Paris" in text


def test_the_pictures_of_the_examples_are_what_their_script_draws() -> None:
    assert (REPOSITORY / "examples" / "draw_pictures.py").exists()
    for name in ("ship.jpg", "street.jpg"):
        Image.open(REPOSITORY / "examples" / name).verify()
