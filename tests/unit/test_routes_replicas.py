"""Moving an alias and waiting for all replicas, over HTTP; who they are."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from registry import START, Lease
from tests.unit.app_parts import World, running

URL = "/v1/tasks/pets/aliases/production"
SHORT = {"x-request-timeout-ms": "100"}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with running(tmp_path) as made:
        await made.add("pets", b"one")
        await made.add("pets", b"two")
        yield made


async def behind(world: World) -> None:
    """Let another replica be there that has applied nothing."""
    await world.registry.put_lease(Lease(replica="elsewhere", cursor=START, beat=1, seconds=10))


async def test_a_move_tells_who_confirmed_it_only_if_asked(world: World) -> None:
    here = world.catalog.membership.name
    moved = await world.client.put(f"{URL}?wait=true", json={"version": 2})
    assert (moved.status_code, moved.json()["confirmed_by"]) == (200, [here])
    back = await world.client.post(f"{URL}/rollback?wait=true")
    assert (back.status_code, back.json()["version"], back.json()["confirmed_by"]) == (200, 1, [here])
    assert (await world.client.put(URL, json={"version": 2})).json()["confirmed_by"] is None


@pytest.mark.parametrize("call", ["put", "rollback"])
async def test_a_move_that_one_replica_has_not_confirmed_stands_and_says_so(world: World, call: str) -> None:
    await world.client.put(URL, json={"version": 2})
    await behind(world)
    if call == "put":
        answer = await world.client.put(f"{URL}?wait=true", json={"version": 1}, headers=SHORT)
    else:
        answer = await world.client.post(f"{URL}/rollback?wait=true", headers=SHORT)
    assert (answer.status_code, answer.json()["error_type"]) == (504, "not_confirmed")
    assert "elsewhere" not in answer.text
    assert (await world.client.get("/v1/tasks/pets")).json()["aliases"] == {"production": 1}


async def test_repeating_the_call_waits_on_without_another_move(world: World) -> None:
    await behind(world)
    await world.client.put(f"{URL}?wait=true", json={"version": 2}, headers=SHORT)
    latest = await world.registry.cursor()
    await world.registry.put_lease(Lease(replica="elsewhere", cursor=latest, beat=2, seconds=10))
    again = await world.client.put(f"{URL}?wait=true", json={"version": 2})
    assert (again.status_code, len(again.json()["confirmed_by"])) == (200, 2)
    assert await world.registry.cursor() == latest


async def test_a_bad_question_moves_nothing(world: World) -> None:
    for query in ("?wait=perhaps", "?weight=true"):
        answer = await world.client.put(URL + query, json={"version": 2})
        assert answer.status_code == 422
    assert (await world.client.get("/v1/tasks/pets")).json()["aliases"] == {"production": 1}


async def test_replicas_are_listed_with_how_far_each_is(world: World) -> None:
    await behind(world)
    found = (await world.client.get("/v1/replicas")).json()["replicas"]
    assert {(r["replica"], r["answers"], r["behind"]) for r in found} == {
        ("elsewhere", False, 3),
        (world.catalog.membership.name, True, 0),
    }
    assert all(r["silent_seconds"] >= 0 and r["lease_seconds"] == 10 for r in found)


async def test_replicas_are_shown_to_who_may_manage(world: World) -> None:
    await world.add_key("reader", "predict")
    answer = await world.client.get("/v1/replicas", headers={"authorization": "Bearer reader"})
    assert answer.status_code == 403
