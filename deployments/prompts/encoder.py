"""One model's prompts to tokens: the same in its replicas and in every gateway."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from deployments.prompts.chat import Chat, Message
from deployments.prompts.library import Library
from policies.errors import InvalidRequest

Conversation = Sequence[Mapping[str, Any]]
Texts = Sequence[str | list[int]]


def characters_of(part: Any) -> int:
    """Characters of a turn or of a text; of a text given as token ids, those."""
    if not isinstance(part, Mapping):
        return len(part)
    calls = part.get("tool_calls")
    return len(part["content"]) + (len(json.dumps(calls)) if calls else 0)


class Encoder:
    """What a model reads of a prompt. Safe from any thread.

    Args:
        model_id: for refusals.
        library: the model's tokenizer and chat template.
        vocabulary: ids are below it.
        ends: tokens that end an answer.
    """

    def __init__(self, model_id: str, library: Library, vocabulary: int, ends: frozenset[int] = frozenset()) -> None:
        self._model_id, self._library, self._vocabulary = model_id, library, vocabulary
        self.chat = Chat(model_id, library, ends)

    def prompts(self, prompt: Conversation | Texts) -> tuple[str, list[list[int]]]:
        """The field that a prompt came in, and its tokens: one list for a conversation, one for each text.

        Raises:
            InvalidRequest: as `conversation` and `text`.
        """
        if prompt and isinstance(prompt[0], Mapping):
            return "messages", [self.conversation(prompt)]  # type: ignore[arg-type]
        return "prompt", [self.text(text) for text in prompt]  # type: ignore[arg-type]

    def text(self, text: str | list[int]) -> list[int]:
        """A plain prompt's tokens, from its text or as they are.

        Raises:
            InvalidRequest: an id that is no token, or a text with one that the model was not made for.
        """
        return self.checked(self._library.ids(text, whole=True) if isinstance(text, str) else text, "prompt")

    def conversation(self, messages: Sequence[Message]) -> list[int]:
        """A conversation's tokens in the model's own chat template, ready for the assistant's answer.

        Raises:
            InvalidRequest: as `Chat.encode`, or a text with a token that the model was not made for.
        """
        return self.checked(self.chat.encode(messages), "messages")

    def checked(self, ids: list[int], param: str) -> list[int]:
        """The same ids, if all are tokens of the model's.

        Raises:
            InvalidRequest: one is none; names `param`.
        """
        if ids and not 0 <= min(ids) <= max(ids) < self._vocabulary:
            wrong = next(token for token in ids if not 0 <= token < self._vocabulary)
            raise InvalidRequest(
                f"{wrong} is no token of {self._model_id}; its ids are 0 to {self._vocabulary - 1}.",
                param=param,
                code="invalid_value",
            )
        return ids
