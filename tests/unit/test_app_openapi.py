"""What `/docs` says is true and complete, and the application is light."""

import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from server.answers import ANSWERS, INTERNAL
from server.schemas import Error
from tests.unit.app_parts import World, running

ROOT = Path(__file__).parents[2]
CONTRACT = {
    "POST /v1/tasks/{task}/predict",
    "POST /v1/predict",
    "GET /v1/tasks",
    "GET /v1/tasks/{task}",
    "DELETE /v1/tasks/{task}",
    "POST /v1/tasks/{task}/versions",
    "GET /v1/tasks/{task}/versions/{version}",
    "GET /v1/tasks/{task}/versions/{version}/adapter",
    "DELETE /v1/tasks/{task}/versions/{version}",
    "GET /v1/tasks/{task}/aliases/{alias}",
    "PUT /v1/tasks/{task}/aliases/{alias}",
    "POST /v1/tasks/{task}/aliases/{alias}/rollback",
    "POST /v1/tasks/{task}/prefetch",
    "PUT /v1/tasks/{task}/pin",
    "DELETE /v1/tasks/{task}/pin",
    "GET /v1/audit",
    "GET /v1/backbone",
    "GET /v1/replicas",
    "GET /healthz",
    "GET /readyz",
    "GET /metrics",
    "GET /v2",
    "GET /v2/health/live",
    "GET /v2/health/ready",
    "GET /v2/models/{task}",
    "GET /v2/models/{task}/ready",
    "GET /v2/models/{task}/stats",
    "POST /v2/models/{task}/infer",
    "GET /v2/models/{task}/versions/{version}",
    "GET /v2/models/{task}/versions/{version}/ready",
    "GET /v2/models/{task}/versions/{version}/stats",
    "POST /v2/models/{task}/versions/{version}/infer",
    "GET /v2/models/stats",
    "POST /v2/repository/index",
    "POST /v2/repository/models/{task}/load",
    "POST /v2/repository/models/{task}/unload",
}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with running(tmp_path) as world:
        yield world


@pytest.fixture
async def document(world: World) -> dict[str, Any]:
    found: dict[str, Any] = (await world.client.get("/openapi.json")).json()
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def test_the_contract_is_complete(document: dict[str, Any]) -> None:
    assert {name for name, _ in operations(document)} == CONTRACT


def test_every_documented_error_is_one_of_the_table(document: dict[str, Any]) -> None:
    table = {answer.error_type: answer.status for answer in (*ANSWERS.values(), INTERNAL)}
    seen = set()
    for name, operation in operations(document):
        for status, response in operation["responses"].items():
            examples = response.get("content", {}).get("application/json", {}).get("examples", {})
            for error_type, example in examples.items():
                assert table[error_type] == int(status), name
                assert Error.model_validate(example["value"]).error_type == error_type
                seen.add(error_type)
    assert len(seen) > 25


def test_every_operation_says_what_it_does_and_how_it_fails(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        assert operation["description"], name
        if operation.get("security") != []:
            assert {"401", "403"} <= set(operation["responses"]), name
        for parameter in operation.get("parameters", ()):
            assert parameter["schema"], name


def test_bodies_are_documented(document: dict[str, Any]) -> None:
    content = {
        name: set(op["requestBody"]["content"]) for name, op in operations(document) if "requestBody" in op
    }
    assert set(content) == {
        "POST /v1/tasks/{task}/predict",
        "POST /v1/predict",
        "POST /v1/tasks/{task}/versions",
        "PUT /v1/tasks/{task}/aliases/{alias}",
        "POST /v2/models/{task}/infer",
        "POST /v2/models/{task}/versions/{version}/infer",
        "POST /v2/repository/index",
        "POST /v2/repository/models/{task}/load",
    }
    assert {"image/jpeg", "image/png", "multipart/form-data"} <= content["POST /v1/tasks/{task}/predict"]


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert set(references(document)) <= known


def references(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "$ref":
                yield value
            else:
                yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


async def test_the_docs_page_and_all_it_needs_is_there(world: World) -> None:
    """Nothing comes from elsewhere, and nothing that is written in the page itself may run."""
    page = await world.client.get("/docs")
    assert page.status_code == 200
    assert "ssfserve" in page.text
    assert not re.search(r"https?://|<script>|<style>|style=", page.text)
    linked = re.findall(r'(?:src|href)="(/[^"]+)"', page.text)
    assert len(linked) == 3
    for path in linked:
        asset = await world.client.get(path)
        assert (asset.status_code, asset.headers["cache-control"]) == (200, "public, max-age=86400"), path
        assert asset.headers["content-type"].startswith("text/css" if path.endswith(".css") else "text/java")
    policy = page.headers["content-security-policy"]
    assert "script-src 'self';" in policy
    assert "unsafe-eval" not in policy
    start = (await world.client.get("/docs/start.js")).text
    assert '"/openapi.json"' in start
    assert "validatorUrl: null" in start, "or the page would ask another server about this one"


@pytest.mark.parametrize("module", ["server.app", "server.settings", "server.catalog"])
def test_the_http_layer_loads_neither_torch_nor_ray(module: str) -> None:
    code = f"import sys, {module}; sys.exit(any(name in sys.modules for name in ('torch', 'ray', 'timm')))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
