"""What the launcher arranges, without starting Ray. The end-to-end tests start it."""

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import astuple, replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from server import banner, haproxy, ports, preflight
from server.cores import available_cores, gpu_share, with_threads
from server.errors import SettingsInvalid
from server.ray_environment import ray_environment, token_file
from server.ray_launcher import with_absolute_paths
from server.run_dir import RunDir
from server.settings import Settings

RAY_CONFIG = """\
global
    nbthread 2
defaults
    mode http
    errorfile 502 /tmp/x/500.http
    errorfile 503 /tmp/x/500.http
frontend prometheus
    bind :20001
    mode http
frontend http_frontend
    bind 127.0.0.1:8000
    default_backend default_backend
backend default_backend
    http-request return status 404 content-type text/plain lf-string "Path not found."
listen stats
  bind *:20002
  stats enable
"""
FRONT = haproxy.Front(host="0.0.0.0", port=8000, folder="/run/front", tls=False)


def settings(**given: object) -> Settings:
    return Settings.load(given)


@pytest.fixture
def run() -> Iterator[RunDir]:
    made = RunDir.create()
    yield made
    made.remove()


def test_haproxy_offers_its_insides_on_loopback_only() -> None:
    closed = haproxy.change(RAY_CONFIG, FRONT)
    assert "    bind 127.0.0.1:20001\n" in closed
    assert "  bind 127.0.0.1:20002\n" in closed
    assert "    bind 0.0.0.0:8000\n" in closed, "clients come in where it was asked for"
    assert haproxy.change(closed, FRONT) == closed


def test_templates_of_this_ray_have_the_binds_that_are_closed() -> None:
    """If Ray Serve words them otherwise some day, this fails rather than the ports being open."""
    spec = find_spec("ray")  # read, not imported: Ray's own warnings would be errors here
    assert spec
    assert spec.origin
    templates = (Path(spec.origin).parent / "serve/_private/haproxy_templates.py").read_text()
    for name, port in (("metrics_port", "20001"), ("stats_port", "20002")):
        templates = templates.replace(f"{{{{ config.{name} }}}}", port)
    assert [port for _, _, port in haproxy.OPEN_BIND.findall(templates)] == ["20001", "20002"]
    bind = "bind {{ config.frontend_host }}:{{ config.frontend_port }}"
    assert len(haproxy.FRONTEND.findall(templates.replace(bind, "bind 127.0.0.1:8000"))) == 1


def test_script_becomes_the_binary_with_a_closed_configuration(tmp_path: Path) -> None:
    config, script = tmp_path / "haproxy.cfg", tmp_path / "haproxy"
    config.write_text(RAY_CONFIG)
    front = replace(FRONT, folder=str(tmp_path))
    haproxy.write_script(script, "/bin/echo", front)
    told = subprocess.run([script, "-db", "-f", config], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["-db", "-f", str(config)]
    assert config.read_text() == haproxy.change(RAY_CONFIG, front)


def test_servers_on_one_host_share_no_port() -> None:
    first, second = ports.choose(8000), ports.choose(8001)
    assert len(single_ports(first)) == len(single_ports(second)) == 6
    assert not single_ports(first) & single_ports(second)
    assert not set(first.replicas) & set(second.replicas)


@pytest.mark.parametrize("public", [1, 80, 8000, 32_767, 65_535])
def test_chosen_ports_stay_in_their_ranges(public: int) -> None:
    chosen = ports.choose(public)
    assert chosen.fallback in ports.INTERNAL
    assert chosen.replicas.start in ports.REPLICAS
    assert chosen.replicas.stop <= ports.REPLICAS.stop


def test_port_in_use_is_passed_over() -> None:
    wanted = ports.choose(8000).fallback
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", wanted))
        taken.listen()
        assert wanted not in single_ports(ports.choose(8000))


def single_ports(chosen: ports.Ports) -> set[int]:
    return {value for value in astuple(chosen) if isinstance(value, int)}


def test_only_with_a_certificate_clients_speak_tls() -> None:
    plain, secured = (haproxy.change(RAY_CONFIG, replace(FRONT, tls=tls)) for tls in (False, True))
    assert " ssl " not in plain
    assert "strict-transport-security" not in plain
    assert "bind 0.0.0.0:8000 ssl crt /run/front/tls.pem " in secured
    assert "strict-transport-security" in secured
    six = haproxy.change(RAY_CONFIG, replace(FRONT, host="::"))
    assert "    bind [::]:8000\n" in six


def test_taken_port_is_refused_with_its_name() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SettingsInvalid, match=f"SSFSERVE_PORT: 127.0.0.1:{port} is in use"):
            preflight.check_port(settings(port=port))


def test_address_of_another_machine_is_refused() -> None:
    with pytest.raises(SettingsInvalid, match=r"SSFSERVE_HOST: cannot listen on 192\.0\.2\.1:8000"):
        preflight.check_port(settings(host="192.0.2.1"))


def test_data_dir_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    with pytest.raises(SettingsInvalid, match="SSFSERVE_DATA_DIR"):
        preflight.check_data_dir(tmp_path / "data")


