"""What a changed configuration restarts, judged by Serve's own rules for the shipped files."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.config import REPOSITORY, AppArgs, ModelArgs

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's own, at import
    from ray.serve._private.application_state import override_deployment_info
    from ray.serve._private.build_app import build_app as serve_build
    from ray.serve._private.deploy_utils import get_app_code_version
    from ray.serve._private.deployment_info import DeploymentInfo
    from ray.serve._private.version import DeploymentVersion
    from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

    from deployments import app

GATEWAY, IMAGES, STORE = "TenantGateway", "resnet18-cifar10", "EmbeddedStore"
ALL = {GATEWAY, STORE, IMAGES, "segformer-b0-camvid", "smollm2-135m-instruct"}


@pytest.fixture
def application(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The shipped application, with the embedded store."""
    for name in ("REDIS_URL", "AIM_REPLICA_REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    config: dict[str, Any] = yaml.safe_load((REPOSITORY / "serve_config.yaml").read_text())
    (application,) = config["applications"]
    application["args"]["store"]["data_dir"] = str(tmp_path)
    return dict(application)


def versions(application: dict[str, Any]) -> dict[str, DeploymentVersion]:
    """What Serve would have replicas be, by deployment."""
    schema = ServeApplicationSchema.model_validate(application)
    code, models = get_app_code_version(schema), "models" in application["args"]
    args = application["args"]
    graph = app.build_app(AppArgs(**args)) if models else app.build_model(ModelArgs(**args))
    built = serve_build(graph, name=schema.name, make_deployment_handle=lambda *_: None)  # type: ignore[arg-type, return-value]
    infos = {d.name: DeploymentInfo(d._deployment_config, d._replica_config, 0, "") for d in built.deployments}
    return {
        name: DeploymentVersion(
            code,
            info.deployment_config,
            info.replica_config.ray_actor_options,
            max_replicas_per_node=info.replica_config.max_replicas_per_node,
        )
        for name, info in override_deployment_info(infos, schema).items()
    }


def settings(application: dict[str, Any]) -> None:
    application["deployments"][0]["user_config"] = {"deadline_s": 121, "cors_origins": ["https://app.example.com"]}


def replicas(application: dict[str, Any]) -> None:
    application["deployments"] += [{"name": IMAGES, "num_replicas": 3}]


def autoscaled(application: dict[str, Any]) -> None:
    application["deployments"] += [{"name": IMAGES, "autoscaling_config": {"min_replicas": 0, "max_replicas": 2}}]


def autoscaled_otherwise(application: dict[str, Any]) -> None:
    application["deployments"][-1]["autoscaling_config"] = {"min_replicas": 1, "max_replicas": 5}


def resources(application: dict[str, Any]) -> None:
    application["deployments"] += [{"name": IMAGES, "ray_actor_options": {"num_cpus": 0.5}}]


def argument(application: dict[str, Any]) -> None:
    application["args"]["models"][0]["max_batch_size"] = 4


@pytest.mark.parametrize(
    ("changes", "restarted"),
    [
        ([settings], set()),
        ([replicas], set()),
        ([autoscaled, autoscaled_otherwise], set()),
        ([autoscaled], ALL),  # Serve takes it for a change of the code
        ([resources], {IMAGES}),
        ([argument], ALL),
    ],
    ids=lambda value: value[-1].__name__ if isinstance(value, list) else "",
)
def test_a_change_restarts_what_the_docs_say(
    application: dict[str, Any], changes: list[Callable[[dict[str, Any]], None]], restarted: set[str]
) -> None:
    for change in changes:
        before = versions(application)
        change(application)
    after = versions(application)
    assert set(before) == set(after) == ALL
    assert {name for name in ALL if before[name].requires_actor_restart(after[name])} == restarted


def test_a_change_of_settings_is_told_to_the_gateways(application: dict[str, Any]) -> None:
    before = versions(application)[GATEWAY]
    settings(application)
    assert before.requires_actor_reconfigure(versions(application)[GATEWAY])


def test_a_successor_answers_before_a_replica_ends_and_both_have_time(application: dict[str, Any]) -> None:
    found = versions(application)
    for name in ALL - {STORE}:
        assert found[name].deployment_config.max_surge_percent == 1, name
        assert found[name].deployment_config.graceful_shutdown_timeout_s == 600.0, name
    assert found[STORE].deployment_config.max_surge_percent == 0  # two servers on one folder there must not be


def test_the_files_are_valid_to_serve_and_name_deployments_that_there_are() -> None:
    for path in ("serve_config.yaml", "deploy/applications.yaml"):
        config = ServeDeploySchema.model_validate(yaml.safe_load((REPOSITORY / path).read_text()))
        for application in config.applications:
            assert versions(application.model_dump(exclude_unset=True)), path
