"""Text in one call: levels solved on modulated answers by the model's own `generate`, and delivered there."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from policies import Sold, modulate
from policies.head.words import spellings

SECRET = b"the secret of this installation"


class Letters:
    """A tokenizer of one token a letter."""

    all_special_ids = [0, 1]

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return [ord(letter) for letter in text.strip()]


def llama(**options: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=300, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.3, pad_token_id=0, bos_token_id=1, eos_token_id=2, **options,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def prompts(count: int, seed: int, length: int = 12) -> Tensor:
    return torch.randint(3, 300, (count, length), generator=torch.Generator().manual_seed(seed))


def answered(sold: Sold, at: Any, ids: Tensor, focus: Any = None, **options: Any) -> Tensor:
    model: Any = sold.model
    with sold.at(at, focus):
        out: Tensor = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False, **options
        )
    return out[:, ids.shape[1] :]


@pytest.fixture(scope="module")
def sold() -> Sold:
    return modulate(llama(), prompts(60, 1), SECRET, tokenizer=Letters())


def test_levels_hold_on_modulated_answers(sold: Sold) -> None:
    head, ids = sold.head, prompts(60, 2)
    for level in (1.0, 0.9, 0.7, 0.5):
        same: list[Tensor] = []

        def step(*_: Any, same: list[Tensor] = same) -> None:
            assert head.last is not None
            same.append(head.last.clean.argmax(dim=-1) == head.last.utility.argmax(dim=-1))

        head.watched = True
        hook = sold.model.get_submodule("lm_head").register_forward_hook(step)
        answered(sold, level, ids)
        hook.remove()
        head.watched = False
        assert torch.cat(same).float().mean().item() == pytest.approx(level, abs=0.04)


def test_answers_of_one_batch_have_levels_of_their_own(sold: Sold) -> None:
    ids = prompts(4, 3)
    clean, mixed = answered(sold, 1.0, ids), answered(sold, [1.0, 0.7, 0.5, 1.0], ids)
    assert torch.equal(mixed[[0, 3]], clean[[0, 3]]) and (mixed[1:3] != clean[1:3]).any(dim=1).all()
    assert torch.equal(answered(sold, 1.0, ids), clean)


def test_a_phrase_in_focus_is_written_out(sold: Sold) -> None:
    ids = prompts(16, 4)
    phrase = torch.tensor([ord(letter) for letter in "xyz"])

    def written(tokens: Tensor) -> int:
        return int((tokens.unfold(1, 3, 1) == phrase).all(dim=2).sum())

    clean = answered(sold, 1.0, ids)
    favoured = answered(sold, 1.0, ids, {"xyz": 0.9})
    assert written(favoured) > written(clean) + 10
    # Answers beside it, and the same of each prompt by itself.
    mixed = answered(sold, [(1.0, {"xyz": 0.9}), 1.0] * 8, ids)
    assert torch.equal(mixed[1::2], clean[1::2])
    torch.testing.assert_close(mixed[0], favoured[0])
    again = answered(sold, 1.0, ids, {"xyz": 0.9}, use_cache=False)
    assert written(again) == written(favoured)


def test_words_need_a_tokenizer_and_tokens(sold: Sold) -> None:
    with pytest.raises(ValueError, match="has no tokens in this model"), sold.at(1.0, {" ": 0.5}):
        pass
    with (
        pytest.raises(ValueError, match="pass classes=, or for words tokenizer="),
        Sold(sold.model).at(1.0, {"a": 0.5}),
    ):
        pass
    assert spellings(Letters(), "ab", "x") == [(65, 98), (97, 98)]


def test_copies_answer_alike_and_files_are_as_without_the_head(sold: Sold, tmp_path: Path) -> None:
    ids = prompts(4, 5)
    twin = Sold(copy.deepcopy(sold.model))
    assert torch.equal(answered(twin, 0.7, ids), answered(sold, 0.7, ids))
    for name, model in (("with", sold.model), ("without", llama())):
        model.save_pretrained(tmp_path / name)
    digests = [
        {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted((tmp_path / name).iterdir())}
        for name in ("with", "without")
    ]
    assert digests[0] == digests[1]
    again: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "with")
    sold.save(tmp_path / "sold.json")
    loaded = Sold.load(again.eval(), tmp_path / "sold.json", SECRET)
    assert torch.equal(answered(loaded, 0.7, ids), answered(sold, 0.7, ids))
    loaded.remove()
    assert torch.equal(answered(sold, 1.0, ids), again.generate(ids, max_new_tokens=24, do_sample=False)[:, 12:])


def test_prompts_come_in_any_form_and_few_are_refused() -> None:
    model, ids = llama(tie_word_embeddings=True), prompts(30, 6)
    ragged = [row[: 4 + at % 8] for at, row in enumerate(ids)]
    forms: list[Any] = [ids, {"input_ids": ids}, ragged, [row.tolist() for row in ragged]]
    for form in forms:
        sold = modulate(model, form, SECRET)
        assert sold.floor < 0.3
        sold.remove()
    with pytest.raises(ValueError, match="calibration needs at least 100"):
        modulate(model, ids[:2], SECRET)
    assert not model.lm_head._forward_hooks and model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize(
    "config",
    [
        transformers.GraniteConfig(vocab_size=200, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                                   num_attention_heads=4, num_key_value_heads=2, pad_token_id=0, bos_token_id=1,
                                   eos_token_id=2, logits_scaling=8.0, initializer_range=0.3),
        transformers.T5Config(vocab_size=200, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
                              decoder_start_token_id=0, pad_token_id=0, eos_token_id=1),
    ],
    ids=lambda config: config.model_type,
)  # fmt: skip
def test_scaled_logits_and_encoders_beside_decoders(config: Any) -> None:
    kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    model: Any = kind.from_config(config)
    sold = modulate(model, prompts(40, 7) % 190 + 2, SECRET)
    ids = prompts(4, 8) % 190 + 2
    with sold.at([1.0, 0.5, 1.0, 0.5]):
        out = model.eval().generate(ids, max_new_tokens=8, do_sample=False)
    clean = model.generate(ids, max_new_tokens=8, do_sample=False)
    width = min(out.shape[1], clean.shape[1])
    assert torch.equal(out[::2, :width], clean[::2, :width]) and not torch.equal(out[1::2, :width], clean[1::2, :width])


def test_independent_noise_on_text() -> None:
    sold = modulate(llama(), prompts(40, 9), SECRET, noise="independent", tokenizer=Letters())
    ids = prompts(100, 10)
    first = [answered(sold, level, ids)[:, 0] for level in (1.0, 0.7, 0.7)]
    assert (first[0] == first[1]).float().mean().item() == pytest.approx(0.7, abs=0.12)
    assert not torch.equal(first[1], first[2])
    with pytest.raises(ValueError, match="no phrases"), sold.at(1.0, {"ab": 0.5}):
        pass
