"""The private directory of one run of the server, shared by launcher, driver and replicas of one host.

<run>/lock         held by launcher and driver: without, the run is over, whatever is left of it
<run>/ray          Ray's session: sockets and logs
<run>/haproxy      the script that starts HAProxy
<run>/front/       what the script and HAProxy read: answers to errors, certificate and key
<run>/<node id>/   HAProxy's configuration and sockets; Ray Serve adds the directory
<run>/log          a pipe: what replicas log, to be printed by the launcher
<run>/ready.*      one report per replica that is ready
<run>/failed.*     why a replica could not start
"""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from server import processes
from server.haproxy import Front
from server.settings import Settings

# short, and not $TMPDIR: HAProxy takes 97 characters for a socket's path, and Ray Serve adds 67
PARENT = Path("/tmp")  # noqa: S108  (mkdtemp makes it private)

PREFIX = "ssf-"
ADMIN_SOCKET = "admin.sock"

RESTART = signal.SIGUSR1  # to the launcher: replace the replicas one after another
CRASHED = 3  # exit code of a driver whose run directory is worth keeping


@dataclass(frozen=True, slots=True)
class RunDir:
    path: Path

    @classmethod
    def create(cls) -> Self:
        made = cls(Path(tempfile.mkdtemp(prefix=PREFIX, dir=PARENT)))
        os.mkfifo(made.log_pipe, 0o600)
        return made

    def hold(self) -> int:
        """Lock the directory; return the file descriptor that holds it, also when inherited."""
        fresh = self.path / ".lock"
        lock = os.open(fresh, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        fresh.rename(self._lock)
        return lock

    def is_over(self) -> bool:
        """Tell whether launcher and driver of this run have both ended."""
        try:
            with self._lock.open("r+b") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # held, or not yet there
            return False
        return True

    @classmethod
    def sweep(cls) -> None:
        """Remove what runs of this user left behind whose launcher and driver were killed together."""
        for path in PARENT.glob(f"{PREFIX}*"):
            with contextlib.suppress(OSError):
                if path.stat().st_uid == os.getuid() and cls(path).is_over():
                    processes.signal_all(processes.holders(path), signal.SIGKILL)
                    cls(path).remove()

    @property
    def _lock(self) -> Path:
        return self.path / "lock"

    @property
    def ray(self) -> Path:
        return self.path / "ray"

    @property
    def haproxy(self) -> Path:
        return self.path / "haproxy"

    def front(self, settings: Settings) -> Front:
        """Return where clients come in."""
        host = settings.host.strip("[]")
        return Front(
            host="127.0.0.1" if host == "localhost" else host,
            port=settings.port,
            folder=str(self.path / "front"),
            tls=settings.tls_cert is not None,
        )

    def admin_sockets(self) -> list[Path]:
        """Return where HAProxy takes orders."""
        return sorted(self.path.glob(f"*/{ADMIN_SOCKET}"))

    @property
    def log_pipe(self) -> Path:
        return self.path / "log"

    def report_ready(self, report: Mapping[str, Any]) -> None:
        self._write(f"ready.{os.getpid()}", json.dumps(report))

    def report_failure(self, reason: str) -> None:
        self._write(f"failed.{os.getpid()}", reason)

    def ready(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(self.path.glob("ready.*"))]

    def failure(self) -> str | None:
        """Return why a replica could not start, None while none has failed."""
        return next((p.read_text(encoding="utf-8") for p in sorted(self.path.glob("failed.*"))), None)

    def forget_failures(self) -> None:
        for path in self.path.glob("failed.*"):
            path.unlink()

    def redirect_stderr(self) -> None:
        """Send what this process writes to stderr, down to the C libraries, to the launcher's stderr."""
        pipe = os.open(self.log_pipe, os.O_WRONLY)
        os.dup2(pipe, 2)
        os.close(pipe)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)  # Ray Serve had put its own there

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def _write(self, name: str, text: str) -> None:
        partial = self.path / f".{name}"
        partial.write_text(text, encoding="utf-8")
        partial.rename(self.path / name)
