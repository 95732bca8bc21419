"""Whether two greedy answers to one request part at a tie: the two highest modulated logits of that step."""

from __future__ import annotations

import torch

from benchmarks.text_requests import TIERS, Wish
from deployments.engines.generator import Generator
from policies.layer import RowTerms

TIE = 1e-4
"""Logits nearer than this may change places where a batch has another shape."""


@torch.no_grad()
def margin_where_parted(engine: Generator, wish: Wish, one: str, other: str) -> str:
    """How near the two highest logits come, at the nearest step up to the one at which the answers part.

    The texts are answered again step by step, alone: the tokens of `one` as far as they spell a common beginning.
    """
    if wish.seed is not None:
        return "sampled: not judged"
    layer, model = engine.layer, engine.language_model.model
    terms = layer.compile([RowTerms(dict(TIERS)[wish.tier])])
    chat = wish.kind == "chat"
    ids = engine.encode_chat([{"role": "user", "content": wish.prompt}]) if chat else engine.encode(wish.prompt)
    start, features = len(ids), []
    hook = layer.final.register_forward_pre_hook(lambda _module, inputs: features.append(inputs[0][0, -1:]))
    nearest = float("inf")
    try:
        for step in range(wish.tokens):
            clean = model(input_ids=torch.tensor([ids]), use_cache=False, logits_to_keep=1).logits[0, -1:]
            logits = layer.modulate(features.pop(), clean, terms).logits[0]
            first, second = logits.topk(2).values.tolist()
            nearest = min(nearest, first - second)
            ids.append(int(logits.argmax()))
            text = str(engine.tokenizer.decode(ids[start:], skip_special_tokens=True))
            if not (one.startswith(text) and other.startswith(text)):
                kind = "a tie" if first - second < TIE else "NOT A TIE"
                return f"parts at token {step + 1}, highest logits {first - second:.2e} apart: {kind}"
    finally:
        hook.remove()
    return f"never parts when answered again; nearest logits {nearest:.2e} apart"
