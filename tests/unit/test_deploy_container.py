"""The Dockerfile and the compose file: by a linter, by their schema, and against what they start.

No container engine is needed; nor does anything here build or run an image.
"""

import fnmatch
import importlib.resources
import json
import socket
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from deploy.healthcheck import is_ready
from server import preflight
from server.ray_launcher import STOP_SECONDS
from server.settings import Settings
from tests.deployed import (
    DEPLOY,
    ROOT,
    compose,
    dockerfile,
    filled_in,
    unknown_variables,
    variables_of,
)
from tests.redis_servers import BINARY, MISSING, RedisServer, free_port

FINAL = ("cpu", "gpu")
PORT = Settings.model_fields["port"].default
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def texts(name: str, *stages: str) -> list[str]:
    return [it.text for it in dockerfile() if it.name == name and (not stages or it.stage in stages)]


def environment() -> dict[str, str]:
    """Return what the image sets."""
    return dict(pair.split("=", 1) for text in texts("ENV", *FINAL) for pair in text.split())


# --- Dockerfile


def test_linter_finds_nothing_in_the_dockerfile() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_base_image_has_a_tag_and_its_python_is_taken() -> None:
    (base,) = (text.partition("=")[2] for text in texts("ARG") if text.startswith("PYTHON_IMAGE="))
    name, _, tag = base.partition(":")
    assert name == "python" and tag.split("-")[0] in PROJECT["project"]["requires-python"]
    assert {text.split()[0] for text in texts("FROM")} == {"${PYTHON_IMAGE}", "cpu"}


def test_everything_that_is_installed_is_pinned_and_from_no_fixed_address() -> None:
    installs = [part for text in texts("RUN") for part in text.split("&&") if "pip install" in part]
    assert len(installs) == 4
    for part in installs:
        assert "-c constraints.txt" in part or "-r offline.txt" in part or "--no-deps ." in part
    assert "://" not in (DEPLOY / "Dockerfile").read_text()


def test_each_copied_file_exists_and_is_in_the_build_context() -> None:
    taken = [text.split()[:-1] for text in texts("COPY") if not text.startswith("--from")]
    patterns = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in patterns if line.startswith("!")}
    assert "*" in patterns
    for source in (source for sources in taken for source in sources):
        assert (ROOT / source).exists(), source
        assert source in allowed, f"{source} is kept out by .dockerignore"
    assert allowed == {source for sources in taken for source in sources}, (
        "nothing else gets into the context"
    )


def test_every_package_of_the_project_gets_into_the_image() -> None:
    copied = {text.split()[-1] for text in texts("COPY", "installed")}
    for pattern in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]:
        assert fnmatch.filter(copied, pattern), pattern


def test_container_runs_as_nobody_special() -> None:
    for stage in FINAL:
        user, group = texts("USER", stage)[-1].split(":")
        assert user == group == "10001"
    assert "--uid 10001" in " ".join(texts("RUN", "cpu"))
    home = environment()["SSFSERVE_DATA_DIR"]
    made = " ".join(texts("RUN", "cpu")).partition("install -d -o ssfserve -g ssfserve ")[2].split()
    assert home in made, "a new volume takes its owner from here"
    assert texts("VOLUME") == [home] == texts("WORKDIR", "cpu")


def test_only_the_gpu_image_has_a_compiler() -> None:
    assert not [text for text in texts("RUN", "cpu") if "apt-get" in text or "gcc" in text]
    assert [text for text in texts("RUN", "gpu") if "gcc" in text]


def test_signals_reach_the_launcher() -> None:
    (entrypoint,), (command,) = texts("ENTRYPOINT"), texts("CMD")
    assert json.loads(entrypoint) == ["ssfserve"] and json.loads(command) == ["serve"], "no shell in between"
    assert "ssfserve" in PROJECT["project"]["scripts"]
    assert texts("STOPSIGNAL") == ["SIGTERM"]


def test_image_sets_only_what_is_a_setting() -> None:
    assert not unknown_variables(environment())
    assert texts("EXPOSE") == [str(PORT)]


# --- the health check


@contextmanager
def answering(status: int) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/readyz" else 404)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield str(server.server_port)
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("status", "ready"), [(200, True), (503, False), (404, False)])
def test_health_is_what_readyz_says(status: int, ready: bool) -> None:
    with answering(status) as port:
        assert is_ready(port) is ready


def test_health_of_a_server_that_is_away_is_exit_code_1() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    (check,) = texts("HEALTHCHECK")
    command = json.loads(check[check.index("[") :])
    assert command[-1] == "/usr/share/ssfserve/healthcheck.py" and command[0] == "python"
    assert f"deploy/healthcheck.py {command[-1]}" in texts("COPY", "cpu")
    local = [sys.executable, *command[1:-1], str(DEPLOY / "healthcheck.py")]
    done = subprocess.run(local, env={"SSFSERVE_PORT": str(port)}, check=False)
    assert done.returncode == 1


