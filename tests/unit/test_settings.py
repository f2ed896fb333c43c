"""Settings are read once; whatever is unknown or wrong stops the start with its name and the reason."""

import os
import pickle
from pathlib import Path

import pytest
from pydantic import ValidationError

from server.errors import SettingsInvalid
from server.settings import PREFIX, Settings, check_exposure
from server.settings_reference import reference


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith(PREFIX)]:  # noqa: TID251  what it clears
        monkeypatch.delenv(name)


def write_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    monkeypatch.setenv("SSFSERVE_CONFIG", str(path))


def test_defaults_listen_on_loopback_only() -> None:
    settings = Settings.load()
    assert (settings.host, settings.port, settings.is_loopback) == ("127.0.0.1", 8000, True)


def test_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSFSERVE_MAX_BATCH", "32")
    monkeypatch.setenv("SSFSERVE_HOST_CACHE_BYTES", "512MB")
    monkeypatch.setenv("SSFSERVE_DISK_CACHE_BYTES", "2GiB")
    settings = Settings.load()
    assert settings.max_batch == 32
    assert settings.host_cache_bytes == 512_000_000
    assert settings.disk_cache_bytes == 2 * 2**30


def test_only_load_reads_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    before = pickle.dumps(Settings(port=9))
    monkeypatch.setenv("SSFSERVE_SLOTS", "7")
    assert Settings().slots == Settings.model_validate({}).slots == 64
    assert pickle.loads(before).slots == 64


def test_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSFSERVE_SEED_DIR", "")
    assert Settings.load().seed_dir is None


@pytest.mark.parametrize("name", ["SSFSERVE_PROT", "ssfserve_max_bach", "SSFSERVE_CONFIGS"])
def test_unknown_variable_stops_the_start(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(SettingsInvalid, match=f"unknown settings in environment: {name.upper()}"):
        Settings.load()


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("PORT", "70000", r"SSFSERVE_PORT: .*less than or equal to 65535 \(got '70000'\)"),
        ("PORT", "http", "SSFSERVE_PORT: .*valid integer"),
        ("MAX_BATCH", "0", "SSFSERVE_MAX_BATCH: .*greater than or equal to 1"),
        ("MAX_BODY_BYTES", "many", "SSFSERVE_MAX_BODY_BYTES: could not parse"),
        ("MAX_BODY_BYTES", "10", "SSFSERVE_MAX_BODY_BYTES: .*greater than or equal to 1024"),
        ("DTYPE", "float64", "SSFSERVE_DTYPE: .*'float16', 'float32', 'float8' or 'int8'"),
        ("BACKBONE_SOURCE", "ofline", "SSFSERVE_BACKBONE_SOURCE: is neither auto, hub, offline nor a file"),
        ("SEED_DIR", "/nowhere", "SSFSERVE_SEED_DIR: is not a directory"),
        ("MAX_PINNED", "64", "SSFSERVE_MAX_PINNED must be less than SSFSERVE_SLOTS"),
        ("MAX_REPLICAS", "0", "SSFSERVE_MAX_REPLICAS: .*greater than or equal to 1"),
        ("WHEN_CUT_OFF", "hope", "SSFSERVE_WHEN_CUT_OFF: .*'serve' or 'refuse'"),
    ],
)
def test_wrong_value_is_named_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, reason: str
) -> None:
    monkeypatch.setenv(PREFIX + name, value)
    with pytest.raises(SettingsInvalid, match=reason):
        Settings.load()


def test_every_wrong_value_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSFSERVE_PORT", "x")
    monkeypatch.setenv("SSFSERVE_SLOTS", "y")
    with pytest.raises(SettingsInvalid, match=r"SSFSERVE_PORT.*; SSFSERVE_SLOTS"):
        Settings.load()


