"""Whether two greedy answers to one request part at a tie: the two highest modulated logits of that step."""

from __future__ import annotations

from benchmarks.text_requests import TIERS, Wish
from deployments.engines.text.calibration import answers
from deployments.engines.text.generator import Generator
from policies.head.slots import Setting

TIE = 1e-4
"""Logits nearer than this may change places where a batch has another shape."""


def margin_where_parted(engine: Generator, wish: Wish, one: str, other: str) -> str:
    """How near the two highest logits come, at the nearest step up to the one at which the answers part.

    The request is answered again, alone: as far as that answer spells a common beginning of the texts.
    """
    if wish.seed is not None:
        return "sampled: not judged"
    chat = wish.kind == "chat"
    ids = engine.encode_chat([{"role": "user", "content": wish.prompt}]) if chat else engine.encode(wish.prompt)
    setting = Setting(dict(TIERS)[wish.tier])
    (again,) = answers(engine, [(ids, setting)], steps=wish.tokens)
    logits = engine.clean_logits(again.features)
    if position := engine.head.position(setting):
        logits = logits + engine.head.phi(again.features) @ engine.head.matrix_at(position)
    nearest = float("inf")
    for step, row in enumerate(logits):
        first, second = row.topk(2).values.tolist()
        nearest = min(nearest, first - second)
        text = str(engine.tokenizer.decode(again.tokens[: step + 1], skip_special_tokens=True))
        if not (one.startswith(text) and other.startswith(text)):
            kind = "a tie" if first - second < TIE else "NOT A TIE"
            return f"parts at token {step + 1}, highest logits {first - second:.2e} apart: {kind}"
    return f"never parts when answered again; nearest logits {nearest:.2e} apart"
