from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
import torch

from backbone.load import Backbone, load_backbone
from tests.e2e.adapters import Known, make_known
from tests.e2e.servers import SMALL, Server, started

MAX_QUEUE = 64


@pytest.fixture(scope="session")
def backbone() -> Backbone:
    """Return the backbone that the servers have, in this process."""
    torch.set_num_threads(1)
    return load_backbone(
        SMALL["SSFSERVE_BACKBONE"],
        source=SMALL["SSFSERVE_BACKBONE_SOURCE"],
        input_size=int(SMALL["SSFSERVE_INPUT_SIZE"]),
    )


@pytest.fixture(scope="session")
def cats(backbone: Backbone) -> Known:
    return make_known(backbone, seed=1)


@pytest.fixture(scope="session")
def dogs(backbone: Backbone) -> Known:
    return make_known(backbone, seed=2, classes=7)


@pytest.fixture(scope="session")
def seed_dir(tmp_path_factory: pytest.TempPathFactory, cats: Known, dogs: Known) -> Path:
    folder = tmp_path_factory.mktemp("seed")
    (folder / "cats.safetensors").write_bytes(cats.data)
    (folder / "dogs.safetensors").write_bytes(dogs.data)
    return folder


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, seed_dir: Path) -> Iterator[Server]:
    """Start the one server that most tests share, with small limits so that they can be reached."""
    limits = {"max_batch": 8, "max_queue": MAX_QUEUE, "max_pixels": 1_000_000, "max_body_bytes": "1MiB"}
    with started(tmp_path_factory.mktemp("shared"), seed_dir=seed_dir, **limits) as running:
        yield running


@pytest.fixture
async def client(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=32)
    async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as opened:
        yield opened
