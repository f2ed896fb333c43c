"""Keys: who needs one, what it allows, and that every route asks for it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fastapi.routing import APIRoute, _IncludedRouter
from starlette.routing import BaseRoute, Route

from registry.models import ApiKey
from server.auth import ANYBODY, Caller, Gate, Scope, hash_token
from server.errors import Forbidden, ForeignPage, Unauthorized
from server.settings import Settings
from tests.unit.app_parts import JPEG, World, running

OPEN = {
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/docs"),
    ("GET", "/docs/start.js"),
    ("GET", "/docs/swagger-ui-bundle.js"),
    ("GET", "/docs/swagger-ui.css"),
    ("GET", "/openapi.json"),
    ("GET", "/v2/health/live"),
    ("GET", "/v2/health/ready"),
}
PREDICTS = ("predict", "/infer")
MANAGERS = ("/adapter", "/audit", "/replicas")  # that change nothing either
LOOKS = ("/v2/repository/index",)  # a POST that changes nothing


class Keys:
    def __init__(self, *keys: ApiKey) -> None:
        self.keys = {key.secret_hash: key for key in keys}


def make_key(token: str, *scopes: Scope, tasks: tuple[str, ...] = ("*",)) -> ApiKey:
    return ApiKey(
        name=token, secret_hash=hash_token(token), scopes=frozenset(scopes), tasks=tasks, created=1.0
    )


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Two tasks and four keys, named by what they may do."""
    async with running(tmp_path) as world:
        await world.add("pets")
        await world.add("cars")
        await world.add_key("predicts", "predict")
        await world.add_key("manages", "manage")
        await world.add_key("predicts-pets", "predict", tasks=("pet*", "dogs"))
        await world.add_key("manages-pets", "manage", tasks=("pets",))
        yield world


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def routes(world: World) -> list[tuple[str, str, BaseRoute]]:
    """Return (method, path, route) of everything the application answers."""
    found: list[tuple[str, str, BaseRoute]] = []
    pending = list(world.app.routes)
    while pending:
        route = pending.pop()
        if isinstance(route, Route | APIRoute):
            methods = (route.methods or set()) - {"HEAD"}
            found += [(method, route.path, route) for method in methods]
        else:
            pending += _inside(route)
    return found


def _inside(route: BaseRoute) -> list[BaseRoute]:
    """Return the routes of an included router; anything else would be a hole in the tests below."""
    assert isinstance(route, _IncludedRouter), f"the test cannot look into {route!r}"
    assert not route.include_context.prefix
    return list(route.original_router.routes)


def test_on_loopback_nobody_needs_a_key_until_one_exists() -> None:
    assert Gate(Settings(), Keys()).admit(None) is ANYBODY
    with pytest.raises(Unauthorized):
        Gate(Settings(), Keys(make_key("a", "predict"))).admit(None)


def test_beyond_loopback_a_key_is_needed_even_before_one_exists() -> None:
    with pytest.raises(Unauthorized):
        Gate(Settings(host="0.0.0.0"), Keys()).admit(None)
    allowed = Settings(host="0.0.0.0", allow_unauthenticated=True)
    assert Gate(allowed, Keys()).admit(None) is ANYBODY
    with pytest.raises(Unauthorized):
        Gate(allowed, Keys(make_key("a", "predict"))).admit(None)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer b",
        "Basic a",
        "a",
        "Bearer a b",
        "Bearer \xe4",
        "Bearer " + "a" * 9999,
    ],
)
def test_what_is_not_a_key_is_refused(header: str) -> None:
    with pytest.raises(Unauthorized):
        Gate(Settings(), Keys(make_key("a", "predict"))).admit(header)


def test_the_hash_of_a_key_is_not_a_key() -> None:
    with pytest.raises(Unauthorized):
        Gate(Settings(), Keys(make_key("a", "predict"))).admit(f"Bearer {hash_token('a')}")


@pytest.mark.parametrize("header", ["Bearer a", "bearer a", "BEARER  a "])
def test_a_key_tells_who_calls(header: str) -> None:
    caller = Gate(Settings(), Keys(make_key("a", "predict", tasks=("x",)))).admit(header)
    assert caller == Caller("a", frozenset({"predict"}), ("x",), key_id=hash_token("a")[:12])


@pytest.mark.parametrize(
    ("patterns", "task", "allowed"),
    [
        (("*",), "pets", True),
        (("pets",), "pets", True),
        (("pet*",), "pets", True),
        (("cars", "p?ts"), "pets", True),
        (("pet",), "pets", False),
        (("*-eu",), "pets", False),
        ((), "pets", False),
    ],
)
def test_patterns_say_which_tasks(patterns: tuple[str, ...], task: str, allowed: bool) -> None:
    caller = Caller("a", frozenset({"predict"}), patterns)
    assert caller.may_use(task) is allowed
    if not allowed:
        with pytest.raises(Forbidden):
            caller.check_task(task)


