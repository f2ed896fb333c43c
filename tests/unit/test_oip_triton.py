"""NVIDIA's clients, unchanged, and the examples of the docs, as printed."""

import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from numpy.typing import NDArray
from PIL import Image
from tritonclient.utils import InferenceServerException

from tests.builders import IMAGENET_MEAN, IMAGENET_STD
from tests.fakes import fake_logits, make_image
from tests.unit.app_parts import JPEG, pixels
from tests.unit.oip_server import Served, served

DOC = Path(__file__).parents[2] / "docs/open-inference-protocol.md"
CAT, DOG = JPEG + b"cat\xff\0", JPEG + b"dog"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("oip")) as running:
        yield running


@pytest.fixture
def client(server: Served) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.address) as opened:
        yield opened


@pytest.fixture
async def aio(server: Served) -> AsyncIterator[triton_aio.InferenceServerClient]:
    async with triton_aio.InferenceServerClient(server.address) as opened:
        yield opened


def tensor(values: NDArray[Any], datatype: str, *, binary: bool = True) -> triton.InferInput:
    made = triton.InferInput("image", list(values.shape), datatype)
    return made.set_data_from_numpy(values, binary_data=binary)


def files(*images: bytes) -> triton.InferInput:
    return tensor(np.array(images, dtype=object), "BYTES")


def logits(server: Served, *images: NDArray[np.uint8]) -> NDArray[np.float32]:
    version = server.call(lambda world: world.registry.get_version("pets", 1))
    return np.stack([fake_logits(version.digest, 3, image) for image in images])


