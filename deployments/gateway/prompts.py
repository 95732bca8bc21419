"""Prompts to tokens in the gateway: each tokenizer comes once from a replica, and what takes long gets a thread."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from deployments.contracts.catalog import ModelInfo
from deployments.gateway.models import Model
from deployments.prompts.encoder import Conversation, Encoder, Texts, characters_of
from deployments.prompts.form import Form
from deployments.prompts.library import Portable
from deployments.queues.fair_pool import FairPool
from policies.errors import DeadlineExceeded
from policies.terms import Share

logger = logging.getLogger("deployments.gateway")

SHORT = 1024
"""Characters that are encoded at once: in less than a millisecond."""
WAITING = 16
"""Long prompts that one tenant may have waiting."""
FETCH_S, RETRY_S = 60.0, 10.0
_S_PER_CHARACTER = 1e-6
_EACH = 32
_IDS_PER_CHARACTER = 16
"""Ids that are looked at in the time that a character takes."""
Prompt = Conversation | Texts


def size(prompt: Prompt) -> int:
    """Characters that there are to encode, about; a message or a text takes as long as some more of them."""
    return sum(_EACH + _size(part) for part in prompt)


class Prompts:
    """The tokenizers of the models that a gateway serves, and long prompts that wait to be encoded, fair by tenant.

    Until a tokenizer is here, and where a model's cannot be handed on, its replica encodes.
    """

    def __init__(self) -> None:
        self._libraries: dict[str, tuple[Form, Portable]] = {}
        self._encoders: dict[tuple[str, str], Encoder] = {}
        self._fetching: dict[str, asyncio.Task[None]] = {}
        self._not_before: dict[str, float] = {}
        self._pool: FairPool[tuple[Encoder, Prompt], list[list[int]]] = FairPool(
            _encoded, workers=1, queue_bound=WAITING, cost=lambda item: size(item[1]) * _S_PER_CHARACTER
        )

    async def aclose(self) -> None:
        """Fetch no more, and end the thread."""
        for task in self._fetching.values():
            task.cancel()
        await asyncio.gather(*self._fetching.values(), return_exceptions=True)
        self._pool.close()

    async def encode(
        self, info: ModelInfo, model: Model, prompt: Prompt, share: Share, *, deadline: float
    ) -> list[list[int]]:
        """Token ids of a conversation, or of each text.

        Args:
            deadline: loop time in seconds.

        Raises:
            InvalidRequest: as `Encoder.prompts`.
            DeadlineExceeded: it has waited for so long.
            Unavailable: this tenant has many waiting already, or the replica that is asked is away.
        """
        encoder = self._encoder(info)
        if encoder is None:
            self.want(info, model)
            encoded: list[list[int]] = await model.call("encode", prompt, share, deadline=deadline)
            return encoded
        if size(prompt) <= SHORT:
            return _encoded((encoder, prompt))
        try:
            async with asyncio.timeout_at(deadline):
                return await self._pool.submit((encoder, prompt), share)
        except TimeoutError:
            raise DeadlineExceeded(
                "The prompt waited longer to be encoded than this deployment allows; try again when it is less busy.",
                code="deadline_exceeded",
            ) from None

    def has(self, info: ModelInfo) -> bool:
        """Whether a model's prompts are encoded here."""
        return info.form in self._libraries

    def lacks(self, info: ModelInfo) -> bool:
        """Whether a model's tokenizer is to be fetched: it is not here nor on its way, and has not just failed."""
        digest, now = info.form, asyncio.get_running_loop().time()
        if digest is None or self.has(info) or digest in self._fetching:
            return False
        return now >= self._not_before.get(digest, now)

    def want(self, info: ModelInfo, model: Model) -> None:
        """Begin to fetch a model's tokenizer where this gateway lacks it."""
        digest = info.form
        if digest is None or not self.lacks(info):
            return
        self._fetching[digest] = task = asyncio.create_task(self._fetch(digest, model), name=f"tokenizer-{info.id}")
        task.add_done_callback(lambda _: self._fetching.pop(digest, None))

    def keep(self, infos: Iterable[ModelInfo]) -> None:
        """Drop what none of these models uses."""
        kept = {(info.id, info.form) for info in infos}
        forms = {form for _, form in kept}
        self._encoders = {key: encoder for key, encoder in self._encoders.items() if key in kept}
        self._libraries = {digest: one for digest, one in self._libraries.items() if digest in forms}
        self._not_before = {digest: at for digest, at in self._not_before.items() if digest in forms}

    def _encoder(self, info: ModelInfo) -> Encoder | None:
        if info.form is None or not self.has(info):
            return None
        key = (info.id, info.form)
        if key not in self._encoders:
            form, library = self._libraries[info.form]
            self._encoders[key] = Encoder(info.id, library, form.vocabulary, form.ends)
        return self._encoders[key]

    async def _fetch(self, digest: str, model: Model) -> None:
        loop = asyncio.get_running_loop()
        try:
            parts = [part async for part in model.stream("form", deadline=loop.time() + FETCH_S)]
            # The library holds the interpreter's lock while it reads one: some 0.1 s a megabyte, once for a tokenizer.
            self._libraries[digest] = await asyncio.to_thread(_read, b"".join(parts), digest)
        except Exception as error:  # the replica goes on encoding
            self._not_before[digest] = loop.time() + RETRY_S
            logger.warning("no tokenizer for prompts came from a replica, which encodes them: %s", error)


def _read(packed: bytes, digest: str) -> tuple[Form, Portable]:
    form = Form.unpack(packed)
    if form.digest != digest:
        raise ValueError("it is another than was announced")
    return form, Portable(form)


def _encoded(item: tuple[Encoder, Prompt]) -> list[list[int]]:
    encoder, prompt = item
    return encoder.prompts(prompt)[1]


def _size(part: object) -> int:
    if isinstance(part, list):
        return len(part) // _IDS_PER_CHARACTER
    return characters_of(part)
