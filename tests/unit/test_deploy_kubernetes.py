"""The Kubernetes manifests: by Kubernetes' schemas, by KubeRay's fields, and against each other."""

import importlib.resources
import json
import tomllib
import warnings
from collections.abc import Iterator
from typing import Any, Literal

import jsonschema
import pytest
import yaml
from pydantic import BaseModel, ConfigDict

from server.settings import Settings
from tests.deployed import (
    DEPLOY,
    KUBERNETES,
    ROOT,
    commands_of,
    manifest,
    manifests,
    unknown_variables,
    variables_of,
)

VERSION = "1.34"
PORT = Settings.model_fields["port"].default
CUSTOM = {"RayService", "ScrapeConfig"}
SCHEMAS = importlib.resources.files("kubernetes_validate") / "kubernetes-json-schema"


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


# The fields of KubeRay 1.7 (ray.io/v1) that are used, by its reference; pods have Kubernetes' schema.


class SecretValue(Strict):
    valueFrom: dict[Literal["secretKeyRef"], dict[Literal["name", "key"], str]]


class GcsFaultTolerance(Strict):
    redisAddress: str
    redisPassword: SecretValue


class Autoscaler(Strict):
    version: Literal["v1", "v2"]
    idleTimeoutSeconds: int


class Head(Strict):
    rayStartParams: dict[str, str]
    template: dict[str, Any]


class Workers(Head):
    groupName: str
    replicas: int
    minReplicas: int
    maxReplicas: int


class Cluster(Strict):
    rayVersion: str
    authOptions: dict[Literal["mode"], Literal["token"]]
    gcsFaultToleranceOptions: GcsFaultTolerance
    enableInTreeAutoscaling: bool
    autoscalerOptions: Autoscaler
    headGroupSpec: Head
    workerGroupSpecs: list[Workers]


class RayServiceSpec(Strict):
    upgradeStrategy: dict[Literal["type"], Literal["NewCluster", "None"]]
    rayClusterDeletionDelaySeconds: int
    excludeHeadPodFromServeSvc: bool
    serveConfigV2: str
    rayClusterConfig: Cluster


# and those of the Prometheus Operator (monitoring.coreos.com/v1alpha1)


class Authorization(Strict):
    type: Literal["Bearer"]
    credentials: dict[Literal["name", "key"], str]


class ScrapeConfigSpec(Strict):
    jobName: str
    scrapeInterval: str
    metricsPath: str
    authorization: Authorization
    staticConfigs: list[dict[Literal["targets"], list[str]]]


def spec() -> RayServiceSpec:
    return RayServiceSpec.model_validate(manifest("RayService", "ssfserve")["spec"])


def scrape() -> ScrapeConfigSpec:
    return ScrapeConfigSpec.model_validate(manifest("ScrapeConfig", "ssfserve")["spec"])


def serve_config() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(spec().serveConfigV2)
    return config


def templates() -> list[dict[str, Any]]:
    cluster = spec().rayClusterConfig
    return [cluster.headGroupSpec.template, *(group.template for group in cluster.workerGroupSpecs)]


def containers() -> list[dict[str, Any]]:
    return [container for template in templates() for container in template["spec"]["containers"]]


def worker() -> dict[str, Any]:
    return templates()[1]


def secrets(value: Any) -> Iterator[tuple[str, str]]:
    """Yield name and key of every secret that a manifest refers to."""
    if isinstance(value, list):
        for item in value:
            yield from secrets(item)
    if isinstance(value, dict):
        for name, item in value.items():
            if name in {"secretKeyRef", "credentials"}:
                yield item["name"], item["key"]
            else:
                yield from secrets(item)


def check_pod_template(template: dict[str, Any]) -> None:
    """Hold a template against Kubernetes' schema; unknown fields are errors."""
    text = (SCHEMAS / f"v{VERSION}.0-local-strict" / "_definitions.json").read_text()
    schema = {"$ref": "#/$defs/io.k8s.api.core.v1.PodTemplateSpec", "$defs": json.loads(text)["$defs"]}
    jsonschema.Draft202012Validator(schema).validate(template)


@pytest.mark.parametrize(
    "document",
    [it for it in manifests() if it["kind"] not in CUSTOM],
    ids=lambda it: f"{it['kind']} {it['metadata']['name']}",
)
def test_manifest_fits_its_schema(document: dict[str, Any]) -> None:
    with warnings.catch_warnings(action="ignore"):
        import kubernetes_validate
    kubernetes_validate.validate(document, VERSION, strict=True)


def test_ray_service_and_scrape_config_have_known_fields_only() -> None:
    assert scrape() and spec()
    for template in templates():
        check_pod_template(template)


