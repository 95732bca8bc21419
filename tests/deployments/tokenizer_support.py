"""Small tokenizers of the kinds that language models have, built with the `tokenizers` library."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram, WordLevel
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = ["a", "b", "c", "é", "a_", "hello", "_hello", "_a", "_b", "x", "_"]


def byte_fallback() -> Tokenizer:
    """As Llama 2, Mistral, TinyLlama and Gemma have it: what is no token becomes its bytes."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    for word in WORDS:
        vocabulary.setdefault(word.replace("_", "▁"), len(vocabulary))
    made = Tokenizer(BPE(vocabulary, [("▁", "a"), ("▁", "b")], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens(["<s>", "</s>"])
    return made


def byte_level(special: tuple[str, ...] = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")) -> Tokenizer:
    """As GPT-2, SmolLM2, Llama 3 and Qwen have it: tokens of bytes: 256 of one, `ab`, then the special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(BPE({letter: at for at, letter in enumerate([*alphabet, "ab"])}, [("a", "b")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(text, special=True) for text in special])
    return made


def unigram() -> Tokenizer:
    """As T5 and XLM-R have it: Unigram behind Metaspace, bytes for the rest."""
    pieces = [("<unk>", 0.0), *((f"<0x{byte:02X}>", -9.0) for byte in range(256))]
    pieces += [(word.replace("_", "▁"), -1.0 - at) for at, word in enumerate(WORDS)]
    made = Tokenizer(Unigram(pieces, unk_id=0, byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return made


def chat_tokenizer(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """SmolLM2's kind, as transformers has it."""
    made = PreTrainedTokenizerFast(
        tokenizer_object=byte_level(), eos_token="<|im_end|>", bos_token="<|im_start|>", pad_token="<|im_end|>"
    )
    made.chat_template = template
    return made


def words(count: int) -> Tokenizer:
    """Words 't0', 't1', ... between spaces."""
    made = Tokenizer(WordLevel({f"t{i}": i for i in range(count)}, unk_token="t0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return made


def stand_in(vocabulary: int) -> Any:
    """What an engine asks of a tokenizer, for models that no text was made for; letters are encoded anyhow."""
    return SimpleNamespace(
        chat_template=None,
        all_special_ids=[],
        backend_tokenizer=words(vocabulary),
        encode=lambda text, **_: [8 + ord(c) * 37 % (vocabulary - 8) for c in text],
    )
