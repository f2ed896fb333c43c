from functools import partial

import httpx
import numpy as np
import pytest
import tritonclient.http.aio as triton

from tests.e2e.adapters import Known, make_png
from tests.e2e.calls import TOLERANCE, Json, check_answer, in_parallel, predict, total
from tests.e2e.servers import Server

pytestmark = pytest.mark.e2e

ROUNDS = 20


async def test_two_tasks_sent_together_answer_as_each_alone_does(
    client: httpx.AsyncClient, cats: Known, dogs: Known
) -> None:
    images = [make_png(seed) for seed in range(30)]
    asked = [(known, task, image) for image in images for task, known in (("cats", cats), ("dogs", dogs))]

    answers = await in_parallel([partial(predict, client, task, image) for _, task, image in asked], width=24)

    for (known, task, image), answer in zip(asked, answers, strict=True):
        check_answer(answer, known, image)
        assert answer.json()["task"] == task


async def test_one_batch_holds_two_tasks(client: httpx.AsyncClient, cats: Known, dogs: Known) -> None:
    images = [make_png(seed) for seed in range(16)]
    before = await batches(client)
    for _ in range(ROUNDS):  # a host that decodes slower than it computes may send an image alone
        rows = await predict_many(client, images, ["cats", "dogs"])
        assert {row["digest"] for row in rows} == {cats.digest, dogs.digest}
        total_now, of_one_task = (b - a for a, b in zip(before, await batches(client), strict=True))
        if of_one_task < total_now:
            return
    pytest.fail(f"none of {total_now} batches had more than one task")


async def batches(client: httpx.AsyncClient) -> tuple[float, float]:
    """Return how many batches there were, and how many of them of one task."""
    name = "ssfserve_batch_distinct_tasks"
    return await total(client, f"{name}_count"), await total(client, f"{name}_bucket", le="1.0")


async def test_several_images_by_several_tasks_in_one_request(
    client: httpx.AsyncClient, cats: Known, dogs: Known
) -> None:
    images = [make_png(seed) for seed in (50, 51)]
    answer = await predict_many(client, images, ["cats", "dogs"])
    rows = {(row["image"], row["task"]): row for row in answer}
    assert {(i, task): rows[i, task]["digest"] for i in (0, 1) for task in ("cats", "dogs")} == {
        (i, task): known.digest for i in (0, 1) for task, known in (("cats", cats), ("dogs", dogs))
    }


async def predict_many(client: httpx.AsyncClient, images: list[bytes], tasks: list[str]) -> list[Json]:
    answer = await client.post(
        "/v1/predict",
        data={"tasks": tasks},
        files=[("images", (f"{i}.png", image, "image/png")) for i, image in enumerate(images)],
        params={"logits": "true"},
    )
    assert answer.status_code == 200, answer.text
    rows: list[Json] = answer.json()
    return rows


def test_banner_names_what_runs_and_its_command_works(server: Server) -> None:
    lines = dict(line.split(None, 1) for line in server.output.splitlines() if len(line.split(None, 1)) == 2)
    assert lines["ready"].startswith(server.url)
    assert lines["backbone"].startswith("vit_tiny_patch16_224, 5.5 M parameters, float32 on cpu, 32x32 px")
    assert lines["tasks"] == "cats, dogs"
    url = lines["try"].split()[-1]
    assert httpx.get(url).status_code == 200


async def test_the_inference_protocol_answers_as_v1_does(server: Server, client: httpx.AsyncClient) -> None:
    image = make_png(60)
    sent = triton.InferInput("image", [1], "BYTES").set_data_from_numpy(np.array([image], dtype=object))
    async with triton.InferenceServerClient(server.url.removeprefix("http://")) as opened:
        for task in ("cats", "dogs"):
            answer, on_v1 = await opened.infer(task, [sent]), await predict(client, task, image)
            logits = np.array(on_v1.json()["logits"])
            bound = TOLERANCE * np.abs(logits).max()
            np.testing.assert_allclose(answer.as_numpy("logits")[0], logits, rtol=TOLERANCE, atol=bound)
            assert answer.get_response()["parameters"]["digest"] == on_v1.json()["digest"]
