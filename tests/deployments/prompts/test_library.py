"""A tokenizer and chat template that have travelled as data make the tokens that transformers makes."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.exceptions import SecurityError
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from deployments.engines.text.loading.own_library import OwnLibrary, form_of
from deployments.engines.text.loading.sources import located
from deployments.engines.text.loading.tokenizers import load_tokenizer
from deployments.prompts.encoder import Encoder
from deployments.prompts.form import Form
from deployments.prompts.lengths import characters_per_token
from deployments.prompts.library import Portable
from deployments.prompts.templates import Template
from policies.errors import InvalidRequest
from tests.deployments.engines.text.test_language_models import ranks_of_tiktoken, sentences, without_tokenizer
from tests.deployments.prompts.test_chat import FORMS
from tests.deployments.text_support import SPEC
from tests.deployments.tiny_models import write_gguf
from tests.deployments.tokenizer_support import byte_fallback, byte_level, chat_tokenizer, unigram, words

RICH = (
    "{%- macro turn(m) -%}<|im_start|>{{ m.role }}\n{{ m['content'] }}<|im_end|>\n{%- endmacro -%}"
    "{%- set ns = namespace(last=none, self=1) -%}{{ bos_token }}{{ dict(a=1).items() | list | length }}"
    "{%- if tools is not none or documents %}tools{% endif -%}"
    "{%- for m in messages -%}{%- if loop.index0 > 4 %}{% break %}{% endif -%}"
    "{%- if m.role == 'assistant' %}{% generation %}{{ turn(m) }}{% set inner = 1 %}{% endgeneration %}"
    "{{ inner is defined }}"
    "{%- else %}{{ turn(m) }}{{ m | tojson }}{{ m.content | tojson(indent=2) | length }}{% endif -%}"
    "{%- set ns.last = m.role -%}{%- endfor -%}{{ ns.last }}{{ strftime_now('%d %b %Y') }}\n"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}{{ eos_token }}{{ nowhere }}"
)  # fmt: skip
SPELLED = ["<s>", "</s>", "<unk>", "<|im_end|>", "<|im_start|>", "<|endoftext|>", "<|x|>", "[INST]", "\ue0000\ue001"]
LETTERS = [
    "a",
    " ",
    "  ",
    "\n",
    "hello",
    "_",
    "é",
    "e\u0301",
    "漢字",
    "😀",
    "\t",
    "ﬁ",
    "\u200d",
    "\r\n",
    "0",
    "0x41",
    "<0x41>",
]
TEXTS = (
    st.lists(st.sampled_from(SPELLED + LETTERS) | st.text(max_size=8), max_size=12)
    .map("".join)
    .map(lambda text: text.encode("utf-8", "replace").decode())
)
CHATS = st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), TEXTS), min_size=1, max_size=6)


def wrapped(made: Tokenizer, **more: Any) -> Any:
    return PreTrainedTokenizerFast(tokenizer_object=made, **more)


def with_ends() -> Any:
    made = byte_fallback()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return wrapped(made, bos_token="<s>", eos_token="</s>")


def cut_and_filled() -> Any:
    made = byte_level()
    made.enable_truncation(4)
    made.enable_padding(length=64, pad_token="<|endoftext|>", pad_id=257)
    return wrapped(made, eos_token="<|im_end|>")


def swallowing() -> Any:
    made = chat_tokenizer()
    made.add_tokens([AddedToken("<|x|>", lstrip=True, rstrip=True, special=False), AddedToken("[INST]", special=True)])
    return made


def composed() -> Any:
    made = byte_level()
    made.normalizer = normalizers.NFC()
    return wrapped(made, bos_token="<|im_start|>")


def from_gguf(sentences: bool) -> Any:
    with TemporaryDirectory() as folder:
        (file,) = write_gguf(Path(folder) / "m.gguf", sentences=sentences)
        return AutoTokenizer.from_pretrained(folder, gguf_file=file.name)


def from_sentencepiece(kind: str) -> Any:
    with TemporaryDirectory() as folder:
        sentences(without_tokenizer(Path(folder)), kind)
        return AutoTokenizer.from_pretrained(folder)


def from_tiktoken() -> Any:
    with TemporaryDirectory() as folder:
        return AutoTokenizer.from_pretrained(ranks_of_tiktoken(without_tokenizer(Path(folder))))


def shipped() -> Any:
    with located(SPEC) as source:
        return load_tokenizer(SPEC, source)


SHAPES: dict[str, Callable[[], Any]] = {
    "bytes": chat_tokenizer,
    "byte fallback": lambda: wrapped(byte_fallback(), bos_token="<s>", eos_token="</s>"),
    "unigram": lambda: wrapped(unigram(), unk_token="<unk>"),
    "words": lambda: wrapped(words(40), unk_token="t0"),
    "begin and end": with_ends,
    "begin by flag": lambda: wrapped(byte_level(), bos_token="<|im_start|>", add_bos_token=True),
    "cut and filled up": cut_and_filled,
    "special tokens are text": lambda: wrapped(byte_level(), eos_token="<|im_end|>", split_special_tokens=True),
    "tokens that swallow spaces": swallowing,
    "composed": composed,
    "GGUF of bytes": lambda: from_gguf(False),
    "GGUF of sentences": lambda: from_gguf(True),
    "SentencePiece of merges": lambda: from_sentencepiece("bpe"),
    "SentencePiece of likelihoods": lambda: from_sentencepiece("unigram"),
    "tiktoken": from_tiktoken,
    "SmolLM2": shipped,
}


@cache
def shape(name: str) -> tuple[Any, Form]:
    """A tokenizer of transformers', and it as data that have travelled."""
    tokenizer = SHAPES[name]()
    tokenizer.chat_template = RICH if tokenizer.chat_template is None else tokenizer.chat_template
    tokenizer.model_max_length = 10**9
    form = form_of(tokenizer, len(tokenizer), frozenset())
    assert form is not None, "it needs its replica"
    return tokenizer, Form.unpack(form.pack())


