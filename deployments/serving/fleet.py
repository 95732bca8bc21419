"""The models that a gateway routes to: those of its own application, and those that come and go as applications."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from deployments.config import model_of
from deployments.contracts.catalog import ModelInfo
from deployments.serving.calls import RemoteModel

logger = logging.getLogger("deployments.serving.fleet")

PERIOD_S = 5.0
"""How often a model is asked what it serves, and Serve which applications there are."""
TIMEOUT_S = 10.0
PENDING_PERIOD_S = 1.0
"""How often a model is asked whose levels are being solved."""
STARTING_PERIOD_S = 0.5
SETTLING_S = 20.0
"""How long at most a gateway that starts waits for models that are up, and for applications that are being built."""
PREFIX = "model-"
"""Begins the name of an application that is one model; its only deployment is named after the model's id."""


@dataclass(frozen=True)
class Found:
    """A model as Serve knows it.

    Attributes:
        handle: of its replicas; None: the gateway's own application has it.
        sleeps: whether it has no replica while nobody calls (`min_replicas: 0`).
        up: whether it has a replica that answers.
    """

    handle: DeploymentHandle[Any] | None
    sleeps: bool = False
    up: bool = False


Applications = Callable[[], Mapping[str, Mapping[str, Found]]]
"""Asks Serve what models each application has, by id; none of one that is a model and being built. May block."""


class Fleet:
    """What models there are, and what each says of itself.

    A model that may sleep is asked until it is known, and then only after somebody has used it: to be asked wakes it,
    and keeps it awake.

    Args:
        bound: a handle for each model of the gateway's own application, by id; these never go.
        applications: asks for all others, and which of all sleep.

    Attributes:
        handles: of every model, by id.
        infos: of those that are ready.
    """

    def __init__(self, bound: Mapping[str, DeploymentHandle[Any]], applications: Applications) -> None:
        self.handles: dict[str, DeploymentHandle[Any]] = dict(bound)
        self.infos: dict[str, ModelInfo] = {}
        self._remotes: dict[str, RemoteModel] = {}
        self._applications = applications
        self._of: dict[str, str] = {}
        self._built_anew = False
        self._up: set[str] = set()
        self._sleeps: set[str] = set()
        self._used: set[str] = set()
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._looking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Ask from now on; returns once models that are up are known, so that no request meets a gateway before."""
        for model_id in self.handles:
            self._ask_on(model_id)
        await self._look_once()
        self._looking = asyncio.create_task(self._look(), name="fleet")
        with suppress(TimeoutError):
            async with asyncio.timeout(SETTLING_S):
                while self._built_anew or (self._up & self.handles.keys()) - self.infos.keys():
                    await asyncio.sleep(STARTING_PERIOD_S)
                    await self._look_once()

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
        """The way to one of the known, for a call, which wakes it where it sleeps."""
        self._used.add(model_id)
        handle, known = self.handles[model_id], self._remotes.get(model_id)
        if known is None or known.handle is not handle:
            known = self._remotes[model_id] = RemoteModel(handle)
        return known

    def starting(self, *, own: bool) -> list[str]:
        """Models that are not ready: those of the gateway's own application, or those that are applications."""
        return [m for m in self.handles if m not in self.infos and (m not in self._of) is own]

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(PERIOD_S)
            await self._look_once()

    async def _look_once(self) -> None:
        try:
            self._take(await asyncio.to_thread(self._applications))
        except Exception as error:  # the controller is away: what is known stands
            logger.warning("applications are not known: %s", type(error).__name__)

    def _take(self, found: Mapping[str, Mapping[str, Found]]) -> None:
        there = {model_id: (name, model) for name, own in found.items() for model_id, model in own.items()}
        self._built_anew = any(not own for own in found.values())
        self._up = {model_id for model_id, (_, model) in there.items() if model.up}
        self._sleeps = {model_id for model_id, (_, model) in there.items() if model.sleeps}
        for model_id in there.keys() - self.handles.keys():
            name, model = there[model_id]
            if model.handle is not None:
                logger.info("model %s has come", model_id)
                self._of[model_id], self.handles[model_id] = name, model.handle
                self._ask_on(model_id)
        for model_id, name in list(self._of.items()):
            if model_id in there or found.get(name) == {}:  # a new version of it is being built
                continue
            logger.info("model %s has gone", model_id)
            self._asking.pop(model_id).cancel()
            del self.handles[model_id], self._of[model_id]
            self._remotes.pop(model_id, None)
            self.infos.pop(model_id, None)

    def _ask_on(self, model_id: str) -> None:
        self._asking[model_id] = asyncio.create_task(self._ask(model_id), name=f"fleet-{model_id}")

    async def _ask(self, model_id: str) -> None:
        """Ask a replica every few seconds what it serves; a model whose replicas have died is not ready."""
        while True:
            known = self.infos.get(model_id)
            if model_id not in self._sleeps or not known or known.pending or model_id in self._used:
                await self._ask_once(model_id)
                known = self.infos.get(model_id)
            await asyncio.sleep(STARTING_PERIOD_S if not known else PENDING_PERIOD_S if known.pending else PERIOD_S)

    async def _ask_once(self, model_id: str) -> None:
        handle: Any = self.handles[model_id]
        self._used.discard(model_id)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                self.infos[model_id] = await handle.info.remote()
        except TimeoutError:  # slow is not gone: what is known of it stands
            logger.warning("model %s has not said what it serves for %g s", model_id, TIMEOUT_S)
        except Exception as error:  # Serve restarts what has died
            if self.infos.pop(model_id, None):
                logger.warning("model %s does not answer: %s", model_id, type(error).__name__)


def applications() -> dict[str, dict[str, Found]]:
    """What this Serve instance has of models, applications that are being removed left out."""
    if not in_replica():  # asked elsewhere, Serve would start a cluster
        return {}
    own = serve.get_replica_context().app_name
    # `serve.status` is made of the same details, less the deployments' configuration.
    client: Any = _get_global_client()
    details = client.get_serve_details()["applications"]
    return {
        name: {model_of(named): _found(named, name, name == own, state) for named, state in app["deployments"].items()}
        for name, app in details.items()
        if name == own or (name.startswith(PREFIX) and app["status"] != "DELETING")
    }


def _found(deployment: str, application: str, own: bool, state: Mapping[str, Any]) -> Found:
    scaled = state["deployment_config"].get("autoscaling_config") or {}
    handle = None if own else serve.get_deployment_handle(deployment, app_name=application)
    up = any(replica["state"] == "RUNNING" for replica in state["replicas"])
    return Found(handle, scaled.get("min_replicas") == 0, up)


def in_replica() -> bool:
    """Whether this process is a replica of Serve's."""
    try:
        serve.get_replica_context()
    except RayServeException:
        return False
    return True
