"""A replica without Ray, on a fake device."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from adapters.manifest import Manifest
from registry.errors import InvalidName
from server.contracts import Device
from server.errors import ImageInvalid, QueueFull, SettingsInvalid
from server.fast_images import read_fast, read_scaled
from server.images import Reader, read_with_pillow
from server.replica import Replica, disk_of
from server.settings import Settings
from tests.builders import make_manifest
from tests.fakes import WRONG_PROBE, FakeDevice, make_adapter_file

PETS = make_adapter_file(b"pets")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "seeds").mkdir()
    (tmp_path / "seeds" / "pets.safetensors").write_bytes(PETS)
    return tmp_path


async def opened(folder: Path, **given: object) -> Replica:
    settings = Settings.load({"data_dir": folder / "data", "seed_dir": folder / "seeds", **given})

    def open_device(_: Settings) -> Device:
        return FakeDevice()

    return await Replica.open(settings, open_device=open_device)


@pytest.fixture
async def replica(folder: Path) -> AsyncIterator[Replica]:
    made = await opened(folder)
    yield made
    await made.close()


def client_of(replica: Replica) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=replica.app)
    return httpx.AsyncClient(transport=transport, base_url="http://localhost")


async def test_replica_is_ready_and_serves_its_seeds(replica: Replica) -> None:
    async with client_of(replica) as client:
        assert (await client.get("/readyz")).status_code == 200
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/v1/tasks/pets")).json()["aliases"] == {"production": 1}
    assert (replica.tasks(), replica.answers("pets")) == (["pets"], True)


async def test_closed_replica_wants_no_traffic_and_refuses_jobs(folder: Path) -> None:
    replica = await opened(folder)
    await replica.close()
    async with client_of(replica) as client:
        answer = await client.get("/readyz")
    assert (answer.status_code, answer.json()["status"]) == (503, "draining")


async def test_metrics_show_the_parts_at_work(replica: Replica) -> None:
    async with client_of(replica) as client:
        text = (await client.get("/metrics")).text
    families = text_string_to_metric_families(text)
    shown = {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}
    assert shown["ssfserve_registry_seconds_count", "add_version"] == 1
    assert shown["ssfserve_slots",] == 4
    assert shown["ssfserve_tasks",] == 1


@pytest.mark.parametrize(
    ("decoding", "read"), [("fast", read_fast), ("scaled", read_scaled), ("pillow", read_with_pillow)]
)
async def test_images_are_read_as_settings_say(decoding: str, read: Reader, folder: Path) -> None:
    replica = await opened(folder, decoding=decoding)
    assert replica.decoder._read is read
    await replica.close()


async def test_as_many_images_wait_for_decoding_as_for_the_device(folder: Path) -> None:
    replica = await opened(folder, max_queue=3, decode_threads=1)
    calls = [replica.decoder.decode(b"\xff\xd8\xff", None) for _ in range(5)]
    ends = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(end) for end in ends] == [ImageInvalid] * 4 + [QueueFull]
    await replica.close()


async def test_replicas_that_start_together_seed_once(folder: Path) -> None:
    replicas = await asyncio.gather(*(opened(folder) for _ in range(4)))
    versions = await replicas[0].registry.list_versions("pets")
    assert [version.version for version in versions] == [1]
    for replica in replicas:
        await replica.close()


async def test_seed_of_a_task_that_exists_is_left_alone(folder: Path) -> None:
    await (await opened(folder)).close()
    (folder / "seeds" / "pets.safetensors").write_bytes(make_adapter_file(b"other"))
    replica = await opened(folder)
    assert len(await replica.registry.list_versions("pets")) == 1
    await replica.close()


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("cats", b"garbage", "not a valid adapter file"),
        ("cats", make_adapter_file(WRONG_PROBE), "probe logits differ"),
        ("Not A Task", make_adapter_file(), str(InvalidName("task", "Not A Task"))),
    ],
)
async def test_broken_seed_stops_the_start_and_is_named(
    folder: Path, name: str, data: bytes, reason: str
) -> None:
    path = folder / "seeds" / f"{name}.safetensors"
    path.write_bytes(data)
    with pytest.raises(SettingsInvalid) as caught:
        await opened(folder)
    assert str(caught.value).startswith(f"SSFSERVE_SEED_DIR: {path}: ")
    assert reason in str(caught.value)


async def test_registered_adapter_that_does_not_fit_is_told_but_stops_nothing(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another backbone over an existing registry: the server starts, and says which task it cannot serve."""
    await (await opened(folder)).close()
    (folder / "seeds" / "pets.safetensors").unlink()
    monkeypatch.setattr("tests.fakes.FINGERPRINT", "a" * 64)
    replica = await opened(folder)
    assert "task pets cannot be served" in caplog.text
    assert (replica.tasks(), replica.answers("pets")) == (["pets"], False)
    await replica.close()


async def test_the_warm_up_runs_what_fits_where_the_first_task_does_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await (await opened(folder)).close()
    (folder / "seeds" / "pets.safetensors").unlink()
    monkeypatch.setattr("tests.fakes.FINGERPRINT", "a" * 64)
    fits = make_adapter_file(manifest=make_manifest(fingerprint="a" * 64))
    (folder / "seeds" / "zoo.safetensors").write_bytes(fits)
    checked: list[bool] = []
    validate = FakeDevice.validate

    def watched(device: FakeDevice, data: bytes, *, new: bool = True) -> Manifest:
        manifest = validate(device, data, new=new)
        checked.append(new)
        return manifest

    monkeypatch.setattr(FakeDevice, "validate", watched)
    replica = await opened(folder)
    assert checked == [True, False]  # the seed on its way in, and the warm-up
    assert [task for task in replica.tasks() if replica.answers(task)] == ["zoo"]
    await replica.close()


def test_only_a_remote_registry_gets_a_disk_cache(tmp_path: Path) -> None:
    assert disk_of(Settings.load({"data_dir": tmp_path})) is None
    assert disk_of(Settings.load({"data_dir": tmp_path, "registry": "redis://x"})) == tmp_path / "cache"
