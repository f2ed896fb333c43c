"""Failed predictions count for their task, once each, and only for tasks that exist."""

from pathlib import Path

from server.errors import ComputeFailed
from tests.unit.app_parts import JPEG, running


async def test_a_failed_prediction_counts_for_its_task(tmp_path: Path) -> None:
    async with running(tmp_path) as world:
        await world.add("pets")
        headers = {"content-type": "image/jpeg"}
        for body in (JPEG, JPEG + b"broken"):
            await world.client.post("/v1/tasks/pets/predict", content=body, headers=headers)
        world.engine.error = ComputeFailed("pets", 1)
        await world.client.post("/v1/tasks/pets/predict", content=JPEG, headers=headers)
        await world.client.post("/v1/tasks/nosuch/predict", content=JPEG, headers=headers)
        await world.client.get("/v1/tasks/pets/versions/9")
        assert [task for task, _ in world.metrics.predictions] == ["pets"]
        assert [(task, status // 100) for task, status in world.metrics.failures] == [
            ("pets", 4),
            ("pets", 5),
        ]


async def test_rows_that_fail_count_for_their_tasks(tmp_path: Path) -> None:
    async with running(tmp_path) as world:
        await world.add("pets")
        await world.add("cars")
        contents = (JPEG, JPEG + b"broken")
        files = [("images", ("a.jpg", content, "image/jpeg")) for content in contents]
        answer = await world.client.post(
            "/v1/predict", files=files, data={"tasks": ["pets", "cars@production", "nosuch"]}
        )
        assert answer.status_code == 200
        assert sorted(task for task, _ in world.metrics.predictions) == ["cars", "pets"]
        assert sorted(task for task, _ in world.metrics.failures) == ["cars", "pets"]