def test_kustomization_has_every_manifest_and_the_version_of_the_project() -> None:
    config = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    assert {*config["resources"], "kustomization.yaml"} == {path.name for path in KUBERNETES.iterdir()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (image,) = config["images"]
    assert image["newTag"] == f"{project['version']}-gpu"
    assert {it["image"] for it in containers()} == {f"{image['name']}:{image['newTag']}"}
    assert f"ray=={spec().rayClusterConfig.rayVersion}" in (ROOT / "constraints.txt").read_text().split()


def test_ray_serve_is_configured_as_on_any_cluster() -> None:
    here, anywhere = serve_config(), yaml.safe_load((DEPLOY / "serve.yaml").read_text())
    for config in (here, anywhere):
        (deployment,) = config["applications"][0]["deployments"]
        deployment["ray_actor_options"].pop("num_gpus")
        deployment["autoscaling_config"].pop("min_replicas")
    assert here == anywhere


def test_every_replica_finds_a_pod_and_a_gpu() -> None:
    (group,) = spec().rayClusterConfig.workerGroupSpecs
    (deployment,) = serve_config()["applications"][0]["deployments"]
    scaling = deployment["autoscaling_config"]
    assert (group.minReplicas, group.maxReplicas) == (scaling["min_replicas"], scaling["max_replicas"])
    assert group.replicas == group.minReplicas > 1, "one may go while another serves"
    gpus = worker()["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    assert int(gpus) == deployment["ray_actor_options"]["num_gpus"] * deployment["max_replicas_per_node"]
    assert spec().rayClusterConfig.headGroupSpec.rayStartParams["num-cpus"] == "0"


def test_pods_have_the_environment_of_any_cluster() -> None:
    wanted = variables_of(DEPLOY / "ray.env")
    for container in containers():
        given = {it["name"]: it.get("value") for it in container["env"]}
        assert not unknown_variables(given)
        assert given.pop("SSFSERVE_REGISTRY") is None, "a secret"
        assert given.pop("RAY_SERVE_HAPROXY_BINARY_PATH").endswith("/ssfserve-haproxy")
        assert given == {name: value for name, value in wanted.items() if name != "RAY_AUTH_MODE"}


def test_pods_run_as_the_image_does() -> None:
    for template in templates():
        pod = template["spec"]["securityContext"]
        assert pod["runAsNonRoot"] and f"USER {pod['runAsUser']}:" in (DEPLOY / "Dockerfile").read_text()
        for container in template["spec"]["containers"]:
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            mounted = {it["name"]: it["mountPath"] for it in container["volumeMounts"]}
            assert mounted.keys() == {volume["name"] for volume in template["spec"]["volumes"]}
            assert mounted["data"] == variables_of(DEPLOY / "ray.env")["SSFSERVE_DATA_DIR"]


def test_ports_agree() -> None:
    port = serve_config()["http_options"]["port"]
    (container,) = worker()["spec"]["containers"]
    assert port == PORT == container["readinessProbe"]["httpGet"]["port"]
    assert {it["containerPort"] for it in container["ports"]} == {port}
    (api, _) = manifest("NetworkPolicy", "ssfserve")["spec"]["ingress"]
    assert [it["port"] for it in api["ports"]] == [port]
    # KubeRay names the service after the RayService
    assert scrape().staticConfigs == [{"targets": [f"ssfserve-serve-svc.ssfserve.svc:{port}"]}]
    for group in (spec().rayClusterConfig.headGroupSpec, *spec().rayClusterConfig.workerGroupSpecs):
        agent = group.template["spec"]["containers"][0]["livenessProbe"]["httpGet"]["port"]
        assert group.rayStartParams["dashboard-agent-listen-port"] == str(agent)


def test_prometheus_scrapes_one_target_as_elsewhere() -> None:
    (alone,) = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    assert (scrape().jobName, scrape().metricsPath) == (alone["job_name"], alone["metrics_path"])
    assert [len(it["targets"]) for it in scrape().staticConfigs] == [1]
    assert not [it for it in manifests() if it["kind"] in {"PodMonitor", "ServiceMonitor"}], (
        "they count twice"
    )


def test_pods_stay_until_they_are_drained() -> None:
    pod = worker()["spec"]
    pause = int(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    drain_seconds = (
        Settings.model_fields["drain_timeout_ms"].default / 1000 + 5
    )  # as `ray_app.options` has it
    assert pod["terminationGracePeriodSeconds"] > pause + drain_seconds


def test_selectors_select() -> None:
    labels = worker()["metadata"]["labels"]
    budget = manifest("PodDisruptionBudget", "ssfserve-workers")["spec"]["selector"]["matchLabels"]
    assert budget == labels
    assert (
        manifest("NetworkPolicy", "ssfserve")["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    )
    for spread in worker()["spec"]["topologySpreadConstraints"]:
        assert spread["labelSelector"]["matchLabels"] == labels
    (guarded,) = manifest("NetworkPolicy", "ssfserve-redis")["spec"]["podSelector"]["matchExpressions"]
    for name in guarded["values"]:
        stateful = manifest("StatefulSet", name)["spec"]
        service = manifest("Service", name)["spec"]
        assert service["selector"] == stateful["template"]["metadata"]["labels"] == {guarded["key"]: name}
        assert stateful["serviceName"] == name


def test_gcs_has_a_redis_of_its_own() -> None:
    options = spec().rayClusterConfig.gcsFaultToleranceOptions
    host, _, port = options.redisAddress.partition(":")
    service = manifest("Service", host)["spec"]
    assert service["ports"] == [{"name": "redis", "port": int(port)}]
    (container,) = manifest("StatefulSet", host)["spec"]["template"]["spec"]["containers"]
    assert set(secrets(container)) == set(secrets(options.model_dump()))
    assert host != "ssfserve-redis"


def test_registry_has_the_redis_of_the_compose_file() -> None:
    (container,) = manifest("StatefulSet", "ssfserve-redis")["spec"]["template"]["spec"]["containers"]
    composed = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["redis"]
    assert container["image"] == composed["image"]
    assert container["args"][:-1] == composed["command"][:-1]


def test_readme_makes_every_secret_that_is_asked_for() -> None:
    made = set()
    for words in commands_of(DEPLOY / "README.md", "create secret generic"):
        name = words[words.index("generic") + 1]
        made |= {(name, word.split("=")[1]) for word in words if word.startswith("--from-literal=")}
    assert made == set(secrets(manifests()))