# --- compose


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_compose_file_fits_its_schema(name: str) -> None:
    vendored = importlib.resources.files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json"
    jsonschema.validate(compose(name), json.loads(vendored.read_text()))


def test_passwords_have_no_default() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    example = variables_of(DEPLOY / "env.example")
    for name in ("REDIS_PASSWORD", "GRAFANA_PASSWORD"):
        assert f"${{{name}:?" in text and f"${{{name}:-" not in text and f"${{{name}}}" not in text
        assert example[name] == ""
    with pytest.raises(KeyError, match="REDIS_PASSWORD"):
        filled_in(yaml.safe_load(text), {})
    assert "/deploy/.env" in (ROOT / ".gitignore").read_text().splitlines()


def test_only_the_api_is_published() -> None:
    ports = {name: service["ports"] for name, service in compose()["services"].items() if "ports" in service}
    assert ports == {"ssfserve": [f"0.0.0.0:8000:{PORT}"], "grafana": ["127.0.0.1:3000:3000"]}


def test_every_image_has_a_tag() -> None:
    images = {service["image"] for service in compose()["services"].values()}
    assert all(image.partition(":")[2] not in {"", "latest"} for image in images)


def test_every_service_is_limited_and_started_again() -> None:
    for name, service in compose()["services"].items():
        assert {"cpus", "memory"} == service["deploy"]["resources"]["limits"].keys(), name
        assert service["restart"] == ("on-failure:3" if name == "metrics-key" else "unless-stopped")


def test_services_wait_for_what_can_come_true() -> None:
    services = compose()["services"]
    for service in services.values():
        for other, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "test" in services[other]["healthcheck"]
            else:
                assert services[other]["restart"].startswith("on-failure"), "it ends"


def test_mounted_files_exist_and_volumes_are_declared() -> None:
    declared = compose()["volumes"].keys()
    used = [text.split(":")[0] for service in compose()["services"].values() for text in service["volumes"]]
    for source in used:
        assert (DEPLOY / source).exists() if source.startswith(".") else source in declared, source


def test_compose_sets_only_what_is_a_setting() -> None:
    services = compose()["services"]
    assert not unknown_variables(name for it in services.values() for name in it.get("environment", ()))
    source = (DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text()
    assert "url: ${PROMETHEUS_URL}" in source and "PROMETHEUS_URL" in services["grafana"]["environment"]
    text = (DEPLOY / "compose.yaml").read_text()
    assert not [name for name in variables_of(DEPLOY / "env.example") if f"${{{name}:" not in text]


def test_compose_waits_longer_than_a_drain_may_take() -> None:
    drain_seconds = Settings.model_fields["drain_timeout_ms"].default / 1000
    seconds = float(compose()["services"]["ssfserve"]["stop_grace_period"].removesuffix("s"))
    assert seconds > drain_seconds + STOP_SECONDS


def test_prometheus_of_compose_differs_in_target_and_key_only() -> None:
    alone, composed = (
        yaml.safe_load((DEPLOY / name).read_text()) for name in ("prometheus.yml", "compose/prometheus.yml")
    )
    (job,) = composed["scrape_configs"]
    services = compose()["services"]
    key = job.pop("authorization")["credentials_file"]
    assert services["metrics-key"]["command"][-2:] == ["--to", key]
    where = str(Path(key).parent)
    assert f"metrics-key:{where}" in services["metrics-key"]["volumes"]
    assert f"metrics-key:{where}:ro" in services["prometheus"]["volumes"]
    assert f"-o ssfserve -g ssfserve {where}" in " ".join(texts("RUN", "cpu")), (
        "the key's maker may write there"
    )
    assert job.pop("static_configs") == [{"targets": [f"ssfserve:{PORT}"]}]
    alone["scrape_configs"][0].pop("static_configs")
    assert composed == alone


@pytest.mark.skipif(BINARY is None, reason=MISSING)
def test_redis_of_compose_keeps_what_a_registry_acknowledged(tmp_path: Path) -> None:
    """Start Redis with the very arguments of the compose file, and make Prometheus' key on it, twice."""
    services = compose()["services"]
    _, *options = services["redis"]["command"]
    port = free_port()
    server = RedisServer(tmp_path, *options, "--port", str(port)).start()
    try:
        url = services["ssfserve"]["environment"]["SSFSERVE_REGISTRY"].replace(
            "redis:6379", f"127.0.0.1:{port}"
        )
        settings = Settings.load({"registry": url})
        assert preflight.registry_risks(settings) == ()
        assert preflight.count_keys(settings) == 0
        assert [make_key(services, url, tmp_path / "metrics.key") for _ in "ab"] == [0, 0]
        assert preflight.count_keys(settings) == 1
    finally:
        server.stop()


def make_key(services: dict[str, Any], url: str, file: Path) -> int:
    arguments = [*services["metrics-key"]["command"][:-1], str(file)]
    command = [sys.executable, "-m", "server.cli", *arguments]
    env = {"PATH": "/usr/bin:/bin", "SSFSERVE_REGISTRY": url}
    return subprocess.run(command, env=env, cwd=ROOT, check=False).returncode
