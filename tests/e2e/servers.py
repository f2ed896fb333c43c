"""A really started server, as a process, with everything that belongs to it watched."""

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from server.processes import descendants

START_SECONDS = 200.0  # on a busy host with two cores; some 12 s on an idle one
STOP_SECONDS = 60.0
SMALL = {
    "SSFSERVE_BACKBONE": "vit_tiny_patch16_224",
    "SSFSERVE_BACKBONE_SOURCE": "random:0",
    "SSFSERVE_INPUT_SIZE": "32",
    "SSFSERVE_DTYPE": "float32",
    "SSFSERVE_HOST_CACHE_BYTES": "64MiB",
    "SSFSERVE_LOG_FORMAT": "text",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def eventually(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait until the condition holds; fail with `what` if it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} took more than {seconds:.0f} s"
        time.sleep(0.05)


@dataclass
class Server:
    """A launcher and all processes below it. `seen` holds every pid that was ever found there."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path
    verify: str | None = None
    seen: set[tuple[int, str]] = field(default_factory=set)

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def look(self) -> list[int]:
        """Note and return the processes below the launcher."""
        pids = descendants(self.process.pid)
        self.seen |= {(pid, started) for pid in pids if (started := start_time(pid))}
        return pids

    def pids(self, name: str) -> list[int]:
        """Return the processes below the launcher whose command line has `name` in it."""
        return [pid for pid in self.look() if name in command_line(pid)]

    def alive(self) -> list[str]:
        """Return the command lines of what was seen and still lives."""
        return [command_line(pid) for pid, started in self.seen if start_time(pid) == started]

    def is_ready(self) -> bool:
        assert self.process.poll() is None, f"the server ended at its start:\n{self.output}"
        self.look()
        with contextlib.suppress(httpx.HTTPError):
            trusted = ssl.create_default_context(cafile=self.verify) if self.verify else True
            return httpx.get(f"{self.url}/readyz", timeout=2, verify=trusted).status_code == 200
        return False

    def wait_gone(self, seconds: float = STOP_SECONDS) -> None:
        """Wait until neither the launcher nor anything it started is left."""
        self.process.wait(seconds)
        eventually(lambda: not self.alive(), seconds, f"ending {self.alive()}")

    def stop(self, signum: signal.Signals = signal.SIGTERM) -> int:
        """Ask the server to stop; return its exit code once nothing of it is left."""
        self.look()
        self.process.send_signal(signum)
        self.wait_gone()
        return self.process.returncode


@contextlib.contextmanager
def started(folder: Path, *, verify: str | None = None, **settings: object) -> Iterator[Server]:
    """Start a server whose data is in `folder`, wait until it is ready, and stop it if it still runs.

    With TLS, `verify` is the file of the authority to trust.
    """
    server = spawn(folder, **settings)
    if verify is not None:
        server.verify, server.url = verify, server.url.replace("http:", "https:")
    try:
        eventually(lambda: server.is_ready() and "\ntry " in server.output, START_SECONDS, "the start")
        yield server
    finally:
        if server.process.poll() is None:
            server.stop()


def spawn(folder: Path, **settings: object) -> Server:
    """Start `ssfserve serve` with settings by name, and do not wait."""
    port = settings.setdefault("port", free_port())
    given = {f"SSFSERVE_{name.upper()}": str(value) for name, value in settings.items()}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SSFSERVE_")}
    command = [sys.executable, "-m", "server.cli", "serve"]
    log = folder / f"server-{port}.log"
    folder.mkdir(exist_ok=True)
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [*command, "--data-dir", str(folder / "data")],
            env=inherited | SMALL | given,
            stdout=sink,
            stderr=subprocess.STDOUT,
        )
    return Server(process, f"http://127.0.0.1:{port}", log)


def command_line(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def start_time(pid: int) -> str:
    """Return when the process started, in clock ticks; empty if it has ended."""
    with contextlib.suppress(OSError):
        state, *rest = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return "" if state in "ZX" else rest[18]
    return ""
