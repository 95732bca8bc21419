"""`build_app(args)`: the whole graph on one screen. Nothing starts here: Serve runs it in a task that ends at once."""

# No postponed annotations here: Serve reads the type of build_app's argument to parse the YAML into it.

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray
from ray import serve
from ray.serve import Application, Deployment

from deployments.config import AppArgs, GatewayArgs, ModelArgs, ModelSpec, Scaling, StoreArgs, Task
from deployments.environment import is_embedded
from deployments.serving.cores import Threads
from deployments.serving.ingress import TenantGateway
from deployments.serving.store import ONE_NODE, EmbeddedStore, StoreAccess

WAITING_IN_FAIR_QUEUE = 10_000
"""Serve's router is first in, first out: let everything through, so that requests wait where tenants are told apart."""
HEALTH = {"health_check_period_s": 5, "health_check_timeout_s": 15}
"""Three checks in a row that fail, or that a stalled loop does not answer, have a replica replaced."""


def build_app(args: AppArgs) -> Application:
    """Gateway in front, one deployment per model behind it, and the embedded store where no other is named."""
    embedded: Any = None
    if _embedded(args.store):
        embedded = _deployment(EmbeddedStore, ray_actor_options={"num_cpus": 0.1}).bind(args.store)
    access = StoreAccess(embedded, args.store)
    share, of_replicas = _share_of_gpu(args.models), replace(access, replica=True)
    models = {spec.id: _model(spec, args.gateway, of_replicas, share, len(args.models)) for spec in args.models}
    gateway = _deployment(TenantGateway, **_options(args.gateway, args.gateway.scaling, 0.0))
    return gateway.bind(args, models, access)


def build_model(args: ModelArgs) -> Application:
    """One model as an application: it comes, changes and goes while the gateway and the others answer."""
    access = StoreAccess(None, args.store, replica=True, elsewhere=_embedded(args.store))
    return _model(args.model, args.gateway, access, _share_of_gpu([args.model]), args.sharing)


def _model(
    spec: ModelSpec, gateway: GatewayArgs, access: StoreAccess, share_of_gpu: float, sharing: int
) -> Application:
    # Model libraries are imported by the replicas alone; building the graph needs none of them.
    from deployments.serving.embeddings import EmbeddingReplica
    from deployments.serving.replicas import TextReplica, VisionReplica

    kinds: dict[Task, type] = {Task.TEXT: TextReplica, Task.EMBEDDING: EmbeddingReplica}
    kind = kinds.get(spec.task, VisionReplica)
    options = {"name": spec.deployment, **_options(gateway, spec.scaling, share_of_gpu)}
    return _deployment(kind, **options).bind(spec, access, Threads(spec.threads, sharing))


def _embedded(store: StoreArgs) -> bool:
    """Whether there is a store of the application's own. Raises ValueError where not all nodes could reach it."""
    if not is_embedded(store):
        return False
    if ray.is_initialized() and sum(bool(node["Alive"]) for node in ray.nodes()) > 1:
        raise ValueError(ONE_NODE)
    return True


def _deployment(kind: type, **options: Any) -> Deployment:
    made: Any = serve.deployment(kind)  # Serve's own types know of its use as a decorator only
    return made.options(**options)  # type: ignore[no-any-return]


def _options(gateway: GatewayArgs, scaling: Scaling, share_of_gpu: float) -> dict[str, Any]:
    gpus = share_of_gpu if scaling.num_gpus is None else scaling.num_gpus
    replicas = (
        {"autoscaling_config": scaling.autoscaling} if scaling.autoscaling else {"num_replicas": scaling.num_replicas}
    )
    return {
        "ray_actor_options": {"num_cpus": scaling.num_cpus, "num_gpus": gpus},
        "max_ongoing_requests": WAITING_IN_FAIR_QUEUE,
        # A replica that is replaced ends what it has begun; Serve's 20 s are less than an answer may take.
        "graceful_shutdown_timeout_s": gateway.drain_s,
        # Its successor answers first: one replica more at a time, where no whole cards are needed for it.
        "max_surge_percent": 0 if gpus >= 1 else 1,
        **HEALTH,
        **replicas,
    }


def _share_of_gpu(models: Sequence[ModelSpec]) -> float:
    """An equal share of one card for each replica of a model, where Ray sees a card, and one for who calibrates."""
    if not ray.is_initialized() or ray.cluster_resources().get("GPU", 0) < 1:
        return 0.0
    return int(100 / (1 + sum(spec.scaling.num_replicas for spec in models))) / 100
