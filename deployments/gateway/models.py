"""The models as the gateway's service sees them; `serving/` says how they are reached."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Mapping
from typing import Any, Protocol

from deployments.contracts.catalog import ModelInfo
from deployments.contracts.spending import Spent


class Model(Protocol):
    """A model somewhere, behind one of its replicas."""

    async def call(self, method: str, *args: Any, deadline: float) -> Any:
        """What `method` of a replica answers.

        Args:
            deadline: loop time in seconds after which the call is cancelled.

        Raises:
            ServiceError: the replica's own, unchanged; DeadlineExceeded; Unavailable where the replica died.
        """

    def stream(self, method: str, *args: Any, deadline: float) -> AsyncGenerator[Any]:
        """What `method` of a replica yields; as `call`, and closing the iterator cancels the replica's work."""

    async def spent(self, call: str) -> Spent | None:
        """What a call had used that was cut short, by its number; None where no replica says so in time."""


class Models(Protocol):
    """What models there are."""

    @property
    def infos(self) -> Mapping[str, ModelInfo]:
        """Of the models that are ready, by id, what each says of itself."""

    def known(self) -> Collection[str]:
        """Ids of all models, ready or not."""

    def starting(self, *, own: bool) -> list[str]:
        """Ids of those that are not ready: of the gateway's own application, or that are applications."""

    def model(self, model_id: str) -> Model:
        """One of the known, to call it now."""
