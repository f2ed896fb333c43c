"""What a Ray cluster is told: Ray Serve's configuration, the builder it names, the nodes' environment."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.settings import Settings
from tests.deployed import DEPLOY, ROOT, ray_variables, unknown_variables, variables_of

REGISTRY = "redis://:s3cret@redis:6379/0"
NODE = {"SSFSERVE_REGISTRY": REGISTRY, "SSFSERVE_DATA_DIR": "/var/lib/ssfserve"}
CONFIGURED: dict[str, Any] = {"args": None, "variables": {}}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"args": {"port": 80}, "variables": {}}, "port: on a cluster, `http_options` says it"),
    ({"args": {"bakbone": "x"}, "variables": {}}, "SSFSERVE_BAKBONE"),
    ({"args": {}, "variables": {"SSFSERVE_REGISTRY": "embedded:"}}, "SSFSERVE_REGISTRY: a cluster needs one"),
    ({"args": {}, "variables": {"SSFSERVE_DATA_DIR": "data"}}, "SSFSERVE_DATA_DIR: data must be absolute"),
    ({"args": {"tls_cert": "/c.pem"}, "variables": {}}, "SSFSERVE_TLS_CERT: only `ssfserve serve` has TLS"),
]
# in an interpreter of its own, as Ray's warnings would be errors here; and only one: its import takes seconds
PROGRAM = """
import importlib, json, os, sys, yaml
from ray.serve.schema import ServeDeploySchema
from server import ray_app
config = ServeDeploySchema.model_validate(yaml.safe_load(open("deploy/serve.yaml")))
(app,) = config.applications
module, _, name = app.import_path.partition(":")
build = getattr(importlib.import_module(module), name)

def built(case):
    os.environ.update(json.loads(sys.argv[1]) | case["variables"])
    try:
        deployment = build(app.args if case["args"] is None else case["args"])._bound_deployment
    except Exception as error:
        return str(error)
    return {"deployment": deployment.name, "given": deployment.init_args}

print(json.dumps({
    "apps": [app.name, ray_app.APP_NAME],
    "deployments": [app.deployments[0].name, ray_app.DEPLOYMENT_NAME],
    "host": config.http_options.host,
    "built": [built(case) for case in json.loads(sys.argv[2])],
}))
"""
HAPROXY = """\
defaults
  mode http
  timeout client 1s
  timeout server 1s
  timeout connect 1s
frontend prometheus
    bind :1
frontend http_frontend
    bind 0.0.0.0:2
"""


@pytest.fixture(scope="module")
def shown() -> dict[str, Any]:
    """Read the configuration and build its application as Ray Serve does, on nodes of several kinds."""
    cases = [CONFIGURED, *(case for case, _ in REFUSED)]
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, json.dumps(NODE), json.dumps(cases)]
    env = {"PATH": "/usr/bin:/bin", "RAY_AUTH_MODE": "token", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_ray_serve_takes_the_configuration_and_the_builder_builds(shown: dict[str, Any]) -> None:
    (built, *_) = shown["built"]
    assert len(set(shown["apps"])) == 1, "replicas find each other by this name"
    assert {*shown["deployments"]} == {built["deployment"]}
    assert shown["host"] == "0.0.0.0"
    given, run_dir = built["given"]
    assert run_dir is None
    assert not Settings.model_validate(given).is_loopback, "so that keys are needed"
    assert "s3cret" not in json.dumps(shown), "secrets stay in the nodes' environment"


def test_builder_refuses_what_cannot_work(shown: dict[str, Any]) -> None:
    for (_, said), answer in zip(REFUSED, shown["built"][1:], strict=True):
        assert said in answer


def test_configuration_names_only_what_ray_serve_knows() -> None:
    """Ray Serve ignores names that it does not know; these are those that were meant."""
    config = yaml.safe_load((DEPLOY / "serve.yaml").read_text())
    assert config.keys() == {"proxy_location", "http_options", "logging_config", "applications"}
    assert config["http_options"] == {"host": "0.0.0.0", "port": Settings.model_fields["port"].default}
    (app,) = config["applications"]
    assert app.keys() == {"name", "route_prefix", "import_path", "args", "deployments"}
    (deployment,) = app["deployments"]
    assert deployment.keys() == {"name", "max_replicas_per_node", "ray_actor_options", "autoscaling_config"}
    assert app["args"].keys() <= Settings.model_fields.keys()
    scaling = deployment["autoscaling_config"]
    assert scaling["target_ongoing_requests"] == 2 * Settings.model_fields["max_batch"].default
    assert scaling["look_back_period_s"] > scaling["metrics_interval_s"]


def test_nodes_get_the_variables_of_a_single_host() -> None:
    given, alone = variables_of(DEPLOY / "ray.env"), ray_variables()
    assert not unknown_variables(given)
    longer = {
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5"
    }  # another node's HAProxy hears of it later
    assert {name: value for name, value in given.items() if name in alone} == {
        name: value for name, value in (alone | longer).items() if name in given
    }
    assert Path(given["SSFSERVE_DATA_DIR"]).is_absolute()


def test_haproxy_of_a_cluster_is_the_packaged_one_with_closed_binds(tmp_path: Path) -> None:
    config, script = tmp_path / "haproxy.cfg", tmp_path / "ssfserve-haproxy"
    config.write_text(HAPROXY)
    script.write_text(f"#!{sys.executable}\nfrom server.haproxy_command import main\nmain()\n")
    script.chmod(0o700)
    # it is what the variable names, so it must not look there itself
    env = {"RAY_SERVE_HAPROXY_BINARY_PATH": str(script), "PYTHONPATH": str(ROOT)}
    told = subprocess.run([script, "-vv"], env=env, capture_output=True, text=True, check=True, timeout=30)
    assert told.stdout.startswith("HAProxy version")
    subprocess.run([script, "-c", "-f", config], env=env, check=True, timeout=30, capture_output=True)
    assert "bind 127.0.0.1:1\n" in config.read_text()
    assert "bind 0.0.0.0:2\n" in config.read_text(), "where clients come in"
