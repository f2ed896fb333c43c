"""What tests read out of the container, compose and cluster files in deploy/."""

import re
import shlex
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from server.ports import Ports
from server.ray_environment import ray_environment
from server.run_dir import RunDir
from server.settings import PREFIX, Settings

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
VARIABLE = re.compile(r"\$\{(\w+)(?:(:-|:\?)([^}]*))?\}")
# beside those that `ray_environment` sets for one host
CLUSTER_ONLY = {"RAY_LOG_TO_STDERR", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}


class Instruction(NamedTuple):
    """A line of a Dockerfile, continuations joined."""

    stage: str
    name: str
    text: str


def dockerfile() -> list[Instruction]:
    lines = [line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    found, stage = [], ""
    for line in filter(None, map(str.strip, "\n".join(lines).replace("\\\n", " ").splitlines())):
        name, _, text = line.partition(" ")
        if name == "FROM":
            stage = text.split(" AS ")[1]
        found.append(Instruction(stage, name, text.strip()))
    return found


def filled_in(value: Any, given: Mapping[str, str]) -> Any:
    """Put variables into a compose file as compose does; a missing one that is demanded is a KeyError."""

    def fill(match: re.Match[str]) -> str:
        name, kind, text = match.groups()
        return given.get(name) or (text if kind == ":-" else given[name])

    if isinstance(value, dict):
        return {name: filled_in(item, given) for name, item in value.items()}
    if isinstance(value, list):
        return [filled_in(item, given) for item in value]
    return VARIABLE.sub(fill, value) if isinstance(value, str) else value


def compose(name: str = "compose.yaml") -> dict[str, Any]:
    """Return a compose file as it is for a user with two passwords and nothing else."""
    given = {"REDIS_PASSWORD": "aa11", "GRAFANA_PASSWORD": "bb22"}
    content: dict[str, Any] = filled_in(yaml.safe_load((DEPLOY / name).read_text()), given)
    return content


def manifests() -> list[dict[str, Any]]:
    return [
        document
        for path in sorted(KUBERNETES.glob("*.yaml"))
        if path.name != "kustomization.yaml"
        for document in yaml.safe_load_all(path.read_text())
    ]


def manifest(kind: str, name: str) -> dict[str, Any]:
    (found,) = (it for it in manifests() if it["kind"] == kind and it["metadata"]["name"] == name)
    return found


def variables_of(path: Path) -> dict[str, str]:
    """Return what an environment file sets."""
    lines = (line for line in path.read_text().splitlines() if line and not line.startswith("#"))
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def unknown_variables(names: Iterable[str]) -> set[str]:
    """Return those that are neither a setting of ours nor a variable for Ray that is known to matter."""
    settings = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    rays = ray_variables().keys() | CLUSTER_ONLY
    return {name for name in names if name.startswith((PREFIX, "RAY_")) and name not in settings | rays}


def ray_variables() -> dict[str, str]:
    """Return what a single host sets for Ray, with the default settings."""
    ports = Ports(*range(20_000, 20_006), replicas=range(30_000, 30_100))
    with tempfile.TemporaryDirectory() as data_dir:  # gets a token
        return ray_environment(Settings.load({"data_dir": data_dir}), RunDir(Path("/run/ssf")), ports)


def commands_of(markdown: Path, about: str) -> list[list[str]]:
    """Return the words of each command about something in a page's shell blocks."""
    blocks = re.findall(r"(?ms)^```bash\n(.*?)^```", markdown.read_text())
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if about in line]
