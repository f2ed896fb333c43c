"""`ssfserve serve` and `ssfserve doctor`, as far as they go without starting anything."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from server import doctor
from server.cli import doctor as doctor_verb
from server.cli import serve as serve_verb
from server.doctor import Finding, Level
from server.settings import Settings


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def findings(**given: object) -> dict[str, Finding]:
    return {found.subject: found for found in doctor.examine(Settings.load(given), load=False)}


def test_every_setting_is_an_option() -> None:
    options = {
        name.removeprefix("--").replace("-", "_")
        for parameter in get_command(serve_verb.app).params
        for name in parameter.opts
    }
    assert set(Settings.model_fields) <= options


def test_help_shows_defaults_and_choices() -> None:
    shown = CliRunner().invoke(serve_verb.app, ["--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
    assert "Port to listen on. (default: 8000)" in shown
    assert "auto|cpu|cuda" in shown
    assert "(default: 1.0GiB)" in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--slots", "many"], "SSFSERVE_SLOTS: "),
        (["--dtype", "int3"], "SSFSERVE_DTYPE: "),
        (["--max-pinned", "64", "--slots", "64"], "SSFSERVE_MAX_PINNED must be less than SSFSERVE_SLOTS"),
    ],
)
def test_options_are_checked_as_settings(arguments: list[str], said: str) -> None:
    outcome = CliRunner().invoke(serve_verb.app, arguments)
    assert said in str(outcome.exception)


def test_options_win_over_the_environment(monkeypatch: pytest.MonkeyPatch, taken_port: int) -> None:
    monkeypatch.setenv("SSFSERVE_PORT", "1")
    outcome = CliRunner().invoke(serve_verb.app, ["--port", str(taken_port)])
    assert f"SSFSERVE_PORT: 127.0.0.1:{taken_port} is in use" in str(outcome.exception)


def test_doctor_finds_a_good_host_good(tmp_path: Path) -> None:
    found = findings(data_dir=tmp_path, port=_free_port())
    assert Level.FAIL not in {finding.level for finding in found.values()}, found
    assert found["port"].found.endswith("is free")
    assert found["registry"].found == "embedded, 0 API keys"


def test_doctor_names_what_stands_in_the_way(tmp_path: Path, taken_port: int) -> None:
    (tmp_path / "file").touch()
    found = findings(data_dir=tmp_path / "file", port=taken_port, host="127.0.0.1")
    assert found["port"].level is Level.FAIL
    assert found["data dir"].level is Level.FAIL
    assert found["registry"].level is Level.FAIL


def test_doctor_refuses_to_be_open_without_keys(tmp_path: Path) -> None:
    found = findings(data_dir=tmp_path, host="0.0.0.0", port=_free_port())
    assert found["access"].level is Level.FAIL
    assert "no API key exists" in found["access"].found


@pytest.mark.parametrize(
    ("flags", "level", "told"),
    [
        ("avx2 avx512_vnni", Level.WARN, "SSFSERVE_DTYPE=int8"),
        ("avx2", Level.WARN, "runs in float32 here, at about half the speed"),
        ("avx512_vnni amx_bf16", Level.OK, ""),
    ],
)
def test_doctor_tells_what_the_cpu_computes_in(flags: str, level: Level, told: str, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(f"flags\t: fpu {flags}\n")
    found = doctor._cpu(tmp_path / "cpuinfo")
    assert found.level is level and told in found.advice
    assert ("int8" in found.advice) is ("int8" in told)


def test_doctor_warns_of_little_memory(tmp_path: Path) -> None:
    found = findings(data_dir=tmp_path, replicas=256, host_cache_bytes="64GiB", port=_free_port())
    assert found["memory"].level is Level.WARN
    assert "SSFSERVE_REPLICAS" in found["memory"].advice


def test_doctor_exits_with_1_when_a_server_could_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken_port: int
) -> None:
    monkeypatch.setenv("SSFSERVE_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("SSFSERVE_PORT", str(taken_port))
    outcome = CliRunner().invoke(doctor_verb.app, ["--quick"])
    assert outcome.exit_code == 1
    lines = outcome.output.splitlines()
    assert [line for line in lines if line.startswith("fail  port ")]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