def test_token_is_private_and_lasts(tmp_path: Path) -> None:
    path = token_file(tmp_path / "data")
    token = path.read_text()
    assert len(token) == 64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert token_file(tmp_path / "data").read_text() == token
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_environment_keeps_a_server_to_itself(tmp_path: Path, run: RunDir) -> None:
    environment = ray_environment(settings(data_dir=tmp_path), run, ports.choose(8000))
    ours = str(run.path)
    paths = {name: value for name, value in environment.items() if value.startswith("/")}
    assert all(value.startswith((ours, str(tmp_path))) for value in paths.values()), paths
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"


def test_socket_paths_stay_within_what_haproxy_takes(run: RunDir) -> None:
    node_id = "f" * 56
    assert len(str(run.path / node_id / "admin.sock")) <= 97


def test_run_dir_is_private_and_brings_reports(run: RunDir) -> None:
    assert stat.S_IMODE(run.path.stat().st_mode) == 0o700
    assert (run.ready(), run.failure()) == ([], None)
    run.report_ready({"tasks": ["pets"]})
    run.report_failure("no weights")
    assert run.ready() == [{"tasks": ["pets"]}]
    assert run.failure() == "no weights"


def test_run_is_over_when_nobody_holds_it(run: RunDir) -> None:
    assert not run.is_over(), "it has not begun"
    lock = run.hold()
    heir = subprocess.Popen(["sleep", "100"], pass_fds=[lock])
    os.close(lock)
    assert not run.is_over(), "the child holds it"
    RunDir.sweep()
    assert run.path.exists()
    heir.kill()
    heir.wait()
    assert run.is_over()


def test_sweep_ends_and_removes_what_a_killed_run_left(run: RunDir) -> None:
    os.close(run.hold())
    with (run.path / "some.log").open("w") as log:
        left = subprocess.Popen(["sleep", "100"], stdout=log)
    RunDir.sweep()
    assert left.wait(timeout=20) == -signal.SIGKILL
    assert not run.path.exists()


def test_launcher_does_not_load_ray() -> None:
    code = "import sys, server.ray_launcher; sys.exit('ray' in sys.modules or 'torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_cores_follow_a_container_quota(tmp_path: Path) -> None:
    quota = tmp_path / "cpu.max"
    quota.write_text("100000 100000\n")
    assert available_cores(quota) == 1
    quota.write_text("max 100000\n")
    assert available_cores(quota) == available_cores(tmp_path / "missing")


def test_replicas_share_the_cores() -> None:
    cores = available_cores()
    assert with_threads(settings()).threads == cores
    assert with_threads(settings(replicas=cores)).threads == 1
    assert with_threads(settings(replicas=cores * 4)).decode_threads == 1
    assert with_threads(settings(threads=3)).threads == 3
    assert with_threads(settings(max_replicas=cores)).threads == 1, "as many as there may be"


@pytest.mark.parametrize(
    ("replicas", "gpus", "share"),
    [(1, 1, 1.0), (4, 4, 1.0), (2, 4, 1.0), (2, 1, 0.5), (3, 2, 0.5), (5, 2, 1 / 3), (2, 0, 0.0)],
)
def test_replicas_share_the_gpus(replicas: int, gpus: int, share: float) -> None:
    assert gpu_share(settings(replicas=replicas), gpus) == share
    assert gpu_share(settings(replicas=1, max_replicas=replicas), gpus) == share
    assert gpu_share(settings(replicas=replicas, device="cpu"), gpus) == 0


def test_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seeds").mkdir()
    (tmp_path / "weights.safetensors").touch()
    read = with_absolute_paths(settings(seed_dir="seeds", backbone_source="weights.safetensors"))
    assert read.data_dir == tmp_path / "data"
    assert read.seed_dir == tmp_path / "seeds"
    assert read.backbone_source == str(tmp_path / "weights.safetensors")
    assert with_absolute_paths(settings()).backbone_source == "auto"


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("localhost", "http://127.0.0.1:8000"),
        ("::1", "http://[::1]:8000"),
        ("::", "http://[::1]:8000"),
        ("10.0.0.7", "http://10.0.0.7:8000"),
    ],
)
def test_banner_gives_an_address_that_works_here(host: str, address: str) -> None:
    assert banner.address(settings(host=host)) == address


def test_banner_sends_a_sample_that_lies_beside_the_seeds(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for task in ("bees", "pets"):
        (tmp_path / "images" / f"{task}_1.jpg").touch()
    backbone = {
        "name": "vit", "parameters": 5_500_000, "dtype": "float32", "device": "cpu",
        "height": 32, "width": 32, "slots": 4,
    }  # fmt: skip
    tasks = ["bees", "cars", "pets"]  # the adapter of the first is for another backbone
    report = {"backbone": backbone, "tasks": tasks, "answering": tasks[1:]}
    told = banner.ready(settings(seed_dir=tmp_path), report)
    command = told.splitlines()[-1]
    assert f"--data-binary @{tmp_path}/images/pets_1.jpg -H 'Content-Type: image/jpeg'" in command
    assert command.endswith("/v1/tasks/pets/predict")


def test_what_a_start_took_is_told_part_by_part() -> None:
    told = banner.started(100.0, {"Ray": 104.5, "backbone": 107.25})
    assert told == "started    in 7.2 s: Ray 4.5, backbone 2.8"
