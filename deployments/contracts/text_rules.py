"""What may be asked of a text model: rules that the gateway applies before admission, and the engine again."""

from __future__ import annotations

from policies.errors import InvalidRequest, NotEntitled
from policies.terms import Disclosure


def check_text_disclosure(
    disclosure: Disclosure,
    *,
    logprobs: int | None,
    biased: bool,
    grammar: str | None = None,
    count_param: str = "top_logprobs",
) -> None:
    """Refuse what would reveal more than a level discloses.

    A sweep of `logit_bias` measures logits as well as log-probabilities tell them, so both need the same grant. So does
    a grammar: which of two texts comes, where nothing else may, tells which has the higher logits.

    Args:
        logprobs: how many likeliest tokens are asked for at each place; None where no log-probabilities are.
        biased: whether the request sets `logit_bias`.
        grammar: the field that says what the answer must be, where one does.
        count_param: the field that `logprobs` came in.

    Raises:
        NotEntitled: names the parameter and the tier's field that would grant it.
    """
    if not disclosure.logprobs:
        asked = [("logprobs", logprobs is not None), ("logit_bias", biased), (grammar or "", grammar is not None)]
        for param, is_asked in asked:
            if is_asked:
                raise NotEntitled(
                    f"{param} is not part of this key's terms at this level; its tier needs the field 'logprobs'.",
                    param=param,
                    code="logprobs_not_entitled",
                )
    if logprobs is not None and disclosure.labels is not None and logprobs > disclosure.labels:
        raise NotEntitled(
            f"This key's terms disclose {disclosure.labels} label(s) at this level (its tier's field 'labels'),"
            f" so at most as many of the likeliest tokens, not {logprobs}.",
            param=count_param,
            code="logprobs_not_entitled",
        )


def check_context(model_id: str, context: int, prompt: int, answer: int, *, param: str) -> None:
    """Refuse what does not fit a model's context.

    Args:
        context: tokens of prompt and answer together.
        prompt: tokens of the prompt.
        answer: most tokens of the answer.
        param: the field that the prompt came in.

    Raises:
        InvalidRequest: an empty prompt, or both beyond `context`; the message has the numbers.
    """
    if not prompt:
        raise InvalidRequest("The prompt holds no tokens.", param=param, code="invalid_value")
    if prompt + answer > context:
        raise InvalidRequest(
            f"The context of {model_id} is {context} tokens, but the prompt takes {prompt} and the answer up to"
            f" {answer}; shorten the prompt or lower max_tokens.",
            param=param,
            code="context_length_exceeded",
        )
