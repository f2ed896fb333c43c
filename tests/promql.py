"""What tests read out of the dashboards and rules in deploy/."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from prometheus_client import CollectorRegistry, ProcessCollector

from server.metric_families import FAMILIES

DEPLOY = Path(__file__).parents[1] / "deploy"
METRIC = re.compile(r"\b(?:\w+:)?(?:ssfserve|process)_\w+(?::\w+)?|\bup\b")
HISTOGRAM = ("_bucket", "_sum", "_count")

Rule = dict[str, Any]


class Asked(NamedTuple):
    """One query of a panel."""

    dashboard: str
    panel: str
    expr: str


def dashboards() -> list[dict[str, Any]]:
    paths = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
    return [json.loads(path.read_text()) for path in paths]


def asked() -> list[Asked]:
    """Return every query of every panel."""
    return [
        Asked(dashboard["uid"], panel["title"], target["expr"])
        for dashboard in dashboards()
        for panel in dashboard["panels"]
        for target in panel["targets"]
    ]


def rules(name: str) -> list[Rule]:
    groups = yaml.safe_load((DEPLOY / "rules" / f"{name}.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def metrics_of(expr: str) -> set[str]:
    """Return the metrics an expression names; labels and their values are none."""
    bare = re.sub(r"\b(?:by|on)\s*\([^)]*\)|\"[^\"]*\"", "", expr)
    return set(METRIC.findall(bare))


def known() -> set[str]:
    """Return every series name that a server, Prometheus itself or a recording rule makes."""
    names = {"up"} | {str(rule["record"]) for rule in rules("recording")}
    for family in FAMILIES:
        suffixes = HISTOGRAM if family.kind == "histogram" else ("",)
        names |= {f"{family.name}{suffix}" for suffix in suffixes}
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return names | {sample.name for family in registry.collect() for sample in family.samples}