def test_a_registry_url_is_never_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSFSERVE_REGISTRY", "http://user:hunter2@host")
    with pytest.raises(SettingsInvalid) as caught:
        Settings.load()
    assert "SSFSERVE_REGISTRY" in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [("s.yaml", "port: 9000\nmax_body_bytes: 1MiB\n"), ("s.toml", 'port = 9000\nmax_body_bytes = "1MiB"\n')],
)
def test_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    write_config(tmp_path, monkeypatch, name, text)
    settings = Settings.load()
    assert (settings.port, settings.max_body_bytes) == (9000, 2**20)


def test_overrides_win_over_environment_which_wins_over_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_config(tmp_path, monkeypatch, "s.yaml", "port: 1\nslots: 2\nmax_batch: 3\n")
    monkeypatch.setenv("SSFSERVE_SLOTS", "20")
    monkeypatch.setenv("SSFSERVE_MAX_BATCH", "30")
    settings = Settings.load({"max_batch": 300})
    assert (settings.port, settings.slots, settings.max_batch) == (1, 20, 300)


def test_unknown_name_in_file_stops_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_config(tmp_path, monkeypatch, "s.yaml", "prot: 1\n")
    with pytest.raises(SettingsInvalid, match=r"unknown settings in .*s\.yaml: prot"):
        Settings.load()


@pytest.mark.parametrize(
    ("name", "text"), [("s.toml", "port ="), ("s.yaml", "a: [1"), ("s.yaml", "- 1"), ("s.yaml", "1: 2")]
)
def test_unreadable_file_stops_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    write_config(tmp_path, monkeypatch, name, text)
    with pytest.raises(SettingsInvalid, match="SSFSERVE_CONFIG"):
        Settings.load()


def test_missing_file_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSFSERVE_CONFIG", "/nowhere.yaml")
    with pytest.raises(SettingsInvalid, match=r"/nowhere\.yaml cannot be read"):
        Settings.load()


def test_the_reference_is_made_from_the_settings() -> None:
    """Run `python -m server.settings_reference > docs/configuration.md` after a change."""
    committed = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
    assert committed == reference()
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert f"`{PREFIX}{name.upper()}`" in committed


def test_settings_are_frozen_and_travel_between_processes() -> None:
    settings = Settings.load({"port": 9})
    with pytest.raises(ValidationError):
        settings.port = 10  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_there_may_not_be_fewer_replicas_than_there_must() -> None:
    assert Settings.load({"replicas": 3}).most_replicas == 3
    assert Settings.load({"replicas": 2, "max_replicas": 3}).most_replicas == 3
    with pytest.raises(
        SettingsInvalid, match="SSFSERVE_MAX_REPLICAS must not be less than SSFSERVE_REPLICAS"
    ):
        Settings.load({"replicas": 3, "max_replicas": 2})


def test_a_lease_outlasts_some_looks_at_the_registry() -> None:
    assert Settings.load({}).lease_seconds == 10
    assert Settings.load({"lease_ms": 500, "registry_poll_ms": 1000}).lease_seconds == 5


def test_half_of_the_slots_may_be_pinned_by_default() -> None:
    assert Settings.load({"slots": 1}).pin_limit == 0
    assert Settings.load({"slots": 9}).pin_limit == 4
    assert Settings.load({"slots": 9, "max_pinned": 8}).pin_limit == 8


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("example.org", False),
    ],
)
def test_only_loopback_counts_as_unreachable(host: str, loopback: bool) -> None:
    assert Settings.load({"host": host}).is_loopback is loopback


def test_a_reachable_server_needs_a_key_or_the_explicit_word() -> None:
    reachable = Settings.load({"host": "0.0.0.0"})
    with pytest.raises(SettingsInvalid, match="SSFSERVE_ALLOW_UNAUTHENTICATED=true"):
        check_exposure(reachable, has_keys=False)
    check_exposure(reachable, has_keys=True)
    check_exposure(Settings.load({"host": "0.0.0.0", "allow_unauthenticated": True}), has_keys=False)
    check_exposure(Settings.load(), has_keys=False)
