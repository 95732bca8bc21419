"""Folders of text models as their makers leave them: tokenizers of every kind, generation_config, other things."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
import sentencepiece
import torch
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

from deployments.engines.errors import LoadError
from deployments.engines.text.loading import tokenizers
from deployments.engines.text.loading.language_models import LanguageModel, load_language_model
from tests.deployments.tiny_models import folder, llama, spec
from tests.deployments.tokenizer_support import chat_tokenizer

CPU = torch.device("cpu")
TEXT = "The quick brown fox jumps over the lazy dog 😀😀😀 漢字é"


def load(path: Path, **more: object) -> LanguageModel:
    return load_language_model(spec(path, **more), CPU)


def without_tokenizer(path: Path) -> Path:
    llama().save_pretrained(path)
    return path


def sentences(path: Path, kind: str = "bpe") -> Path:
    """A SentencePiece model with byte fallback, trained on a few words."""
    text = path / "words.txt"
    text.write_text("\n".join(["the quick brown fox jumps over the lazy dog", "a quick dog", "the fox"] * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(path / "tokenizer"), vocab_size=400, model_type=kind, byte_fallback=True,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return path / "tokenizer.model"


def test_sentencepiece_is_read_as_its_own_library_reads_it(tmp_path: Path) -> None:
    path = without_tokenizer(tmp_path)
    own = sentencepiece.SentencePieceProcessor(model_file=str(sentences(path)))
    tokenizer = load(path).tokenizer
    tokens = tokenizer.encode(TEXT, add_special_tokens=False)
    assert tokens == own.encode(TEXT)
    assert tokenizer.decode(tokens) == TEXT


def ranks_of_tiktoken(path: Path) -> Path:
    """256 bytes, and three pieces of them."""
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"qu": 256, b"ck": 257, b"qui": 258}
    lines = [base64.b64encode(piece) + f" {rank}".encode() for piece, rank in ranks.items()]
    (path / "tokenizer.model").write_bytes(b"\n".join(lines))
    return path


def test_tiktoken_is_read_as_its_own_library_reads_it(tmp_path: Path) -> None:
    path = ranks_of_tiktoken(without_tokenizer(tmp_path))
    tokenizer = load(path).tokenizer
    tokens = tokenizer.encode("quick", add_special_tokens=False)
    assert tokens == [258, 257] and tokenizer.decode(tokens) == "quick"


@pytest.mark.parametrize(("package", "named"), [("sentencepiece", "sentencepiece"), ("google.protobuf", "protobuf")])
def test_a_package_that_a_tokenizer_needs_is_named(
    package: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentences(without_tokenizer(tmp_path))
    monkeypatch.setattr(tokenizers, "_installed", lambda name: name != package)
    with pytest.raises(LoadError, match=rf"tokenizer\.model needs the package {named}: `pip install {named}`"):
        load(tmp_path)
    monkeypatch.setattr(tokenizers, "_installed", lambda name: name != "tiktoken")
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\n")
    with pytest.raises(LoadError, match="needs the package tiktoken"):
        load(tmp_path)


def test_a_folder_without_a_tokenizer_is_refused_and_not_given_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="has no tokenizer; copy tokenizer.json"):
        load(without_tokenizer(tmp_path / "llama"))
    path = tmp_path / "gpt2"
    GPT2LMHeadModel(GPT2Config(vocab_size=272, n_embd=32, n_layer=1, n_head=2, n_positions=64)).save_pretrained(path)
    with pytest.raises(LoadError, match="has no tokenizer; copy tokenizer.json"):
        load(path)
    (path / "vocab.json").write_text("{}")  # transformers makes an empty tokenizer of it
    with pytest.raises(LoadError, match="knows no words|cannot be loaded"):
        load(path)


def test_a_tokenizer_that_is_none_is_refused_in_one_line(tmp_path: Path) -> None:
    folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": {"type": "BPE"}}))
    with pytest.raises(LoadError, match="the tokenizer of .* cannot be loaded") as refused:
        load(tmp_path)
    assert "\n" not in str(refused.value)


def test_a_tokenizer_that_cuts_texts_does_not_cut_prompts(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(8)
    tokenizer.backend_tokenizer.enable_padding(length=8)
    loaded = load(folder(tmp_path, tokenizer=tokenizer))
    assert len(loaded.tokenizer.encode("x" * 40)) == 40 and len(loaded.tokenizer.encode("x")) == 1
    assert len(loaded.encoder.chat.encode([{"role": "user", "content": "x" * 40}])) > 40


def test_end_tokens_are_those_of_generation_config_tokenizer_and_template(tmp_path: Path) -> None:
    model, tokenizer = llama(), chat_tokenizer()
    model.generation_config = GenerationConfig(eos_token_id=[5, 6])
    tokenizer.eos_token = "<|endoftext|>"
    loaded = load(folder(tmp_path, model, tokenizer))
    assert loaded.end_tokens == {5, 6, 257, 259}, "of the config, <|endoftext|>, and <|im_end|> behind an answer"


@pytest.mark.parametrize(
    ("config", "sampling"),
    [
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.9}, {"temperature": 0.6, "top_p": 0.9}),
        (
            {"do_sample": True, "temperature": 0.7, "top_k": 20, "repetition_penalty": 1.1},
            {"temperature": 0.7, "top_k": 20},
        ),
        ({"do_sample": True}, {}),
        ({"temperature": 0.6, "top_p": 0.9}, {}),
        ({}, {}),
    ],
)
def test_sampling_is_the_models_own_where_it_says_so(
    config: dict[str, object], sampling: dict[str, float], tmp_path: Path
) -> None:
    folder(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    assert load(tmp_path).sampling == sampling


def test_what_is_no_language_model_is_refused_in_one_line(tmp_path: Path) -> None:
    path = folder(tmp_path)
    config = json.loads((path / "config.json").read_text())
    for change, said in (
        ({"model_type": "resnet", "architectures": ["ResNetForImageClassification"]}, "as a causal language model"),
        ({"model_type": "no-such-model"}, "as a causal language model"),
        ({"model_type": "own", "auto_map": {"AutoModelForCausalLM": "own.Own", "AutoConfig": "own.C"}}, "as a causal"),
        ({"hidden_size": "wide"}, "as a causal language model"),
    ):
        (path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(LoadError, match=said) as refused:
            load(path)
        assert "\n" not in str(refused.value) and len(str(refused.value)) < 600


def test_a_source_that_is_a_file_or_nowhere_is_named(tmp_path: Path) -> None:
    path = folder(tmp_path)
    with pytest.raises(LoadError, match=r"model\.safetensors is a file: put the folder"):
        load(path / "model.safetensors")
    with pytest.raises(LoadError, match=r"there is no folder .*/nowhere"):
        load(path / "nowhere")


def test_a_half_of_a_folder_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    folder(tmp_path)
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n")
    with pytest.raises(LoadError, match="^tiny: .*model.safetensors is a git-lfs pointer"):
        load(tmp_path)
