"""`ssfserve registry`: copy, check and gc, over both backends."""

import asyncio
import hashlib
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from registry import KeptRegistry, Version, open_registry
from server.cli import main
from server.doctor import Level, examine
from server.settings import Settings
from tests.builders import make_blob, make_manifest
from tests.redis_servers import RedisServer


class Result(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run `ssfserve registry …` in this process."""
    monkeypatch.delenv("SSFSERVE_REGISTRY", raising=False)
    monkeypatch.setenv("SSFSERVE_DATA_DIR", str(tmp_path / "data"))

    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["ssfserve", "registry", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        return Result(int(stopped.value.code or 0), captured.out, captured.err)

    return call


def do(url: str, tmp_path: Path, work: Callable[[KeptRegistry], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        registry = open_registry(url, tmp_path / "data")
        try:
            return await work(registry)
        finally:
            await registry.close()

    return asyncio.run(run())


async def fill(registry: KeptRegistry) -> Version:
    for seed in range(3):
        added = await registry.add_version("pets", make_blob(seed), make_manifest())
    await registry.set_alias("pets", "production", 2)
    return added.version


def test_everything_moves_to_redis_and_back(run: Run, redis_url: str, tmp_path: Path) -> None:
    do("embedded:", tmp_path, fill)
    told = "1 tasks, 3 versions and 0 keys are there now\n"
    assert run("copy", "embedded:", redis_url) == Result(0, told, "")
    assert run("copy", redis_url, f"embedded:{tmp_path}/back") == Result(0, told, "")
    for url in ("embedded:", redis_url, f"embedded:{tmp_path}/back"):
        found = do(url, tmp_path, lambda registry: registry.get_task("pets"))
        assert (found.aliases, found.latest) == ({"production": 2}, 3)
        assert run("check", "--registry", url).code == 0


def test_a_copy_onto_another_task_is_one_clear_line(run: Run, redis_url: str, tmp_path: Path) -> None:
    do("embedded:", tmp_path, fill)
    do(redis_url, tmp_path, lambda registry: registry.add_version("pets", b"other", make_manifest()))
    result = run("copy", "embedded:", redis_url)
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("ssfserve: task `pets` exists with other content: ")


def test_a_copy_of_what_was_written_to_says_so(
    run: Run, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    do("embedded:", tmp_path, fill)
    cursors = iter("12")

    async def cursor(_: KeptRegistry) -> str:
        return next(cursors)

    monkeypatch.setattr("registry.embedded.EmbeddedRegistry.cursor", cursor)
    result = run("copy", "embedded:", redis_url)
    assert (result.code, "run it again" in result.err) == (1, True)


def test_check_counts_and_names_what_is_wrong(run: Run, tmp_path: Path) -> None:
    version = do("embedded:", tmp_path, fill)
    whole = run("check")
    assert whole == Result(
        0, "1 tasks, 3 versions (3,072 bytes), 1 aliases, 0 keys, 5 events\nall is well\n", ""
    )
    (tmp_path / "data" / "blobs" / version.digest).write_bytes(b"damaged")
    broken = run("check")
    assert broken.code == 1
    assert (
        f"FAULT  task `pets` version 3: the bytes stored for {version.digest} do not match it" in broken.out
    )
    assert broken.out.endswith("1 faults\n")


def test_gc_removes_what_a_crash_left(run: Run, tmp_path: Path) -> None:
    do("embedded:", tmp_path, fill)
    stray = tmp_path / "data" / "blobs" / hashlib.sha256(b"stray").hexdigest()
    stray.write_bytes(b"stray")
    assert run("gc").out == "removed 0 files\n", "it may belong to an upload that has just begun"
    assert run("gc", "--older-than", 0).out == "removed 1 files\n"
    assert not stray.exists()
    assert run("check").code == 0


def test_a_registry_that_is_away_is_one_clear_line(run: Run) -> None:
    result = run("check", "--registry", "redis://:hunter2@127.0.0.1:1")
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("ssfserve: the redis registry does not answer: ")
    assert "hunter2" not in result.err


def test_risks_are_told_by_check_and_doctor(run: Run, own_redis: RedisServer, tmp_path: Path) -> None:
    own_redis.command("CONFIG", "SET", "appendonly", "no")
    assert "risk   appendonly is off" in run("check", "--registry", own_redis.url).out
    settings = Settings.load({"registry": own_redis.url, "data_dir": tmp_path})
    (finding,) = (found for found in examine(settings, load=False) if found.subject == "registry")
    assert (finding.level, "appendonly is off" in finding.found) == (Level.WARN, True)
