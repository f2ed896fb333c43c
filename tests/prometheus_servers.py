"""A real Prometheus for tests, with the configuration that is deployed, pointed at a server of the test."""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.promql import DEPLOY
from tests.redis_servers import free_port

BINARY = shutil.which("prometheus")
MISSING = "prometheus is not installed (Debian: apt-get install prometheus)"
START_SECONDS = 60.0
INTERVAL = "200ms"


def configuration(target: str, key: Path) -> dict[str, Any]:
    """Return the deployed configuration with another target, a key, and short intervals."""
    config: dict[str, Any] = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    config["global"] = {
        "scrape_interval": INTERVAL,
        "scrape_timeout": INTERVAL,
        "evaluation_interval": INTERVAL,
    }
    config["rule_files"] = [str(DEPLOY / pattern) for pattern in config["rule_files"]]
    (job,) = config["scrape_configs"]
    job["static_configs"] = [{"targets": [target]}]
    job["authorization"] = {"credentials_file": str(key)}
    return config


@contextmanager
def prometheus(directory: Path, config: dict[str, Any]) -> Iterator[str]:
    """Run Prometheus; yield its URL once it is ready."""
    assert BINARY is not None
    file, log = directory / "prometheus.json", directory / "prometheus.log"  # JSON is YAML
    file.write_text(json.dumps(config))
    address = f"127.0.0.1:{free_port()}"
    options = [f"--config.file={file}", f"--storage.tsdb.path={directory / 'tsdb'}"]
    command = [BINARY, *options, f"--web.listen-address={address}", "--log.level=warn"]
    with log.open("wb") as sink, subprocess.Popen(command, stdout=sink, stderr=sink) as process:
        try:
            _until_ready(process, f"http://{address}", log)
            yield f"http://{address}"
        finally:
            process.kill()


def _until_ready(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _is_ready(url):
        assert process.poll() is None, f"prometheus ended: {log.read_text()}"
        assert time.monotonic() < deadline, f"prometheus did not start: {log.read_text()}"
        time.sleep(0.05)


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready", timeout=2).is_success
    except httpx.HTTPError:
        return False
