"""However a server ends, or fails to start, nothing of it is left, and one line says why."""

import signal
import time
from pathlib import Path

import pytest

from server.run_dir import PARENT
from tests.e2e.adapters import Known
from tests.e2e.servers import START_SECONDS, Server, eventually, spawn, started

pytestmark = pytest.mark.e2e


def run_dirs() -> set[Path]:
    return set(PARENT.glob("ssf-*"))


def wait_failed(server: Server) -> str:
    """Wait until the server has given up; return the last line it wrote."""

    def ended() -> bool:
        server.look()
        return server.process.poll() is not None

    eventually(ended, START_SECONDS, "giving up")
    server.wait_gone()
    assert server.process.returncode == 1
    assert "Traceback" not in server.output
    return server.output.splitlines()[-1]


def test_two_servers_on_one_host_and_a_killed_launcher(
    server: Server, tmp_path: Path, seed_dir: Path, cats: Known
) -> None:
    """A second server beside the shared one; kill -9 of its launcher ends it and nothing else."""
    before = run_dirs()
    with started(tmp_path, seed_dir=seed_dir) as second:
        assert second.url != server.url
        its_own = run_dirs() - before
        assert its_own
        assert second.pids("haproxy"), "HAProxy is below the launcher"
        assert len(second.seen) > 8
        second.process.send_signal(signal.SIGKILL)
        second.wait_gone()
    assert not its_own & run_dirs()
    assert server.is_ready()


def test_second_interrupt_ends_at_once(tmp_path: Path) -> None:
    running = spawn(tmp_path)
    eventually(lambda: bool(running.pids("raylet")), START_SECONDS, "the start of Ray")
    running.process.send_signal(signal.SIGINT)
    eventually(lambda: "stopping" in running.output, 5, "the first signal")
    running.look()
    asked = time.monotonic()
    running.process.send_signal(signal.SIGINT)
    running.wait_gone(seconds=10)
    assert time.monotonic() - asked < 10


def test_port_that_is_taken(server: Server, tmp_path: Path) -> None:
    port = int(server.url.rpartition(":")[2])
    line = wait_failed(spawn(tmp_path, port=port))
    assert f"127.0.0.1:{port} is in use" in line


def test_unknown_backbone(tmp_path: Path) -> None:
    line = wait_failed(spawn(tmp_path, backbone="resnet_of_my_dreams"))
    assert line == (
        "ssfserve: `resnet_of_my_dreams` is not supported: module `resnet_of_my_dreams` is not a timm model"
    )


def test_broken_seed(tmp_path: Path, cats: Known) -> None:
    seeds = tmp_path / "seeds"
    seeds.mkdir()
    (seeds / "cats.safetensors").write_bytes(cats.data[:-5])
    line = wait_failed(spawn(tmp_path, seed_dir=seeds))
    assert line.startswith(f"ssfserve: SSFSERVE_SEED_DIR: {seeds}/cats.safetensors: not a valid adapter file")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"slots": "many"}, "SSFSERVE_SLOTS"),
        ({"slotz": 3}, "unknown settings in environment: SSFSERVE_SLOTZ"),
        ({"host": "0.0.0.0"}, "no API key exists"),
        ({"seed_dir": "/nowhere"}, "SSFSERVE_SEED_DIR"),
    ],
)
def test_settings_that_cannot_work(tmp_path: Path, settings: dict[str, object], said: str) -> None:
    line = wait_failed(spawn(tmp_path, **settings))
    assert line.startswith("ssfserve: ")
    assert said in line
