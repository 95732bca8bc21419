"""What turns text into tokens: the `tokenizers` library and jinja2 alone, so that gateways can have it too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from tokenizers import AddedToken, Tokenizer

from deployments.prompts.form import Form
from deployments.prompts.templates import Template, Turn


class Library(Protocol):
    """A tokenizer and its chat template. Safe from any thread."""

    @property
    def chats(self) -> bool:
        """Whether there is a chat template."""

    @property
    def added(self) -> Mapping[int, AddedToken]:
        """Tokens beside the model's words, special ones among them, by id."""

    def render(self, turns: Sequence[Turn], tools: Any = None, *, prompt: bool) -> str:
        """The filled chat template; `tools` as OpenAI has them. Raises whatever the template does."""

    def ids(self, text: str, *, whole: bool) -> list[int]:
        """A text's tokens; `whole`: with those that the model wants at its begin and end."""

    def pieces(self, text: str) -> Iterable[tuple[int, tuple[int, int]]]:
        """As `ids`, each token with the characters from and to which it stands for."""

    def spelled(self, text: str) -> list[int]:
        """As `ids`, special tokens taken for text."""


class Portable:
    """A `Form` at work.

    Raises:
        Exception: the library's plain one, where it cannot read the tokenizer; jinja2's of the template.
    """

    def __init__(self, form: Form) -> None:
        self._tokenizer = _plain(Tokenizer.from_str(form.tokenizer), form.splits)
        self._template = None if form.template is None else Template(form.template, form.variables)
        with_tools = form.tool_template
        self._with_tools = self._template if with_tools is None else Template(with_tools, form.variables)
        self.added: Mapping[int, AddedToken] = self._tokenizer.get_added_tokens_decoder()
        self._spelling = self._without_special(form.ends)

    @property
    def chats(self) -> bool:
        """Whether there is a chat template."""
        return self._template is not None

    def render(self, turns: Sequence[Turn], tools: Any = None, *, prompt: bool) -> str:
        """The filled chat template; `tools` as OpenAI has them. Raises whatever the template does."""
        template = self._template if tools is None else self._with_tools
        if template is None:
            raise ValueError("there is no chat template")
        return template.render(turns, tools, prompt=prompt)

    def ids(self, text: str, *, whole: bool) -> list[int]:
        """A text's tokens; `whole`: with those that the model wants at its begin and end."""
        # Of one text too: `encode` would hold the interpreter's lock meanwhile, and with it the event loop.
        ids: list[int] = self._tokenizer.encode_batch_fast([text], add_special_tokens=whole)[0].ids
        return ids

    def pieces(self, text: str) -> Iterable[tuple[int, tuple[int, int]]]:
        """As `ids`, each token with the characters from and to which it stands for."""
        (encoded,) = self._tokenizer.encode_batch([text], add_special_tokens=False)
        return zip(encoded.ids, encoded.offsets, strict=True)

    def spelled(self, text: str) -> list[int]:
        """As `ids`, special tokens taken for text."""
        ids: list[int] = self._spelling.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return ids

    def _without_special(self, ends: frozenset[int]) -> Tokenizer:
        """A tokenizer of the same model, held once, that knows no special tokens nor ends of answers.

        Its own, since to switch the other over and back would change what another thread encodes meanwhile.
        """
        made = Tokenizer(self._tokenizer.model)
        if self._tokenizer.normalizer is not None:
            made.normalizer = self._tokenizer.normalizer
        if self._tokenizer.pre_tokenizer is not None:
            made.pre_tokenizer = self._tokenizer.pre_tokenizer
        for at, token in sorted(self.added.items()):  # in order, so that each has its id again
            if token.special or at in ends:
                token = AddedToken(token.content, special=True, normalized=token.normalized)
            (made.add_special_tokens if token.special else made.add_tokens)([token])
        return _plain(made, True)


def _plain(tokenizer: Tokenizer, splits: bool) -> Tokenizer:
    """As transformers uses it: nothing cut off, nothing filled up."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = splits
    return tokenizer
