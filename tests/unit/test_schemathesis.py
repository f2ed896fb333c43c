"""Requests made from the OpenAPI document, right and wrong ones: every answer is one that the document tells.

The requests are the same in every run, and go through a real socket to an application on fakes.
"""

from collections.abc import Iterator

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.unit.oip_server import Served, served
from tests.unit.test_app_openapi import CONTRACT

EXAMPLES = 8
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
# these take nothing that could be wrong
BARE = {"GET /healthz", "GET /readyz", "GET /v2/health/live", "GET /v2/health/ready"}
CASES = [
    (operation, mode)
    for operation in sorted(CONTRACT)
    for mode in GenerationMode
    if mode is GenerationMode.POSITIVE or operation not in BARE
]
TOKENS = ("manages", "predicts", "manages-pets")


@pytest.fixture(scope="module", params=["without keys", "with keys"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("served")) as running:
        if request.param == "with keys":
            running.call(lambda world: world.add_key("manages", "manage", "predict"))
            running.call(lambda world: world.add_key("predicts", "predict"))
            running.call(lambda world: world.add_key("manages-pets", "manage", tasks=("pets",)))
        yield running


@pytest.fixture(scope="module")
def document(server: Served) -> schemathesis.BaseSchema:
    found = requests.get(f"http://{server.address}/openapi.json", timeout=30).json()
    return schemathesis.openapi.from_dict(found)


@pytest.mark.parametrize(
    ("operation", "mode"), CASES, ids=[f"{operation} {mode.value}" for operation, mode in CASES]
)
def test_every_answer_is_documented(
    server: Served, document: schemathesis.BaseSchema, operation: str, mode: GenerationMode
) -> None:
    method, path = operation.split()
    has_keys = bool(server.world.catalog.keys)
    added = server.call(lambda world: world.add("pets"))
    known = {"task": "pets", "version": str(added.version), "alias": "production"}
    strategy = document[path][method].as_strategy(generation_mode=mode)

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def ask(data: st.DataObject) -> None:
        case = data.draw(strategy)
        if data.draw(st.booleans()):  # what exists has more to answer than what does not
            case.path_parameters |= {name: known[name] for name in case.path_parameters}
        case.headers.pop("Authorization", None)
        if has_keys and (token := data.draw(st.sampled_from((None, "wrong", *TOKENS, *TOKENS)))):
            case.headers["Authorization"] = f"Bearer {token}"
        case.call_and_validate(base_url=f"http://{server.address}", checks=CHECKS, timeout=30)

    ask()
