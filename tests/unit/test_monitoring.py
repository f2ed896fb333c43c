"""Dashboards, rules and runbook agree with each other and with what the server exposes."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.dashboards import COLUMNS, render
from server.cli import VERBS
from server.settings import PREFIX, Settings
from tests.promql import DEPLOY, Rule, asked, dashboards, known, metrics_of, rules

ROOT = DEPLOY.parent
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()
PROMTOOL_TESTS = sorted((ROOT / "tests" / "promtool").glob("*.yml"))

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool (Debian: prometheus) is not installed"
)


def promtool(*arguments: object) -> None:
    command = ["promtool", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def alerts() -> dict[str, Rule]:
    return {rule["alert"]: rule for rule in rules("alerts")}


def sections() -> dict[str, str]:
    parts = re.split(r"(?m)^## (\w+)$", RUNBOOK)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@needs_promtool
def test_promtool_takes_the_rules() -> None:
    promtool("check", "rules", *sorted((DEPLOY / "rules").glob("*.yml")))


@needs_promtool
def test_alerts_fire_when_they_should_and_only_then() -> None:
    promtool("test", "rules", *PROMTOOL_TESTS)


def test_every_alert_is_seen_firing_and_silent() -> None:
    outcomes: dict[str, set[bool]] = {}
    for path in PROMTOOL_TESTS:
        for case in yaml.safe_load(path.read_text())["tests"]:
            for check in case["alert_rule_test"]:
                outcomes.setdefault(check["alertname"], set()).add(bool(check["exp_alerts"]))
    assert outcomes == {name: {True, False} for name in alerts()}


def test_the_reader_of_metric_names_reads_them() -> None:
    expr = 'sum by (up, le) (rate(job:ssfserve_x:rate5m{reason="process_a"}[5m])) > up == process_b'
    assert metrics_of(expr) == {"job:ssfserve_x:rate5m", "up", "process_b"}


@pytest.mark.parametrize("query", asked(), ids=lambda query: f"{query.dashboard}: {query.panel}")
def test_panels_ask_for_metrics_that_exist(query: Any) -> None:
    assert metrics_of(query.expr)
    assert metrics_of(query.expr) <= known()


@pytest.mark.parametrize(
    "rule", [*rules("recording"), *rules("alerts")], ids=lambda rule: rule.get("record") or rule["alert"]
)
def test_rules_ask_for_metrics_that_exist(rule: Rule) -> None:
    assert metrics_of(rule["expr"])
    assert metrics_of(rule["expr"]) <= known()


def test_every_recorded_series_is_used() -> None:
    used = {name for query in asked() for name in metrics_of(query.expr)}
    used |= {name for rule in alerts().values() for name in metrics_of(rule["expr"])}
    assert {rule["record"] for rule in rules("recording")} <= used


def test_every_alert_has_a_runbook_entry_and_every_entry_an_alert() -> None:
    assert sections().keys() == alerts().keys()
    for name, text in sections().items():
        assert text.strip().startswith(f"`{alerts()[name]['labels']['severity']}` · "), name
        assert "**Look, do.**" in text or ("**Look.**" in text and "**Do.**" in text), name
        assert alerts()[name]["annotations"]["runbook"] == f"docs/runbook.md#{name.lower()}"


def test_runbook_names_only_metrics_and_settings_that_exist() -> None:
    names = set(re.findall(r"\b(?:ssfserve|process)_\w+", RUNBOOK))
    assert names <= known()
    settings = {name.removeprefix(PREFIX).lower() for name in re.findall(rf"\b{PREFIX}\w+", RUNBOOK)}
    assert settings <= Settings.model_fields.keys()


def test_runbook_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", RUNBOOK):
        path, _, anchor = target.partition("#")
        text = (ROOT / "docs" / path).read_text() if path else RUNBOOK
        headings = {re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-")
                    for line in re.findall(r"(?m)^#+ (.*)$", text)}  # fmt: skip
        assert not anchor or anchor in headings, target


def test_runbook_commands_exist() -> None:
    verbs = set(re.findall(r"`ssfserve ([a-z]+)", RUNBOOK))
    assert verbs and verbs <= VERBS.keys()


# --- Grafana


def test_dashboards_are_as_the_program_writes_them() -> None:
    folder = DEPLOY / "grafana" / "dashboards"
    assert {path.name: path.read_text() for path in folder.iterdir()} == render()


@pytest.mark.parametrize("dashboard", dashboards(), ids=lambda dashboard: dashboard["uid"])
def test_panels_do_not_overlap_and_stay_on_the_page(dashboard: dict[str, Any]) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < COLUMNS
        taken |= cells
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("dashboard", dashboards(), ids=lambda dashboard: dashboard["uid"])
def test_variables_that_queries_use_are_declared(dashboard: dict[str, Any]) -> None:
    declared = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = {name for panel in dashboard["panels"] for target in panel["targets"]
            for name in re.findall(r"\$(\w+)", target["expr"]) if not name.startswith("__")}  # fmt: skip
    assert used <= declared
    assert "source" in declared


def provisioned(kind: str) -> dict[str, Any]:
    (path,) = Path(DEPLOY / "grafana" / "provisioning" / kind).glob("*.yml")
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    assert content["apiVersion"] == 1
    return content


def test_grafana_knows_how_often_prometheus_scrapes() -> None:
    (source,) = provisioned("datasources")["datasources"]
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]
