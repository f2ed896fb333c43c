"""Write Grafana's dashboards: `python -m deploy.dashboards`. Change them here, not in Grafana.

A panel is a title, its queries and a unit; Grafana's JSON around it is the same everywhere. Grafana fills in
`$__rate_interval`; the dashboard `task` has the variable `$task`.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.panels import DASHBOARDS, Dashboard, Panel, Query

TARGET = Path(__file__).parent / "grafana" / "dashboards"
COLUMNS = 24
SOURCE = {"type": "prometheus", "uid": "${source}"}


@dataclass(frozen=True, slots=True)
class Place:
    x: int
    y: int
    width: int
    height: int

    def as_json(self) -> dict[str, int]:
        return {"x": self.x, "y": self.y, "w": self.width, "h": self.height}


def places(panels: Iterable[Panel]) -> Iterator[Place]:
    """Lay panels out from left to right; a row is as high as its first panel."""
    x = y = height = 0
    for panel in panels:
        if x + panel.width > COLUMNS:
            x, y = 0, y + height
        if x == 0:
            height = panel.height
        yield Place(x, y, panel.width, height)
        x += panel.width


def target(query: Query, letter: str, panel: Panel) -> dict[str, Any]:
    made: dict[str, Any] = {"refId": letter, "datasource": SOURCE, "expr": query.expr}
    if query.legend:
        made["legendFormat"] = query.legend
    if panel.kind == "heatmap":
        made["format"] = "heatmap"
    if panel.kind == "table":
        made |= {"format": "table", "instant": True, "range": False}
    return made


def options(panel: Panel) -> dict[str, Any]:
    if panel.kind == "stat":
        return {"reduceOptions": {"calcs": ["lastNotNull"]}, "graphMode": "area", "colorMode": "none"}
    if panel.kind == "timeseries":
        legend = {"displayMode": "list", "placement": "bottom", "showLegend": True}
        return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
    if panel.kind == "heatmap":
        return {"calculate": False, "yAxis": {"unit": panel.unit}, "cellGap": 1}
    return {"showHeader": True}


def defaults(panel: Panel) -> dict[str, Any]:
    made: dict[str, Any] = {"unit": panel.unit}
    if panel.kind == "timeseries":
        made |= {"min": 0, "custom": {"fillOpacity": 10, "spanNulls": False}}
    return made


def panel_json(panel: Panel, number: int, place: Place) -> dict[str, Any]:
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": SOURCE,
        "gridPos": place.as_json(),
        "targets": [target(query, chr(ord("A") + i), panel) for i, query in enumerate(panel.queries)],
        "fieldConfig": {"defaults": defaults(panel), "overrides": []},
        "options": options(panel),
    }


def variables(dashboard: Dashboard) -> list[dict[str, Any]]:
    source = {"name": "source", "label": "Data source", "type": "datasource", "query": "prometheus"}
    queried = [
        {
            "name": name,
            "label": name.capitalize(),
            "type": "query",
            "datasource": SOURCE,
            "definition": query,
            "query": {"query": query, "refId": name},
            "refresh": 2,  # whenever the time range changes
            "sort": 1,
        }
        for name, query in dashboard.variables.items()
    ]
    filters = {"name": "filter", "label": "Filter", "type": "adhoc", "datasource": SOURCE, "filters": []}
    return [source, *queried, filters]


def dashboard_json(dashboard: Dashboard) -> Mapping[str, Any]:
    laid_out = zip(dashboard.panels, places(dashboard.panels), strict=True)
    link = {"type": "dashboards", "tags": ["ssfserve"], "title": "ssfserve", "asDropdown": True}
    return {
        "uid": f"ssfserve-{dashboard.name}",
        "title": dashboard.title,
        "description": dashboard.text,
        "tags": ["ssfserve"],
        "schemaVersion": 39,
        "editable": False,
        "graphTooltip": 1,  # one crosshair for all panels
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "",
        "links": [link | {"keepTime": True, "includeVars": False}],
        "templating": {"list": variables(dashboard)},
        "annotations": {"list": []},
        "panels": [panel_json(panel, i, place) for i, (panel, place) in enumerate(laid_out, 1)],
    }


def render() -> dict[str, str]:
    """Return the content of each file by its name."""
    return {
        f"{dashboard.name}.json": json.dumps(dashboard_json(dashboard), indent=2, ensure_ascii=False) + "\n"
        for dashboard in DASHBOARDS
    }


if __name__ == "__main__":
    for name, text in render().items():
        (TARGET / name).write_text(text, encoding="utf-8")
