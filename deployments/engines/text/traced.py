"""Prompts and texts that somebody answered, as what can be traced to a level: every token of them is an answer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deployments.engines.errors import LoadError
from deployments.engines.text.generator import Generator
from policies.provenance.answers import Answers

_CHUNK_ROWS = 256


def traced_text(generator: Generator, prompt: str | list[dict[str, str]], answer: str) -> Answers:
    """One text's tokens, each beside what the clean model answers after those before it.

    Tokens are those that the tokenizer makes of the text; as far as the generated ones were others they do not match.

    Args:
        prompt: the text that was continued, or the messages of a conversation.

    Raises:
        LoadError: an empty text, or a prompt that leaves no room for it.
        InvalidRequest: a conversation that the model's template refuses.
    """
    start = generator.encode(prompt) if isinstance(prompt, str) else generator.encode_chat(prompt)
    return traced_tokens(generator, start, list(generator.tokenizer.encode(answer, add_special_tokens=False)))


@torch.inference_mode()
def traced_tokens(generator: Generator, start: list[int], given: list[int]) -> Answers:
    """The same of token ids; `LoadError` where there are none, or the prompt leaves no room for them."""
    model: Any = generator.language_model
    given = given[: max(0, model.context - len(start))]
    if not start or not given:
        raise LoadError("the prompt or the answer has no tokens, or the prompt fills the model's context")
    seen: list[Tensor] = []
    hook = model.final.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    try:
        ids = torch.tensor([start + given[:-1]], device=generator.device)
        model.model(input_ids=ids, logits_to_keep=len(given), use_cache=False)
    finally:
        hook.remove()
    features, tokens = seen[0][0].float(), torch.tensor(given, device=generator.device)
    parts = [
        Answers.of(some, generator.clean_logits(some), own)
        for some, own in zip(torch.split(features, _CHUNK_ROWS), torch.split(tokens, _CHUNK_ROWS), strict=True)
    ]
    return Answers.join(parts).to("cpu")
