"""GGUF files: whole, split, half there, on the hub; and the tokens that end their answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from deployments.engines.errors import LoadError
from deployments.engines.text.loading import gguf_files, sources
from deployments.engines.text.loading.language_models import LanguageModel, load_language_model
from tests.deployments.tiny_models import spec, write_gguf

CPU = torch.device("cpu")


def load(source: Path | str) -> LanguageModel:
    return load_language_model(spec(source), CPU)


def test_a_file_is_loaded_as_its_library_loads_it(tmp_path: Path) -> None:
    (file,) = write_gguf(tmp_path / "tiny.gguf")
    library = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name)
    mine = load(file).model.state_dict()
    assert all(torch.equal(mine[name], value) for name, value in library.state_dict().items())


@pytest.mark.parametrize("named", [0, 2, -1], ids=["first", "third", "last"])
def test_a_split_file_is_whole_whichever_part_is_named(named: int, tmp_path: Path) -> None:
    (file,) = write_gguf(tmp_path / "tiny.gguf")
    parts = write_gguf(tmp_path / "split" / "tiny.gguf", per_part=5)
    assert len(parts) == 5
    whole, split = load(file), load(parts[named])
    assert split.fingerprint == whole.fingerprint and split.end_tokens == whole.end_tokens
    assert split.tokenizer.get_vocab() == whole.tokenizer.get_vocab()
    assert split.tokenizer.chat_template == whole.tokenizer.chat_template


def test_parts_that_are_missing_renamed_or_short_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = write_gguf(tmp_path / "tiny.gguf", per_part=5)
    alone = tmp_path / "model.gguf"
    alone.write_bytes(parts[0].read_bytes())
    with pytest.raises(LoadError, match="model.gguf is one of the 5 parts of a split GGUF.*llama-gguf-split --merge"):
        load(alone)
    monkeypatch.setattr(gguf_files.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(LoadError, match="no room.*set TMPDIR"):
        load(parts[0])
    monkeypatch.undo()
    kept = parts[3].read_bytes()
    parts[3].write_bytes(kept[:-40])
    with pytest.raises(LoadError, match="00004-of-00005.gguf is cut short"):
        load(parts[0])
    parts[3].unlink()
    with pytest.raises(LoadError, match="is split into 5 parts.* lacks tiny-00004-of-00005.gguf"):
        load(parts[0])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda whole: b"", "is empty"),
        (lambda whole: whole[:-100], r"is cut short: \d+ of \d+ bytes"),
        (lambda whole: whole[:900], "is cut short: its header is not whole"),
        (lambda whole: b"version https://git-lfs.github.com/spec/v1\noid", "git-lfs pointer"),
        (lambda whole: b"GGML" + whole[4:], "is no GGUF file"),
    ],
    ids=["empty", "short", "header", "pointer", "other"],
)
def test_half_a_file_is_refused_in_one_line(spoil: object, said: str, tmp_path: Path) -> None:
    (file,) = write_gguf(tmp_path / "tiny.gguf")
    file.write_bytes(spoil(file.read_bytes()))  # type: ignore[operator]
    with pytest.raises(LoadError, match=said) as refused:
        load(file)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_is_named_with_both_ways(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="there is no file .*none.gguf; put the path .* or <hub id>:<file>.gguf"):
        load(tmp_path / "none.gguf")
    with pytest.raises(LoadError, match="there is no file"):
        load(tmp_path / "org:none.gguf")


def test_a_file_of_the_hub_is_had_with_all_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = write_gguf(tmp_path / "tiny.gguf", per_part=5)
    asked: list[tuple[str, str]] = []

    def cached(repository: str, file: str) -> str:
        asked.append((repository, file))
        if not (tmp_path / file).is_file():
            raise OSError(f"{repository} does not appear to have a file named {file}.\nAnd more.")
        return str(tmp_path / file)

    monkeypatch.setattr(sources, "cached_file", cached)
    (file,) = write_gguf(tmp_path / "whole" / "tiny.gguf")
    assert load(f"org/tiny-GGUF:{parts[0].name}").fingerprint == load(file).fingerprint
    assert asked == [("org/tiny-GGUF", part.name) for part in parts]
    with pytest.raises(
        LoadError, match="none.gguf of org/tiny-GGUF cannot be had from the hub: .*named none.gguf"
    ) as no:
        load("org/tiny-GGUF:none.gguf")
    assert "\n" not in str(no.value)


def test_end_of_turn_tokens_end_an_answer(tmp_path: Path) -> None:
    (file,) = write_gguf(tmp_path / "plain.gguf")
    assert load(file).end_tokens == {257, 259}, "<|endoftext|> by its id, <|im_end|> by its name"
    (file,) = write_gguf(tmp_path / "turns.gguf", eot_token_id=260, eom_token_id=258)
    assert load(file).end_tokens == {257, 258, 259, 260}


def test_harmony_ends_at_return_and_not_between_its_channels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = ["a", "<|end|>", "<|return|>", "<|im_end|>"]
    metadata = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": [1, 3, 3, 1]}
    monkeypatch.setattr(gguf_files, "read_gguf_metadata", lambda *_: (metadata, ()))
    assert gguf_files.end_tokens(tmp_path) == {2}, "and no plain token that looks like one"
    metadata["tokenizer.ggml.tokens"] = ["a", "<|end|>", "<|eot_id|>", "b"]
    assert gguf_files.end_tokens(tmp_path) == {1, 2}


def test_a_tokenizer_with_byte_fallback_has_it(tmp_path: Path) -> None:
    (file,) = write_gguf(tmp_path / "tiny.gguf", sentences=True)
    tokenizer = load(file).tokenizer
    tokens = tokenizer.encode("a 😀😀😀 漢字é", add_special_tokens=False)
    assert tokenizer.decode(tokens).strip() == "a 😀😀😀 漢字é"
