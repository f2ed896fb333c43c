import httpx
import pytest

from tests.e2e.adapters import Known, make_known, make_png
from tests.e2e.calls import check_answer, load, predict, promote, upload

pytestmark = pytest.mark.e2e

SWAPS = 20


async def test_alias_moves_under_load_without_a_failed_or_wrong_answer(
    client: httpx.AsyncClient, cats: Known, dogs: Known
) -> None:
    by_version: dict[int, Known] = {}
    for known in (cats, make_known(cats.backbone, seed=11)):
        by_version[(await upload(client, "swap", known.data))["version"]] = known
    assert set(by_version) == {1, 2}
    images = [make_png(seed) for seed in range(4)]

    async def call(number: int) -> tuple[str, bytes, httpx.Response]:
        # another task runs in the same batches
        task, image = ("swap", "dogs")[number % 2], images[number // 2 % 4]
        return task, image, await predict(client, task, image)

    async with load(call, width=8) as under_way:
        for turn in range(SWAPS):
            await promote(client, "swap", 2 - turn % 2)
            await under_way.more(8)

    served = set()
    for task, image, answer in under_way.results:
        assert answer.status_code == 200, answer.text
        version = answer.json()["version"]
        check_answer(answer, by_version[version] if task == "swap" else dogs, image)
        served.add((task, version))
    assert served == {("swap", 1), ("swap", 2), ("dogs", 1)}


async def test_move_is_seen_by_the_next_request(client: httpx.AsyncClient, cats: Known, dogs: Known) -> None:
    for known in (cats, dogs):
        await upload(client, "next", known.data)
    image = make_png(0)
    for version in (2, 1, 2):
        await promote(client, "next", version)
        assert (await predict(client, "next", image)).json()["version"] == version


async def test_deleting_a_task_in_use_answers_or_says_not_found(
    client: httpx.AsyncClient, cats: Known
) -> None:
    await upload(client, "doomed", cats.data)
    image = make_png(3)

    async with load(lambda _: predict(client, "doomed", image), width=8) as under_way:
        await under_way.more(20)
        assert (await client.delete("/v1/tasks/doomed")).status_code == 204
        await under_way.more(20)

    assert {answer.status_code for answer in under_way.results} == {200, 404}
    for answer in under_way.results:
        if answer.status_code == 200:
            check_answer(answer, cats, image)
        else:
            assert answer.json()["error_type"] == "task_not_found"
    assert (await predict(client, "doomed", image)).status_code == 404
    assert (await predict(client, "cats", image)).status_code == 200, "the same adapter under another task"
