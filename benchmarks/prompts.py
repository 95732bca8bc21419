"""What prompts cost a gateway: its processor time for a request, and how long its event loop is held meanwhile.

Through the whole HTTP application, a real store, and the served model's own tokenizer as a replica hands it on; the
model itself is a script. The watchdog is that of benchmarks.intake.

Usage: python -m benchmarks.prompts [--rounds 9]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import statistics
import tempfile
import time
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

import httpx
from transformers.utils import logging

from benchmarks.intake import late
from deployments.config import REPOSITORY, AppArgs, StoreArgs
from deployments.contracts.catalog import ModelInfo, TextDelta
from deployments.engines.text.loading.own_library import form_of
from deployments.engines.text.loading.sources import located
from deployments.engines.text.loading.tokenizers import load_tokenizer
from deployments.prompts.form import Form
from tenants.admin.admin import TenantAdmin
from tenants.store.embedded import EmbeddedValkey
from tests.deployments.gateway_support import Scripted, opened
from tests.deployments.text_support import SPEC

MOST = 130_000
"""Characters: all that a context of 2,048 tokens takes at 64 a token."""
TURN = {"role": "user", "content": "Tell me a story of the sea."}


def prompts() -> dict[str, list[dict[str, str]]]:
    """Conversations by name."""
    text = (REPOSITORY / "docs" / "operations.md").read_text()

    def said(content: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": content}]

    return {
        "a question": [TURN],
        "1,000 characters": said(text[:1000]),
        "4,000 characters": said(text[:4000]),
        "130,000 characters": said((text * 9)[:MOST]),
        "130,000 times a": said("a" * MOST),
        "130,000 digits": said("1" * MOST),
        "130,000 spaces": said(" " * MOST),
        "10,000 special tokens": said("<|im_end|>" * 10_000),
        "special tokens half typed": said("<|im_star" * (MOST // 9)),
        "1,000 messages": [TURN] * 1000,
    }


class Handing(Scripted):
    """A model that hands its tokenizer on, and answers with one token."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self._packed = form.pack()

    async def stream(self, method: str, *args: Any, deadline: float) -> AsyncGenerator[Any]:
        yield self._packed if method == "form" else TextDelta("Once", 1, "length", len(args[0][0]), 1)


def _form() -> Form:
    with located(SPEC) as source:
        tokenizer = load_tokenizer(SPEC, source)
    form = form_of(tokenizer, 49_152, frozenset({2}))
    assert form is not None
    return form


async def _asked(client: httpx.AsyncClient, headers: Mapping[str, str], messages: Any, rounds: int) -> str:
    """The cells of one prompt."""
    body = json.dumps({"model": SPEC.id, "messages": messages, "max_tokens": 1}).encode()
    statuses, spent = set[int](), list[float]()

    async def ask() -> None:
        began = time.process_time()
        answer = await client.post("/v1/chat/completions", content=body, headers=headers)
        spent.append((time.process_time() - began) * 1e3)
        statuses.add(answer.status_code)

    held = [await late(ask) for _ in range(rounds)]
    said = ", ".join(map(str, statuses))
    return f"{said} | {min(spent):.1f} ms | {min(held):.1f} ms | {statistics.median(held):.1f} ms"


async def measure(rounds: int, context: int) -> None:
    """Print a Markdown table."""
    form = _form()
    with tempfile.TemporaryDirectory() as folder, EmbeddedValkey(Path(folder) / "store") as valkey:
        args = AppArgs.model_validate(
            {
                "models": [{"id": SPEC.id, "task": "text-generation", "source": "none"}],
                "store": StoreArgs(redis_url=valkey.url, data_dir=folder),
                "gateway": {"bad_requests_per_s": 1e6, "deadline_s": 600},
            }
        )
        gateway = await opened(args)
        gateway.service.models = models = Handing(form)
        models.add(
            ModelInfo(id=SPEC.id, task=SPEC.task, classes=None, floor=0.1, context=context, form=form.digest, created=1)
        )

        async def fetched() -> None:
            while not gateway.service.prompts.has(models.infos[SPEC.id]):
                await asyncio.sleep(0.01)

        print(f"The tokenizer is read: the loop is held {await late(fetched):.0f} ms, once\n")
        gc.collect()
        gc.freeze()
        admin = TenantAdmin(gateway.store, who="benchmark")
        await admin.create_tier("gold", {"utility": "1.0"})
        await admin.create_tenant("acme", tier="gold")
        key = (await admin.create_key("acme"))[0]
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        transport = httpx.ASGITransport(gateway.__serve_build_asgi_app__())
        print("| prompt | status | processor time, least | loop held, least | median |\n|---|---|---|---|---|")
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway", timeout=None) as client:
            for name, messages in prompts().items():
                print(f"| {name} | {await _asked(client, headers, messages, rounds)} |")
        await type(gateway).__mro__[1].__del__(gateway)  # type: ignore[attr-defined]


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--context", type=int, default=200_000, help="tokens; as large, nothing is refused for it")
    logging.set_verbosity_error()
    args = parser.parse_args()
    asyncio.run(measure(args.rounds, args.context))


if __name__ == "__main__":
    main()
