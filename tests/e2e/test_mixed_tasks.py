from functools import partial

import httpx
import pytest

from tests.e2e.adapters import Known, make_png
from tests.e2e.calls import check_answer, in_parallel, predict, total
from tests.e2e.servers import Server

pytestmark = pytest.mark.e2e


async def test_two_tasks_mixed_in_a_batch_answer_as_each_alone_does(
    client: httpx.AsyncClient, cats: Known, dogs: Known
) -> None:
    images = [make_png(seed) for seed in range(30)]
    asked = [(known, task, image) for image in images for task, known in (("cats", cats), ("dogs", dogs))]
    batches = await total(client, "ssfserve_batch_distinct_tasks_count")
    of_one_task = await total(client, "ssfserve_batch_distinct_tasks_bucket", le="1.0")

    answers = await in_parallel([partial(predict, client, task, image) for _, task, image in asked], width=24)

    for (known, task, image), answer in zip(asked, answers, strict=True):
        check_answer(answer, known, image)
        assert answer.json()["task"] == task
    batches = await total(client, "ssfserve_batch_distinct_tasks_count") - batches
    of_one_task = await total(client, "ssfserve_batch_distinct_tasks_bucket", le="1.0") - of_one_task
    assert 0 < batches < len(asked)
    assert of_one_task < batches, "no batch had more than one task"


async def test_several_images_by_several_tasks_in_one_request(
    client: httpx.AsyncClient, cats: Known, dogs: Known
) -> None:
    images = [make_png(seed) for seed in (50, 51)]
    answer = await client.post(
        "/v1/predict",
        data={"tasks": ["cats", "dogs"]},
        files=[("images", (f"{i}.png", image, "image/png")) for i, image in enumerate(images)],
        params={"logits": "true"},
    )
    assert answer.status_code == 200, answer.text
    rows = {(row["image"], row["task"]): row for row in answer.json()}
    assert {(i, task): rows[i, task]["digest"] for i in (0, 1) for task in ("cats", "dogs")} == {
        (i, task): known.digest for i in (0, 1) for task, known in (("cats", cats), ("dogs", dogs))
    }


def test_banner_names_what_runs_and_its_command_works(server: Server) -> None:
    lines = dict(line.split(None, 1) for line in server.output.splitlines() if len(line.split(None, 1)) == 2)
    assert lines["ready"].startswith(server.url)
    assert lines["backbone"].startswith("vit_tiny_patch16_224, 5.5 M parameters, float32 on cpu, 32x32 px")
    assert lines["tasks"] == "cats, dogs"
    url = lines["try"].split()[-1]
    assert httpx.get(url).status_code == 200
