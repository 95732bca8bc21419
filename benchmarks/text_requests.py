"""The requests of the soak: good ones of all kinds, drawn from a seed, and bad ones with the status they deserve."""

from __future__ import annotations

import dataclasses
import json
import random
from dataclasses import dataclass
from typing import Any

from benchmarks.text_support import TEXT_MODEL, TOPICS

TIERS = (("full", 1.0), ("middle", 0.9), ("low", 0.7))
FILLER = "The ferry left at nine and the harbour was quiet again, as it had been every morning that summer. "


@dataclass(frozen=True)
class Wish:
    """A good request.

    Attributes:
        kind: `chat` or `completion`.
        tokens: most of its answer.
        seed: of a sampled answer; None is greedy.
    """

    tier: str
    kind: str
    prompt: str
    tokens: int
    seed: int | None = None

    @property
    def path(self) -> str:
        """Of the API."""
        return "/v1/chat/completions" if self.kind == "chat" else "/v1/completions"

    def body(self) -> dict[str, Any]:
        """What is sent."""
        asked: dict[str, Any] = {"model": TEXT_MODEL, "max_tokens": self.tokens, "temperature": 0}
        if self.seed is not None:
            asked |= {"temperature": 0.9, "top_p": 0.95, "seed": self.seed}
        if self.kind == "chat":
            return asked | {"messages": [{"role": "user", "content": self.prompt}]}
        return asked | {"prompt": self.prompt}

    def longer(self) -> Wish:
        """The same with an answer that nobody waits for."""
        return dataclasses.replace(self, tokens=200)

    def text_of(self, answer: dict[str, Any]) -> str:
        """The text of a whole answer."""
        choice = answer["choices"][0]
        return str(choice["message"]["content"] if self.kind == "chat" else choice["text"])

    def pieces_of(self, line: str) -> list[str]:
        """The text of one line of a stream.

        Raises:
            RuntimeError: it is an error event.
        """
        if not line.startswith("data: ") or line == "data: [DONE]":
            return []
        event = json.loads(line[6:])
        if "error" in event:
            raise RuntimeError(str(event["error"]))
        texts = [c["delta"].get("content") if self.kind == "chat" else c["text"] for c in event["choices"]]
        return [text for text in texts if text]


def wishes(rng: random.Random, count: int) -> list[Wish]:
    """Different good requests: three tiers, two kinds, prompts of 6 to 130 tokens, answers of 1 to 16."""
    found: set[Wish] = set()
    while len(found) < count:
        prompt = FILLER * rng.choice((*[0] * 12, 1, 4)) + f"A text about {rng.choice(TOPICS)}:"
        seed = rng.randrange(1000) if rng.random() < 0.2 else None
        tier, kind = rng.choice(TIERS)[0], rng.choice(("chat", "completion", "completion"))
        found.add(Wish(tier, kind, prompt, rng.choice((1, 1, 2, 4, 8, 16)), seed))
    return sorted(found, key=str)


@dataclass(frozen=True)
class Bad:
    """A request that is refused with `status`: `changes` to a good body, or another text in its place."""

    status: int
    changes: dict[str, Any]
    content: str | None = None
    tier: str = "full"


BAD = {
    "temperature": Bad(400, {"temperature": 3}),
    "no tokens": Bad(400, {"max_tokens": 0}),
    "context": Bad(400, {"max_tokens": 100_000}),
    "long prompt": Bad(400, {"messages": [{"role": "user", "content": FILLER * 200}]}),
    "no messages": Bad(400, {"messages": []}),
    "role": Bad(400, {"messages": [{"role": "pirate", "content": "Hi"}]}),
    "unknown field": Bad(400, {"colour": "green"}),
    "not JSON": Bad(400, {}, content='{"model": '),
    "model": Bad(404, {"model": "no-such-model"}),
    "level": Bad(403, {"utility": 1.0}, tier="low"),
    "key": Bad(401, {}, tier="nobody"),
}


def bad_request(rng: random.Random, keys: dict[str, str]) -> tuple[str, dict[str, Any]]:
    """A bad request's name in `BAD`, and the arguments of `httpx.AsyncClient.build_request`."""
    name = rng.choice(list(BAD))
    bad = BAD[name]
    body = Wish(bad.tier, "chat", "Hi", 4).body() | bad.changes
    headers = {"authorization": f"Bearer {keys.get(bad.tier, 'unknown')}", "content-type": "application/json"}
    content = bad.content if bad.content is not None else json.dumps(body)
    return name, {"method": "POST", "url": "/v1/chat/completions", "content": content, "headers": headers}
