"""Conversations to tokens by a model's own chat template: what clients write is text, whatever it looks like."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any

from deployments.contracts.tools import TOOLS_ROLE, CallForm
from deployments.prompts.alternatives import any_of
from deployments.prompts.library import Library
from deployments.prompts.tool_turns import OPEN, Manner, in_words, manner_of, one_by_one, told
from policies.errors import InvalidRequest, first_line

ROLES = ("system", "user", "assistant", "tool")
_SYSTEM, _USER, _ANSWER = "sYsTeM5", "uSeR5", "aNsWeR5"
"""Texts that no template has of its own."""
_MARK = "\ue000{}-{}\ue001"
"""Stands for a special token that a client typed while the template is filled: a number of this conversation's own,
which nobody can guess and type, and which token it is, between private characters."""

Message = Mapping[str, Any]


class Chat:
    """A tokenizer's chat template, in the form that it takes conversations in.

    Some templates have no system role (Gemma's, early Mistral's): the system's text then goes before the first user's.
    Some take a message as a list of parts. Which it is, is found out once by what comes out of the template.

    Args:
        model_id: for refusals.
        library: its tokenizer and template.
        ends: tokens that end an answer, which are no text either where a client types them.
    """

    def __init__(self, model_id: str, library: Library, ends: frozenset[int] = frozenset()) -> None:
        self._model_id, self._library, self._ends = model_id, library, ends
        self._in_parts, self._folded = self._form() if library.chats else (False, False)

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """A conversation's tokens, ready for the assistant's answer.

        A special token that a message's text spells is encoded as text: nobody ends a turn by typing `<|im_end|>`. A
        first turn of `TOOLS_ROLE` has the tools.

        Raises:
            InvalidRequest: no messages, an unknown role, no chat template, or one that refuses the conversation.
        """
        tools, messages = _parted(messages)
        self._check(messages)
        typed, own = list[str](), f"{secrets.randbelow(10**12):012d}"  # of one length: a template may count

        def mark(text: str) -> str:
            return self._marked(text, typed, own)

        turns = [{name: _each(value, mark) for name, value in message.items()} for message in messages]
        offered = [] if tools is None else _each(json.loads(tools["content"]), mark)
        try:
            if tools is not None and tools["form"] == CallForm.TOLD:
                turns, offered = told(turns, offered), []
            rendered = self._filled(turns, offered or None)
        except Exception as error:  # whatever a template does
            raise _invalid(
                f"The chat template of {self._model_id} refuses this conversation: {first_line(error)}", "invalid_value"
            ) from None
        return self._tokens(rendered, typed, own) if typed else self._library.ids(rendered, whole=False)

    def call_form(self) -> CallForm | None:
        """How the template has the model call tools; None where it cannot."""
        if not self._library.chats:
            return None
        if OPEN in [token.content for token in self._library.added.values() if token.special]:
            return None  # what a special token spells is left out of answers
        return self._manner.form if self._manner else None

    def turn_end(self) -> frozenset[int]:
        """The special token that the template sets behind an assistant's answer, if it does."""
        if not self._library.chats:
            return frozenset()
        turns = [{"role": "user", "content": _USER}, {"role": "assistant", "content": _ANSWER}]
        try:
            rendered = self._render(turns, None, prompt=False)
        except Exception:
            return frozenset()
        _, answer, after = rendered.rpartition(_ANSWER)
        tokens = self._library.ids(after.lstrip(), whole=False) if answer else []
        return frozenset(tokens[:1]) & self._special.keys()

    def _check(self, messages: Sequence[Message]) -> None:
        if not messages:
            raise _invalid("messages must hold at least one message.", "invalid_value")
        for index, message in enumerate(messages):
            if message.get("role") not in ROLES:
                raise InvalidRequest(
                    f"The role '{message.get('role')}' is unknown; use one of {', '.join(ROLES)}.",
                    param=f"messages[{index}].role",
                    code="unknown_role",
                )
        if not self._library.chats:
            raise _invalid(f"{self._model_id} has no chat template; use /v1/completions.", "no_chat_template")

    @cached_property
    def _manner(self) -> Manner | None:
        return manner_of(self._render)

    @cached_property
    def _special(self) -> dict[int, str]:
        """Tokens that control, and their texts."""
        added = self._library.added.items()
        return {at: token.content for at, token in added if token.special or at in self._ends}

    @cached_property
    def _spelled(self) -> re.Pattern[str]:
        return any_of(self._special.values())

    def _form(self) -> tuple[bool, bool]:
        """Whether the template takes messages in parts, and whether it has no system role."""
        turns = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": _USER}]
        for folded in (False, True):
            for in_parts in (False, True):
                self._in_parts, self._folded = in_parts, folded
                try:
                    rendered = self._render(turns, None)
                except Exception:
                    continue
                if _SYSTEM in rendered and _USER in rendered:
                    return in_parts, folded
        return False, False

    def _filled(self, turns: list[dict[str, Any]], tools: Any) -> str:
        """The filled template, with the calls of its turns as it takes them."""
        if not any(turn.get("tool_calls") for turn in turns):
            return self._render(turns, tools)
        if self._manner is not None and not self._manner.written:
            turns = in_words(turns)
        try:
            return self._render(turns, tools)
        except Exception:
            if (apart := one_by_one(turns)) == turns:
                raise
            return self._render(apart, tools)

    def _render(self, messages: Sequence[Message], tools: Any, prompt: bool = True) -> str:
        turns = [dict(message) for message in messages]
        while self._folded and [turn["role"] for turn in turns[:2]] in (["system", "user"], ["system", "system"]):
            system, after, *others = turns
            turns = [{**after, "content": f"{system['content']}\n\n{after['content']}"}, *others]
        if self._in_parts:
            turns = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
        return self._library.render(turns, tools, prompt=prompt)

    def _marked(self, text: str, typed: list[str], own: str) -> str:
        """A client's text with marks in place of special tokens, which are noted in `typed`."""

        def mark(found: re.Match[str]) -> str:
            typed.append(found[0])
            return _MARK.format(own, len(typed) - 1)

        return self._spelled.sub(mark, text)

    def _tokens(self, rendered: str, typed: list[str], own: str) -> list[int]:
        """What the library makes of a filled template, but for typed special tokens, which become their text's."""
        pieces = re.split(_MARK.format(own, r"(\d+)"), rendered)
        texts = [typed[int(piece)] if at % 2 else piece for at, piece in enumerate(pieces)]
        whole = "".join(texts)
        ends = list(accumulate(map(len, texts)))
        of_clients = {
            at for end, text in zip(ends[1::2], texts[1::2], strict=True) for at in range(end - len(text), end)
        }
        out, spelled = list[int](), dict[str, list[int]]()
        for token, (start, end) in self._library.pieces(whole):
            if token in self._special and not of_clients.isdisjoint(range(start, end)):
                text = whole[start:end]
                out += spelled.get(text) or spelled.setdefault(text, self._as_text(text))
            else:
                out.append(token)
        return out

    def _as_text(self, text: str) -> list[int]:
        ids = self._library.spelled(text)
        if len(text) == 1 or self._special.keys().isdisjoint(ids):
            return ids
        # A token that ends answers without being marked special is found in any whole text.
        return self._as_text(text[:1]) + self._as_text(text[1:])


def _parted(messages: Sequence[Message]) -> tuple[Message | None, Sequence[Message]]:
    """The turn that has the tools, and the others."""
    if messages and messages[0].get("role") == TOOLS_ROLE:
        return messages[0], messages[1:]
    return None, messages


def _each(value: Any, change: Callable[[str], str]) -> Any:
    """JSON with each of its texts changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_each(item, change) for item in value]
    return {change(k): _each(v, change) for k, v in value.items()} if isinstance(value, dict) else value


def _invalid(message: str, code: str) -> InvalidRequest:
    return InvalidRequest(message, param="messages", code=code)
