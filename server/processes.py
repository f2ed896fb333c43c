"""Leave no process behind, whoever dies first.

A server is a tree: launcher, driver, Ray's processes, workers, HAProxy. Launcher and driver are both
*subreapers*, so whatever loses its parent below them becomes their child and can be found and ended; and the
driver is told by the kernel when the launcher dies. Linux only: elsewhere the calls do nothing, and Ray's own
clean-up is all there is.
"""

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections import defaultdict
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

PROC = Path("/proc")


def adopt_orphans() -> None:
    """Become the parent of every descendant that loses its own."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(signum: signal.Signals, parent: int | None = None) -> None:
    """Have the kernel send `signum` to this process when its parent ends.

    Args:
        signum: What to send.
        parent: The pid of the parent as it should be; the signal is sent now if it has ended already.
    """
    _prctl(PR_SET_PDEATHSIG, signum)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signum)


def descendants(pid: int) -> list[int]:
    """Return all live processes below `pid`, parents before children. Zombies do not count."""
    children: dict[int, list[int]] = defaultdict(list)
    for entry in PROC.glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = entry.read_text(errors="replace").rpartition(")")[2].split()[:2]
            if state != "Z":
                children[int(parent)].append(int(entry.parent.name))
    found = [pid]
    for parent_pid in found:
        found.extend(children[parent_pid])
    return found[1:]


def holders(folder: Path) -> list[int]:
    """Return the processes that have a file or socket of a folder open, as far as this user may see."""
    inside = f"{folder}/"
    found = set()
    for entry in PROC.glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if str(entry.readlink()).startswith(inside):
                found.add(int(entry.parts[-3]))
    return sorted(found - {os.getpid()})


def end_descendants(grace_seconds: float = 3.0) -> int:
    """End everything below this process: ask, wait, then kill. Return how many there were."""
    below = descendants(os.getpid())
    signal_all(below, signal.SIGTERM)
    deadline = time.monotonic() + grace_seconds
    while (left := _reaped()) and time.monotonic() < deadline:
        time.sleep(0.02)
    while left:
        signal_all(left, signal.SIGKILL)
        time.sleep(0.02)
        left = _reaped()
    return len(below)


def signal_all(pids: list[int], signum: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signum)


def _reaped() -> list[int]:
    """Collect children that have ended; return the descendants that have not."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    return descendants(os.getpid())


def _prctl(option: int, value: int) -> None:
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value}) failed")
