"""Real Redis servers for tests: each in a directory of its own, on a unix socket and, if asked, a port."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

BINARY = next(filter(None, map(shutil.which, ("redis-server", "valkey-server"))), None)
MISSING = "neither redis-server nor valkey-server is installed (Debian: apt-get install redis-server)"
START_SECONDS = 30.0


class RedisServer:
    """A server that syncs each write before it answers, and can be killed, paused and started again."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.directory = directory
        self.socket = directory / "redis.sock"
        self.log = directory / "log"
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis+unix://{self.socket}"

    def start(self) -> Self:
        """Start it; it answers when this returns."""
        assert BINARY is not None
        options = ["--dir", str(self.directory), "--logfile", str(self.log), "--save", "", "--port", "0"]
        options += ["--unixsocket", str(self.socket), "--appendonly", "yes", "--appendfsync", "always"]
        options += ["--bind", "127.0.0.1"]
        self._process = subprocess.Popen([BINARY, *options, *self._options], stdout=subprocess.DEVNULL)
        self._until_it_answers()
        return self

    def kill(self) -> None:
        """End it as a crash does."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self.kill()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let it hang: connections are still accepted, by the kernel, and nothing is answered."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._process.pid, signal.SIGCONT)

    def command(self, *words: str) -> bytes:
        """Send one command on a connection of its own, and return the raw answer's first bytes."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(START_SECONDS)
            connection.connect(str(self.socket))
            parts = b"".join(b"$%d\r\n%s\r\n" % (len(word.encode()), word.encode()) for word in words)
            connection.sendall(b"*%d\r\n%s" % (len(words), parts))
            return connection.recv(65536)

    def until(self, *command: str, answers: bytes) -> None:
        """Return once a command's answer contains some bytes."""
        deadline = time.monotonic() + START_SECONDS
        while answers not in self.command(*command):
            assert time.monotonic() < deadline, self.command(*command)
            time.sleep(0.01)

    def _until_it_answers(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            text = self.log.read_text() if self.log.exists() else ""
            assert self._process.poll() is None, f"redis-server ended: {text}"
            assert time.monotonic() < deadline, f"redis-server did not start: {text}"
            time.sleep(0.01)

    def _answers(self) -> bool:
        try:
            return self.command("PING").startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False


class Sentinel(RedisServer):
    """A sentinel that alone decides on a failover of the service `main`, 0.5 s after its master died."""

    def __init__(self, directory: Path, port: int, master: int) -> None:
        super().__init__(directory)
        self._config = directory / "sentinel.conf"
        self._config.write_text(
            f"port {port}\nbind 127.0.0.1\nunixsocket {self.socket}\nlogfile {self.log}\ndir {directory}\n"
            f"sentinel monitor main 127.0.0.1 {master} 1\n"
            "sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 2000\n"
        )

    def start(self) -> Self:
        assert BINARY is not None
        command = [BINARY, str(self._config), "--sentinel"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        self._until_it_answers()
        return self


@contextmanager
def redis_server(*options: str) -> Iterator[RedisServer]:
    """Run a server; its directory has a short name, because that of a socket must be."""
    with tempfile.TemporaryDirectory(prefix="redis-") as directory:
        server = RedisServer(Path(directory), *options)
        try:
            yield server.start()
        finally:
            server.stop()


def free_port() -> int:
    """Return a port that is free now, as is the one 10,000 above, where a cluster's nodes talk."""
    while True:
        with socket.socket() as probe, socket.socket() as bus, suppress(OSError, OverflowError):
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
            bus.bind(("127.0.0.1", port + 10_000))
            return port
