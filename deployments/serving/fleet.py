"""The models that a gateway routes to: those of its own application, and those that come and go as applications."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from deployments.contracts.catalog import ModelInfo
from deployments.serving.calls import RemoteModel

logger = logging.getLogger("deployments.serving.fleet")

PERIOD_S = 5.0
"""How often a model is asked what it serves, and Serve which applications there are."""
TIMEOUT_S = 10.0
PENDING_PERIOD_S = 1.0
"""How often a model is asked whose levels are being solved."""
STARTING_PERIOD_S = 0.5
PREFIX = "model-"
"""Begins the name of an application that is one model; its only deployment is named after the model's id."""
Applications = Callable[[], Mapping[str, Mapping[str, DeploymentHandle[Any]]]]
"""Asks Serve for the applications that are models: of each a handle by id, none while it is built. May block."""


class Fleet:
    """What models there are, and what each says of itself.

    Args:
        bound: a handle for each model of the gateway's own application, by id; these never go.
        applications: asks for all others.

    Attributes:
        handles: of every model, by id.
        infos: of those that are ready.
    """

    def __init__(self, bound: Mapping[str, DeploymentHandle[Any]], applications: Applications) -> None:
        self.handles: dict[str, DeploymentHandle[Any]] = dict(bound)
        self.infos: dict[str, ModelInfo] = {}
        self._applications = applications
        self._of: dict[str, str] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._looking: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Ask from now on."""
        for model_id in self.handles:
            self._ask_on(model_id)
        self._looking = asyncio.create_task(self._look(), name="fleet")

    async def aclose(self) -> None:
        """Ask no more."""
        tasks = [*self._asking.values(), *([self._looking] if self._looking else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def known(self) -> Collection[str]:
        """Ids of all models, ready or not."""
        return self.handles.keys()

    def model(self, model_id: str) -> RemoteModel:
        """The way to one of the known."""
        return RemoteModel(self.handles[model_id])

    def starting(self) -> list[str]:
        """Models that are not ready."""
        return [model_id for model_id in self.handles if model_id not in self.infos]

    async def _look(self) -> None:
        while True:
            try:
                self._take(await asyncio.to_thread(self._applications))
            except Exception as error:  # the controller is away: what is known stands
                logger.warning("applications are not known: %s", type(error).__name__)
            await asyncio.sleep(PERIOD_S)

    def _take(self, found: Mapping[str, Mapping[str, DeploymentHandle[Any]]]) -> None:
        there = {model_id: (name, handle) for name, own in found.items() for model_id, handle in own.items()}
        for model_id in there.keys() - self.handles.keys():
            logger.info("model %s has come", model_id)
            self._of[model_id], self.handles[model_id] = there[model_id]
            self._ask_on(model_id)
        for model_id, name in list(self._of.items()):
            if model_id in there or found.get(name) == {}:  # a new version of it is being built
                continue
            logger.info("model %s has gone", model_id)
            self._asking.pop(model_id).cancel()
            del self.handles[model_id], self._of[model_id]
            self.infos.pop(model_id, None)

    def _ask_on(self, model_id: str) -> None:
        self._asking[model_id] = asyncio.create_task(self._ask(model_id), name=f"fleet-{model_id}")

    async def _ask(self, model_id: str) -> None:
        """Ask a replica every few seconds what it serves; a model whose replicas have died is not ready."""
        handle: Any = self.handles[model_id]
        while True:
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    self.infos[model_id] = await handle.info.remote()
            except TimeoutError:  # slow is not gone: what is known of it stands
                logger.warning("model %s has not said what it serves for %g s", model_id, TIMEOUT_S)
            except Exception as error:  # Serve restarts what has died
                if self.infos.pop(model_id, None):
                    logger.warning("model %s does not answer: %s", model_id, type(error).__name__)
            known = self.infos.get(model_id)
            await asyncio.sleep(STARTING_PERIOD_S if not known else PENDING_PERIOD_S if known.pending else PERIOD_S)


def applications() -> dict[str, dict[str, DeploymentHandle[Any]]]:
    """The applications of this Serve instance that are models, those that are being removed left out."""
    if not in_replica():  # asked elsewhere, Serve would start a cluster
        return {}
    return {
        name: {model_id(own): serve.get_deployment_handle(own, app_name=name) for own in state.deployments}
        for name, state in serve.status().applications.items()
        if name.startswith(PREFIX) and state.status != "DELETING"
    }


def deployment_name(model_id: str) -> str:
    """What Serve calls a model: it makes file names of that, and an id may hold a slash. No id holds a colon."""
    return model_id.replace("/", ":")


def model_id(deployment_name: str) -> str:
    """The model that Serve calls so."""
    return deployment_name.replace(":", "/")


def in_replica() -> bool:
    """Whether this process is a replica of Serve's."""
    try:
        serve.get_replica_context()
    except RayServeException:
        return False
    return True