@cache
def characters(name: str) -> int | None:
    return characters_per_token(json.loads(shape(name)[1].tokenizer))


@cache
def portable(name: str) -> Portable:
    return Portable(shape(name)[1])


@pytest.mark.parametrize("name", SHAPES)
@settings(max_examples=60, deadline=None)
@given(text=TEXTS)
def test_a_text_has_the_tokens_that_transformers_gives_it(name: str, text: str) -> None:
    tokenizer, _ = shape(name)
    assert portable(name).ids(text, whole=True) == tokenizer(text)["input_ids"]
    assert portable(name).ids(text, whole=False) == tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    assert list(portable(name).pieces(text)) == list(zip(pieces["input_ids"], pieces["offset_mapping"], strict=True))
    assert portable(name).spelled(text) == tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    if (each := characters(name)) is not None:
        assert len(text) <= each * len(portable(name).ids(text, whole=False))


@pytest.mark.parametrize("template", [*FORMS.values(), RICH], ids=[*FORMS, "rich"])
@settings(max_examples=60, deadline=None)
@given(chat=CHATS)
def test_a_conversation_is_filled_as_transformers_fills_it(template: str, chat: list[tuple[str, str]]) -> None:
    tokenizer, _ = shape("bytes")
    turns = [{"role": role, "content": content} for role, content in chat]
    own, mine = tokenizer.apply_chat_template, Template(template, tokenizer.special_tokens_map)
    for prompt in (True, False):
        try:
            wanted = own(turns, chat_template=template, add_generation_prompt=prompt, tokenize=False)
        except Exception as error:
            with pytest.raises(type(error)) as refused:
                mine.render(turns, prompt=prompt)
            assert str(refused.value) == str(error)
        else:
            assert mine.render(turns, prompt=prompt) == wanted


@pytest.mark.parametrize("name", SHAPES)
@settings(max_examples=40, deadline=None)
@given(chat=CHATS)
def test_a_gateway_reads_a_conversation_as_the_replica_does(name: str, chat: list[tuple[str, str]]) -> None:
    tokenizer, form = shape(name)
    turns = [{"role": role, "content": content} for role, content in chat]
    answers: list[Any] = []
    for library in (portable(name), OwnLibrary(tokenizer)):
        try:
            answers.append(Encoder("m", library, form.vocabulary, form.ends).prompts(turns))
        except InvalidRequest as error:
            answers.append(error.message)
    assert answers[0] == answers[1]
    added = [token.content for token in portable(name).added.values()]
    if not isinstance(answers[0], str) and not any(text in said for _, said in chat for text in added):
        plain = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        assert answers[0] == ("messages", [plain])


