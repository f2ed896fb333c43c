"""The files in deploy/ are what their readers take them for."""

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from server.settings import Settings

DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian: prometheus) is not installed")
def test_prometheus_takes_the_scrape_configuration() -> None:
    command = ["promtool", "check", "config", str(DEPLOY / "prometheus.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_scrape_target_is_where_the_server_listens_by_default() -> None:
    defaults = Settings.model_fields
    job = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"][0]
    assert job["static_configs"] == [{"targets": [f"{defaults['host'].default}:{defaults['port'].default}"]}]


def test_unit_waits_longer_than_a_drain_may_take() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(DEPLOY / "ssfserve.service")
    drain_seconds = Settings.model_fields["drain_timeout_ms"].default / 1000
    assert int(unit["Service"]["TimeoutStopSec"]) > drain_seconds + 30  # what Ray needs on top
    assert unit["Service"]["ExecStart"].endswith("ssfserve serve")
