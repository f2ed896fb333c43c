import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from server.processes import descendants

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="orphans are adopted on Linux only")

# a shell leaves a sleeper behind, and a shell that is deaf to SIGTERM with a sleeper of its own
SHELL = "sleep 100 & (trap '' TERM; sleep 100; sleep 100) & sleep 0.3"

ENDS_ALL = """
import os, subprocess, sys
from server.processes import adopt_orphans, descendants, end_descendants
adopt_orphans()
subprocess.run(["sh", "-c", sys.argv[1]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
before = len(descendants(os.getpid()))
ended = end_descendants(grace_seconds=0.3)
print(before, ended, len(descendants(os.getpid())))
"""

DIES_WITH_PARENT = """
import os, signal, sys, time
from server.processes import die_with_parent
die_with_parent(signal.SIGTERM, int(sys.argv[1]))
print("armed", flush=True)
time.sleep(100)
"""

PARENT = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid())], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(100)
"""


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_orphans_are_adopted_and_ended_even_if_they_ignore_the_request() -> None:
    run = subprocess.run([sys.executable, "-c", ENDS_ALL, SHELL], capture_output=True, text=True, check=True)
    before, ended, left = map(int, run.stdout.split())
    assert before >= 3
    assert ended == before
    assert left == 0


def test_child_gets_a_signal_when_its_parent_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, DIES_WITH_PARENT], stdout=subprocess.PIPE)
    assert parent.stdout
    child = int(parent.stdout.readline())
    assert is_alive(child)
    assert child in descendants(parent.pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    eventually(lambda: not is_alive(child))


def test_child_whose_parent_died_before_is_told_at_once() -> None:
    other_than_the_parent = os.getpid() + 1
    run = subprocess.run(
        [sys.executable, "-c", DIES_WITH_PARENT, str(other_than_the_parent)],
        stdout=subprocess.DEVNULL,
        timeout=20,
        check=False,
    )
    assert run.returncode == -signal.SIGTERM