async def test_every_route_but_the_open_ones_refuses_without_a_key(world: World) -> None:
    table = routes(world)
    assert len(table) > 15
    for method, path, _ in table:
        url = path.replace("{task}", "pets").replace("{version}", "1").replace("{alias}", "production")
        for headers in ({}, bearer("wrong")):
            response = await world.client.request(method, url, headers=headers)
            if (method, path) in OPEN:
                assert response.status_code == 200, (method, path)
            else:
                assert response.status_code == 401, (method, path)
                assert response.json()["error_type"] == "unauthorized"
                assert response.headers["www-authenticate"] == "Bearer"


async def test_the_open_routes_are_those_of_the_list(world: World) -> None:
    assert {(method, path) for method, path, _ in routes(world)} >= OPEN


async def test_every_route_of_a_task_asks_for_the_task(world: World) -> None:
    for method, path, _ in routes(world):
        if "{task}" not in path:
            continue
        url = path.replace("{task}", "cars").replace("{version}", "1").replace("{alias}", "production")
        for token in ("predicts-pets", "manages-pets"):
            response = await world.client.request(method, url, headers=bearer(token))
            assert (response.status_code, response.json()["error_type"]) == (403, "forbidden"), (method, path)


async def test_scopes_split_predicting_from_managing(world: World) -> None:
    for method, path, _ in routes(world):
        if (method, path) in OPEN:
            continue
        url = path.replace("{task}", "pets").replace("{version}", "1").replace("{alias}", "production")
        url = url.replace("/versions/1", "/versions/9")  # so that nothing is deleted on the way
        if (method, path) == ("DELETE", "/v1/tasks/{task}"):
            continue
        predicts = await world.client.request(method, url, headers=bearer("predicts"))
        manages = await world.client.request(method, url, headers=bearer("manages"))
        looks = method == "GET" or path in LOOKS
        for_managers = path.endswith(MANAGERS) or not (looks or path.endswith(PREDICTS))
        assert (predicts.status_code == 403) == for_managers, (method, path)
        assert (manages.status_code == 403) == path.endswith(PREDICTS), (method, path)


async def test_a_forbidden_task_does_not_tell_whether_it_exists(world: World) -> None:
    answers = [
        await world.client.post(f"/v1/tasks/{task}/predict", content=JPEG, headers=bearer("predicts-pets"))
        for task in ("cars", "nonsense")
    ]
    assert [answer.status_code for answer in answers] == [403, 403]


async def test_a_key_is_asked_for_before_the_body_is_read(world: World) -> None:
    async def endless() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    response = await world.client.post("/v1/tasks/pets/versions", content=endless())
    assert response.status_code == 401


async def test_rows_are_checked_one_by_one(world: World) -> None:
    response = await world.client.post(
        "/v1/predict",
        files={"images": JPEG},
        data={"tasks": ["pets", "cars", "cars:1"]},
        headers=bearer("predicts-pets"),
    )
    assert [row.get("status", 200) for row in response.json()] == [200, 403, 403]


async def test_the_list_shows_what_the_key_covers(world: World) -> None:
    for token, names in (("predicts", ["cars", "pets"]), ("predicts-pets", ["pets"])):
        response = await world.client.get("/v1/tasks", headers=bearer(token))
        assert [task["task"] for task in response.json()["tasks"]] == names


async def test_a_deleted_key_stops_working(world: World) -> None:
    url, headers = "/v1/tasks", bearer("predicts")
    assert (await world.client.get(url, headers=headers)).status_code == 200
    await world.registry.delete_key("predicts")
    await world.catalog.refresh()
    assert (await world.client.get(url, headers=headers)).status_code == 401


@pytest.mark.parametrize("name", ["localhost", "localhost:8000", "127.0.0.1:8000", "[::1]:8000"])
def test_without_keys_this_machine_is_answered(name: str) -> None:
    assert Gate(Settings(), Keys()).admit(None, host=name, origin=f"http://{name}") is ANYBODY


@pytest.mark.parametrize(
    "sent",
    [{"host": "evil.example"}, {"host": "localhost", "origin": "http://evil.example"}, {"origin": "null"}],
)
def test_without_keys_a_web_page_of_another_site_is_refused(sent: dict[str, str]) -> None:
    with pytest.raises(ForeignPage, match="SSFSERVE_ALLOW_UNAUTHENTICATED"):
        Gate(Settings(), Keys()).admit(None, **sent)
    assert Gate(Settings(allow_unauthenticated=True), Keys()).admit(None, **sent) is ANYBODY
    caller = Gate(Settings(), Keys(make_key("a", "predict"))).admit("Bearer a", **sent)
    assert caller.name is not None