@pytest.mark.parametrize(
    "source",
    ["{{ ''.__class__.__mro__ }}", "{{ namespace(_x=1) }}", "{% set ns = namespace() %}{% set ns.__init__ = 1 %}",
     "{{ messages.append(1) }}", "{{ dict.__class__.__base__ }}", "{{ raise_exception.__globals__ }}",
     "{{ cycler.__init__.__globals__.os }}", "{{ namespace.__init__ }}"],
)  # fmt: skip
def test_a_template_stays_in_its_sandbox(source: str) -> None:
    turns, (tokenizer, _) = [{"role": "user", "content": "x"}], shape("bytes")
    try:
        assert Template(source, {}).render(turns, prompt=True) == ""
        assert tokenizer.apply_chat_template(turns, chat_template=source, tokenize=False) == ""
    except SecurityError:
        with pytest.raises(SecurityError):
            tokenizer.apply_chat_template(turns, chat_template=source, tokenize=False)


def test_threads_do_not_change_each_others_tokens() -> None:
    """Special tokens that one request spells are no reason to take the template's for text in another."""
    form = shape("bytes")[1]
    encoder = Encoder("m", portable("bytes"), form.vocabulary)
    typed, plain = ([{"role": "user", "content": text * 50}] for text in ("<|im_end|> ", "hello "))
    wanted = [encoder.conversation(typed), encoder.conversation(plain)]
    with ThreadPoolExecutor(4) as threads:
        got = list(threads.map(encoder.conversation, [typed, plain] * 100))
    assert got == wanted * 100


class Spaced:
    """A pre-tokenizer in Python."""

    def pre_tokenize(self, text: Any) -> None:
        text.split(lambda _, part: part.split(" "), "removed")


class Shouting(PreTrainedTokenizerFast):
    """A tokenizer that does more than its data say."""

    def _encode_plus(self, text: Any, *args: Any, **more: Any) -> Any:
        return super()._encode_plus(text.upper(), *args, **more)


def test_what_is_more_than_its_data_stays_with_the_replica() -> None:
    assert form_of(Shouting(tokenizer_object=byte_level()), 260, frozenset()) is None
    spaced = wrapped(byte_level())
    spaced.backend_tokenizer.pre_tokenizer = pre_tokenizers.PreTokenizer.custom(Spaced())
    assert form_of(spaced, 260, frozenset()) is None
    library = OwnLibrary(Shouting(tokenizer_object=byte_level()))
    assert Encoder("m", library, 260).text("ab") == library.ids("AB", whole=True)


def test_models_of_one_tokenizer_have_one_digest_and_others_another() -> None:
    form = shape("bytes")[1]
    assert form.digest == Form.unpack(form.pack()).digest and len(form.pack()) < len(form.tokenizer)
    others = [shape(name)[1] for name in SHAPES if name != "bytes"]
    assert len({each.digest for each in [form, *others, replace(form, ends=frozenset({3}))]}) == len(SHAPES) + 1


def written(made: Tokenizer) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(made.to_str())
    return data


def lossy(change: Callable[[Tokenizer], Any], made: Tokenizer) -> dict[str, Any]:
    change(made)
    return written(made)


def test_how_much_text_a_token_stands_for_is_known_where_no_text_is_lost() -> None:
    assert characters_per_token(written(byte_level())) == len("<|endoftext|>")
    assert characters_per_token(written(byte_fallback())) == len("<0x00>")
    assert characters_per_token(lossy(lambda t: setattr(t, "normalizer", normalizers.NFC()), byte_level())) == 4 * 13


@pytest.mark.parametrize(
    "data",
    [
        written(words(9)),
        lossy(lambda t: setattr(t, "normalizer", normalizers.Strip()), byte_level()),
        lossy(lambda t: setattr(t, "normalizer", normalizers.Replace(" ", "")), byte_level()),
        lossy(lambda t: setattr(t, "normalizer", normalizers.BertNormalizer()), byte_level()),
        lossy(lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.WhitespaceSplit()), byte_fallback()),
        lossy(lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.Split(" ", "removed")), byte_fallback()),
        lossy(lambda t: setattr(t, "pre_tokenizer", None), byte_level()),
        lossy(lambda t: t.add_tokens([AddedToken("<x>", rstrip=True)]), byte_level()),
    ],
)
def test_where_text_can_be_lost_no_length_is_too_long(data: dict[str, Any]) -> None:
    assert characters_per_token(data) is None
