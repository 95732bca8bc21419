"""A tokenizer as transformers loaded it: handed on as data where that is all of it, else used as it is."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from deployments.prompts.form import Form
from deployments.prompts.library import Portable
from deployments.prompts.templates import Turn, other_names

_OWN_WAYS = ("__call__", "encode", "_encode_plus", "apply_chat_template", "get_chat_template")
"""Methods that a model's tokenizer may have otherwise, in Python."""
_PROBES = (
    *("", "Hello, world", " two  spaces \n\n\tand\r\nlines ", "é 漢字 😀 ﷺ ﬁ"),
    *("<s></s><unk> [INST] <|im_end|>", "0123456789" * 3),
)
_TURNS = ({"role": "user", "content": _PROBES[1]}, {"role": "assistant", "content": _PROBES[2]},
          {"role": "user", "content": _PROBES[3]})  # fmt: skip


class OwnLibrary:
    """As transformers does it: of tokenizers that compute in Python what no file of theirs says."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        # Each call sets the tokenizer's switches for itself.
        self._lock = threading.Lock()

    @property
    def chats(self) -> bool:
        """Whether there is a chat template."""
        return bool(self._tokenizer.chat_template)

    @property
    def added(self) -> Mapping[int, AddedToken]:
        """Tokens beside the model's words, special ones among them, by id."""
        added: Mapping[int, AddedToken] = self._tokenizer.added_tokens_decoder
        return added

    def render(self, turns: Sequence[Turn], tools: Any = None, *, prompt: bool) -> str:
        """The filled chat template; `tools` as OpenAI has them. Raises whatever the template does."""
        filled = self._tokenizer.apply_chat_template(
            list(turns), tools=tools, add_generation_prompt=prompt, tokenize=False, **other_names(tools)
        )
        return str(filled)

    def ids(self, text: str, *, whole: bool) -> list[int]:
        """A text's tokens; `whole`: with those that the model wants at its begin and end."""
        with self._lock:
            return list(self._tokenizer.encode(text, add_special_tokens=whole))

    def pieces(self, text: str) -> Iterable[tuple[int, tuple[int, int]]]:
        """As `ids`, each token with the characters from and to which it stands for."""
        with self._lock:
            encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)

    def spelled(self, text: str) -> list[int]:
        """As `ids`, special tokens taken for text."""
        with self._lock:
            return list(self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))


def form_of(tokenizer: Any, vocabulary: int, ends: frozenset[int]) -> Form | None:
    """All of a tokenizer as data; None where it does more than its data say.

    Args:
        vocabulary: the model's ids are below it.
        ends: tokens that end an answer.
    """
    if any(getattr(type(tokenizer), way, None) is not getattr(PreTrainedTokenizerFast, way) for way in _OWN_WAYS):
        return None
    try:
        written = tokenizer.backend_tokenizer.to_str()
        template, with_tools = _templates(tokenizer) if tokenizer.chat_template else (None, None)
        form = Form(
            written,
            vocabulary,
            template=template,
            variables=dict(tokenizer.special_tokens_map),
            ends=ends,
            splits=bool(tokenizer.split_special_tokens),
            tool_template=with_tools,
        )
        return form if _same(Portable(form), OwnLibrary(tokenizer)) else None
    except Exception:  # a part of it is Python's, or reads back otherwise
        return None


def _templates(tokenizer: Any) -> tuple[str, str | None]:
    """The chat template, and the one for tools where that is another: Hermes and Command R have theirs by names."""
    plain, with_tools = tokenizer.get_chat_template(), tokenizer.get_chat_template(tools=[])
    return plain, None if with_tools == plain else with_tools


def _same(portable: Portable, own: OwnLibrary) -> bool:
    """Whether two libraries make the same of some texts and of a conversation."""
    texts = [*_PROBES, *(token.content for token in own.added.values())]
    for text in texts:
        if portable.ids(text, whole=True) != own.ids(text, whole=True):
            return False
    return not own.chats or _rendered(portable) == _rendered(own)


def _rendered(library: Portable | OwnLibrary) -> str | None:
    try:
        return library.render(_TURNS, prompt=True)
    except Exception:  # a template that takes other turns, in both
        return None
