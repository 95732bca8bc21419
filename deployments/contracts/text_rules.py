"""What may be asked of a text model: rules that the gateway applies before admission, and the engine again."""

from __future__ import annotations

from collections.abc import Sequence

from deployments.contracts.grammar import Grammar
from policies.errors import InvalidRequest, NotEntitled
from policies.terms import Disclosure


def probes_of(logit_bias: object, repetition_penalty: float, grammar: Grammar | None = None) -> tuple[str, ...]:
    """Fields of a request that measure logits as well as log-probabilities tell them, and need the same grant.

    A sweep of `logit_bias` does. So does a repetition penalty: it takes any token that a client writes into the prompt
    out of the answer, so that the next likely one is seen. And so does a grammar: which of two texts comes, where
    nothing else may, tells which of them has the higher logits.
    """
    given = (("logit_bias", bool(logit_bias)), ("repetition_penalty", repetition_penalty != 1.0))
    return (*(name for name, asked in given if asked), *([] if grammar is None else [grammar.param]))


def check_text_disclosure(
    disclosure: Disclosure, *, logprobs: int | None, probes: Sequence[str], count_param: str = "top_logprobs"
) -> None:
    """Refuse what would reveal more than a level discloses.

    Args:
        logprobs: how many likeliest tokens are asked for at each place; None where no log-probabilities are.
        probes: fields of the request that measure logits, from `probes_of`.
        count_param: the field that `logprobs` came in.

    Raises:
        NotEntitled: names the parameter and the tier's field that would grant it.
    """
    if not disclosure.logprobs:
        asked = [*(["logprobs"] if logprobs is not None else []), *probes]
        if asked:
            raise NotEntitled(
                f"{asked[0]} is not part of this key's terms at this level; its tier needs the field 'logprobs'.",
                param=asked[0],
                code="logprobs_not_entitled",
            )
    if logprobs is not None and disclosure.labels is not None and logprobs > disclosure.labels:
        raise NotEntitled(
            f"This key's terms disclose {disclosure.labels} label(s) at this level (its tier's field 'labels'),"
            f" so at most as many of the likeliest tokens, not {logprobs}.",
            param=count_param,
            code="logprobs_not_entitled",
        )


def check_context(context: int, prompt: int, answer: int, *, param: str) -> None:
    """Refuse what does not fit a model's context.

    Args:
        context: tokens of prompt and answer together.
        prompt: tokens of the prompt.
        answer: most tokens of the answer.
        param: the field that the prompt came in.

    Raises:
        InvalidRequest: an empty prompt, or both beyond `context`; the message is OpenAI's, with the numbers.
    """
    if not prompt:
        raise InvalidRequest("The prompt holds no tokens.", param=param, code="invalid_value")
    if prompt + answer > context:
        said = f"your {param} resulted in {prompt} tokens"
        if answer > 1:
            said = f"you requested {prompt + answer} tokens ({prompt} in the {param}, {answer} in the completion)"
        raise beyond_context(context, said, param=param)


def beyond_context(context: int, said: str, *, param: str) -> InvalidRequest:
    """The refusal of a prompt beyond a model's context, in the sentences of OpenAI's by which clients know it.

    Args:
        context: tokens of prompt and answer together.
        said: what was sent.
        param: the field that the prompt came in.
    """
    return InvalidRequest(
        f"This model's maximum context length is {context} tokens. However, {said}. Please reduce the length of the"
        f" {param}.",
        param=param,
        code="context_length_exceeded",
    )
