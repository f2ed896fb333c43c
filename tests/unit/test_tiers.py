"""The host cache and the disk cache: bounds, order of eviction, and what a bad disk may do."""

import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from server.tiers import STALE_SECONDS, DiskCache, HostCache
from tests.builders import make_blob
from tests.fakes import FakeClock


@dataclass
class Block:
    nbytes: int


def file_of(seed: int, size: int = 100) -> tuple[str, bytes]:
    data = make_blob(seed, size)
    return hashlib.sha256(data).hexdigest(), data


def test_host_cache_evicts_the_least_recently_used() -> None:
    clock = FakeClock()
    cache = HostCache(300, clock=clock)
    for name in "abc":
        cache.put(name, Block(100))
        clock.advance(1)
    cache.get("a")
    assert cache.put("d", Block(100)) == [2.0]
    assert [name in cache for name in "abcd"] == [True, False, True, True]
    assert cache.nbytes == 300


def test_host_cache_makes_as_much_room_as_is_needed() -> None:
    cache = HostCache(300, clock=FakeClock())
    for name in "abc":
        cache.put(name, Block(100))
    assert len(cache.put("large", Block(250))) == 3
    assert (len(cache), cache.nbytes) == (1, 250)


def test_host_cache_does_not_throw_all_out_for_one_that_never_fits() -> None:
    cache = HostCache(300, clock=FakeClock())
    cache.put("a", Block(100))
    assert cache.put("huge", Block(301)) == []
    assert "a" in cache
    assert "huge" not in cache


def test_host_cache_counts_an_adapter_once() -> None:
    cache = HostCache(300, clock=FakeClock())
    cache.put("a", Block(100))
    cache.put("a", Block(100))
    cache.drop("a")
    cache.drop("a")
    assert (len(cache), cache.nbytes) == (0, 0)


def test_disk_cache_returns_what_was_written_also_after_a_restart(tmp_path: Path) -> None:
    digest, data = file_of(0)
    DiskCache(tmp_path / "cache", 1000).write(digest, data)
    cache = DiskCache(tmp_path / "cache", 1000)
    assert digest in cache
    assert cache.read(digest) == data
    assert (len(cache), cache.nbytes) == (1, 100)


def test_disk_cache_misses_what_it_does_not_have(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 1000)
    assert "a" * 64 not in cache
    assert cache.read("a" * 64) is None


@pytest.mark.parametrize("damage", [b"", b"x", make_blob(7, 100)], ids=["empty", "short", "other"])
def test_disk_cache_never_returns_damaged_bytes(tmp_path: Path, damage: bytes) -> None:
    cache = DiskCache(tmp_path, 1000)
    digest, data = file_of(0)
    cache.write(digest, data)
    (tmp_path / digest).write_bytes(damage)
    assert cache.read(digest) is None
    assert digest not in cache
    cache.write(digest, data)
    assert cache.read(digest) == data


def test_disk_cache_evicts_the_least_recently_used(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 300)
    digests = []
    for seed in range(3):
        digest, data = file_of(seed)
        cache.write(digest, data)
        os.utime(tmp_path / digest, (seed, seed))
        digests.append(digest)
    cache.read(digests[0])
    digest, data = file_of(3)
    idle = cache.write(digest, data)
    assert len(idle) == 1
    assert idle[0] > 0
    assert [name in cache for name in (*digests, digest)] == [True, False, True, True]


def test_disk_cache_does_not_keep_what_never_fits(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 300)
    small, data = file_of(0)
    cache.write(small, data)
    large, data = file_of(1, 301)
    cache.write(large, data)
    assert small in cache
    assert large not in cache


def test_processes_that_share_a_disk_cache_keep_its_limit(tmp_path: Path) -> None:
    caches = [DiskCache(tmp_path, 3200) for _ in range(4)]
    for seed in range(400):
        caches[seed % 4].write(*file_of(seed))
        nbytes = sum(path.stat().st_size for path in tmp_path.iterdir())
        assert nbytes <= 3200 + 4 * 3200 // 16


def test_disk_cache_is_safe_for_many_threads(tmp_path: Path) -> None:
    caches = [DiskCache(tmp_path, 2000) for _ in range(2)]
    files = [file_of(seed) for seed in range(30)]
    start = threading.Barrier(4)

    def use(worker: int) -> None:
        start.wait()
        for turn in range(100):
            digest, data = files[(turn * 7 + worker) % 30]
            got = caches[worker % 2].read(digest)
            assert got in {None, data}
            if got is None:
                caches[worker % 2].write(digest, data)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, range(4)))


def test_a_writer_that_died_leaves_nothing_for_good(tmp_path: Path) -> None:
    digest, data = file_of(0)
    dead, busy = tmp_path / ".tmp-dead", tmp_path / ".tmp-busy"
    for path in (dead, busy):
        path.write_bytes(data)
    long_ago = busy.stat().st_mtime - STALE_SECONDS - 1
    os.utime(dead, (long_ago, long_ago))
    cache = DiskCache(tmp_path, 300)
    assert not dead.exists()
    assert busy.exists()
    assert len(cache) == 0
    assert digest not in cache


def test_a_full_disk_only_costs_the_cache(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    directory = tmp_path / "cache"
    directory.write_text("a file where the directory should be")
    cache = DiskCache(directory, 1000, clock=clock)
    digest, data = file_of(0)
    for _ in range(3):
        assert cache.write(digest, data) == []
    assert cache.read(digest) is None
    assert digest not in cache
    cache.drop(digest)
    assert caplog.text.count("no disk cache for 60 s") == 1

    directory.unlink()
    cache.write(digest, data)
    assert digest not in cache
    clock.advance(61)
    cache.write(digest, data)
    assert cache.read(digest) == data


def test_a_failed_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = DiskCache(tmp_path, 1000)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    cache.write(*file_of(0))
    assert list(tmp_path.iterdir()) == []