def test_health_and_metadata(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("pets")
    assert client.is_model_ready("pets", "1")
    assert not client.is_model_ready("pets", "7")
    assert not client.is_model_ready("boats")
    assert {"binary_tensor_data", "classification"} <= set(client.get_server_metadata()["extensions"])
    for version in ("", "1"):
        model = client.get_model_metadata("pets", version)
        assert (model["name"], model["versions"]) == ("pets", ["1"])
        assert model["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
        assert [(o["name"], o["shape"]) for o in model["outputs"]] == [
            ("probabilities", [-1, 3]),
            ("logits", [-1, 3]),
        ]


@pytest.mark.parametrize("version", ["", "1"])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_files_as_binary(
    client: triton.InferenceServerClient, server: Served, version: str, compression: str | None
) -> None:
    result = client.infer(
        "pets",
        [files(CAT, DOG)],
        model_version=version,
        request_id="7",
        request_compression_algorithm=compression,
        response_compression_algorithm=compression,
    )
    wanted = logits(server, pixels(CAT), pixels(DOG))
    np.testing.assert_array_equal(result.as_numpy("logits"), wanted)
    np.testing.assert_allclose(result.as_numpy("probabilities").sum(axis=1), 1, rtol=1e-6)
    response = result.get_response()
    assert (response["model_name"], response["model_version"], response["id"]) == ("pets", "1", "7")


@pytest.mark.parametrize("binary", [True, False])
def test_pixels_and_normalised_values(
    client: triton.InferenceServerClient, server: Served, binary: bool
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 9, 4, 3), dtype=np.uint8)
    asked = [triton.InferRequestedOutput("logits", binary_data=binary)]
    result = client.infer("pets", [tensor(images, "UINT8", binary=binary)], outputs=asked)
    wanted = logits(server, *(pixels(image.tobytes()) for image in images))
    np.testing.assert_array_equal(result.as_numpy("logits"), wanted)
    assert result.as_numpy("probabilities") is None

    seen = make_image(3)
    mean, std = (np.array(x, np.float32)[:, None, None] for x in (IMAGENET_MEAN, IMAGENET_STD))
    values = (seen[None] / np.float32(255) - mean) / std
    result = client.infer("pets", [tensor(values, "FP32", binary=binary)], outputs=asked)
    np.testing.assert_array_equal(result.as_numpy("logits"), logits(server, seen))


@pytest.mark.parametrize("binary", [True, False])
def test_classification(client: triton.InferenceServerClient, server: Served, binary: bool) -> None:
    asked = [triton.InferRequestedOutput("logits", binary_data=binary, class_count=1)]
    result = client.infer("pets", [files(CAT, DOG)], outputs=asked).as_numpy("logits")
    best = logits(server, pixels(CAT), pixels(DOG)).argmax(axis=1)
    told = [entry.decode() if isinstance(entry, bytes) else entry for entry in result.ravel()]
    assert result.shape == (2, 1)
    assert [entry.split(":", 1)[1] for entry in told] == [f"{index}:pets {index}" for index in best]


def test_errors_reach_the_client(client: triton.InferenceServerClient) -> None:
    for image, status, told in (
        (b"<html>", "415", "not an image type"),
        (JPEG + b"broken", "422", "cut off"),
    ):
        with pytest.raises(InferenceServerException, match=told) as caught:
            client.infer("pets", [files(image)])
        assert caught.value.status() == status
    with pytest.raises(InferenceServerException, match="not registered"):
        client.infer("boats", [files(CAT)])


def test_async_inference_of_the_blocking_client(server: Served) -> None:
    with triton.InferenceServerClient(server.address, concurrency=2) as client:
        pending = [client.async_infer("pets", [files(image)]) for image in (CAT, DOG)]
        found = [request.get_result().as_numpy("logits")[0] for request in pending]
    np.testing.assert_array_equal(found, logits(server, pixels(CAT), pixels(DOG)))


def test_repository_and_statistics(client: triton.InferenceServerClient, server: Served) -> None:
    index = client.get_model_repository_index()
    assert {"name": "pets", "version": "1", "state": "READY", "reason": ""} in index
    client.load_model("pets")
    assert server.world.engine.resident
    client.unload_model("pets")
    assert not server.world.engine.resident
    with pytest.raises(InferenceServerException, match="upload to"):
        client.load_model("pets", config="{}")
    (before,) = client.get_inference_statistics("pets", "1")["model_stats"]
    client.infer("pets", [files(CAT, DOG)])
    (after,) = client.get_inference_statistics("pets")["model_stats"]
    assert after["inference_count"] - before["inference_count"] == 2
    assert client.get_inference_statistics()["model_stats"] == [after]


async def test_the_asyncio_client(aio: triton_aio.InferenceServerClient, server: Served) -> None:
    assert await aio.is_server_ready()
    assert await aio.is_model_ready("pets")
    assert (await aio.get_model_metadata("pets"))["versions"] == ["1"]
    assert [entry["name"] for entry in await aio.get_model_repository_index()] == ["pets"]
    result = await aio.infer("pets", [files(CAT, DOG)], request_compression_algorithm="gzip")
    np.testing.assert_array_equal(result.as_numpy("logits"), logits(server, pixels(CAT), pixels(DOG)))
    await aio.load_model("pets")
    await aio.unload_model("pets")
    assert (await aio.get_inference_statistics("pets"))["model_stats"]
    with pytest.raises(InferenceServerException, match="not an image type"):
        await aio.infer("pets", [files(b"<html>")])


def test_the_examples_of_the_docs_run_as_printed(server: Served, tmp_path: Path) -> None:
    Image.fromarray(make_image(1).transpose(1, 2, 0)).save(tmp_path / "cat.jpg")
    Image.fromarray(make_image(2).transpose(1, 2, 0)).save(tmp_path / "dog.jpg")
    blocks = re.findall(r"```(python|bash)\n(.*?)```", DOC.read_text(), re.DOTALL)
    assert [kind for kind, _ in blocks] == ["python", "python", "python", "bash"]
    digest = server.call(lambda world: world.registry.get_version("pets", 1)).digest
    for kind, code in blocks:
        program = [sys.executable, "-c"] if kind == "python" else ["bash", "-ec"]
        program.append(code.replace("localhost:8000", server.address))
        done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert digest in done.stdout or re.search(r"0\.\d{6}:\d:pets \d", done.stdout), done.stdout
