"""The process that holds Ray: start the cluster, deploy, announce, wait, drain, stop.

The launcher runs it as `python -m server.ray_driver`, with an order as JSON on stdin and Ray's variables in
the environment. Exit codes: 0 after an orderly stop; 1 when the server could not start, with the reason as
one line on stderr; CRASHED when something unforeseen happened.
"""

import contextlib
import functools
import json
import logging
import os
import signal
import ssl
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TextIO

import ray
import ray.serve._private.api as serve_api
from ray import serve
from ray._private import parameter
from ray._private.parameter import RayParams
from ray.serve._private.client import ServeControllerClient
from ray.serve.config import ControllerOptions
from ray.serve.schema import ApplicationStatus

from server import banner, processes
from server.cores import available_cores
from server.ray_app import APP_NAME, bind
from server.run_dir import CRASHED, RESTART, RunDir
from server.settings import Settings
from server.tls import Certificate

POLL_SECONDS = 0.25
STILL_LOADING_SECONDS = 15.0
RENEW_SECONDS = 10.0  # how often the certificate's files are looked at
START_ATTEMPTS = 3
TOO_SLOW = "timed out during startup"  # Ray raises a plain Exception
PROXY_SECONDS = 300  # Ray Serve's 60 s for HAProxy to start are too few on a host that is busy
OBJECT_STORE_BYTES = 100 * 2**20  # about the least Ray takes: nothing of ours goes through it


class StartFailed(Exception):
    """The server could not start; the text is for whoever started it."""


class Stopped(Exception):
    """The server was told to stop while it started."""


@dataclass(frozen=True, slots=True)
class Order:
    """What the launcher wants."""

    settings: Settings
    run: RunDir
    metrics_port: int
    launcher: int
    began: float
    marks: dict[str, float]

    @classmethod
    def read(cls, stream: TextIO) -> Self:
        order = json.load(stream)
        return cls(
            settings=Settings.model_validate(order["settings"]),
            run=RunDir(Path(order["run_dir"])),
            metrics_port=order["metrics_port"],
            launcher=order["launcher"],
            began=order["began"],
            marks={"commands": time.time()},
        )


def main() -> int:
    order = Order.read(sys.stdin)
    processes.adopt_orphans()
    processes.die_with_parent(signal.SIGTERM, order.launcher)
    restart = threading.Event()
    signal.signal(RESTART, lambda *_: restart.set())
    try:
        return _serve(order, restart)
    finally:
        if os.getppid() != order.launcher:  # it died: what it would have done is ours to do
            processes.end_descendants()
            order.run.remove()


def _serve(order: Order, restart: threading.Event) -> int:
    stop = threading.Event()
    try:
        with _cluster(order, stop) as proxies:
            _deploy(order)
            _wait_until_ready(order, stop, proxies)
            _announce(order)
            _wait_until_stopped(order, stop, restart)
            serve.delete(APP_NAME)  # no new requests; returns when the accepted ones are answered
    except Stopped:
        return 0
    except StartFailed as error:
        _complain(str(error))
        return 1
    except Exception as error:  # noqa: BLE001  (whatever Ray raises)
        if stop.is_set():
            return 0
        _complain(f"Ray could not start: {_last_line(str(error))}")
        return CRASHED
    return 0


@contextlib.contextmanager
def _cluster(order: Order, stop: threading.Event) -> Iterator[list[Any]]:
    """Have Ray and Ray Serve run; from when Ray runs, SIGTERM sets `stop`.

    Yields what ends when HAProxy has started.
    """
    _say("starting Ray")
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    try:
        _start_ray(order)
        order.marks["Ray"] = time.time()
        signal.signal(signal.SIGTERM, lambda *_: stop.set())  # ray.init had set a handler of its own
        proxies = _start_serve(order.settings)
        order.marks["Ray Serve"] = time.time()
        yield proxies
        with _quiet():
            serve.shutdown()
    finally:
        # after a failure without Ray Serve's own shutdown, which takes long and protects nothing then
        with _quiet(), contextlib.suppress(Exception):
            ray.shutdown()


def _start_ray(order: Order) -> None:
    """Start Ray; again if it was too slow: it gives its processes 30 s, and a busy host may need more."""
    for attempts_left in reversed(range(START_ATTEMPTS)):
        try:
            _init_ray(order)
        except Exception as error:
            if TOO_SLOW not in str(error) or not attempts_left:
                raise
            _say("this host is busy: starting Ray again")
            processes.end_descendants()
        else:
            return


def _init_ray(order: Order) -> None:
    # a single node scales nothing, and replicas write their logs to us: a second of a core saved
    parameter.RayParams = functools.partial(RayParams, no_monitor=True, include_log_monitor=False)
    ray.init(
        address="local",
        # for Ray's bookkeeping alone: all replicas, HAProxy's manager and the controller shall find room
        num_cpus=available_cores() + order.settings.most_replicas,
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _metrics_export_port=order.metrics_port,
        _temp_dir=str(order.run.ray),
    )


def _start_serve(settings: Settings) -> list[Any]:
    """Start Ray Serve as `serve.start` does, but for the wait for HAProxy: replicas can load meanwhile."""
    controller, proxies = serve_api._create_controller_and_proxy_refs(
        {"host": "127.0.0.1", "port": settings.port},  # `server.haproxy` changes it
        None,
        {"log_level": "ERROR", "enable_access_log": False},
        None,
        ControllerOptions(),
    )
    serve_api._set_global_client(ServeControllerClient(controller))
    return list(proxies)


def _deploy(order: Order) -> None:
    _say(f"loading {order.settings.backbone}")
    gpus = ray.cluster_resources().get("GPU", 0.0)
    target = serve.RunTarget(bind(order.settings, order.run.path, gpus=gpus), name=APP_NAME)
    serve.run_many([target], wait_for_applications_running=False)


def _restart_replicas(order: Order, stop: threading.Event) -> None:
    """Replace the replicas one after another; they answer until their successors do."""
    order.run.forget_failures()
    try:
        _deploy(order)
    except Exception as error:  # noqa: BLE001  (whatever Ray raises, those that run go on)
        _complain(f"the replicas were not replaced: {_last_line(str(error))}")
        return
    while not stop.wait(POLL_SECONDS):
        if reason := order.run.failure():
            _complain(f"the replicas were not all replaced: {reason}")
            return
        if _is_running():
            _say("all replicas were replaced")
            return


def _wait_until_ready(order: Order, stop: threading.Event, proxies: list[Any]) -> None:
    began = time.monotonic()
    tell_at = began + STILL_LOADING_SECONDS
    while not (_proxies_run(proxies) and _is_running() and _answers(order.settings)):
        if stop.wait(POLL_SECONDS):
            raise Stopped
        if reason := order.run.failure() or _deploy_failure():
            raise StartFailed(reason)
        if time.monotonic() > tell_at:
            tell_at += STILL_LOADING_SECONDS
            _say(f"still loading {order.settings.backbone}")
        if time.monotonic() > began + PROXY_SECONDS and not _proxies_run(proxies):
            raise StartFailed(f"HAProxy did not start within {PROXY_SECONDS} s")


def _announce(order: Order) -> None:
    report = order.run.ready()[0]
    _say(banner.ready(order.settings, report))
    _say(banner.started(order.began, order.marks | report["marks"] | {"HAProxy": time.time()}))


def _proxies_run(proxies: list[Any]) -> bool:
    started, waiting = ray.wait(proxies, num_returns=len(proxies), timeout=0)
    ray.get(started)  # raises what kept HAProxy from starting
    return not waiting


def _wait_until_stopped(order: Order, stop: threading.Event, restart: threading.Event) -> None:
    certificate, looked = Certificate.of(order.settings, order.run.front(order.settings).pem), 0.0
    if certificate is not None:
        certificate.remember()
    while not stop.wait(POLL_SECONDS):
        if restart.is_set():
            restart.clear()
            _restart_replicas(order, stop)
        if certificate is not None and time.monotonic() > looked + RENEW_SECONDS:
            looked = time.monotonic()
            _renew(certificate, order.run)


def _renew(certificate: Certificate, run: RunDir) -> None:
    try:
        told = certificate.renew(run.admin_sockets())
    except OSError as error:
        told = f"the new certificate is used after a restart: {error}"
    if told is not None:
        _say(f"TLS: {told}")


def _is_running() -> bool:
    app = serve.status().applications.get(APP_NAME)
    return app is not None and app.status == ApplicationStatus.RUNNING


def _deploy_failure() -> str | None:
    """Return why Ray Serve gave the application up: a replica that cannot be made has no voice of its own."""
    app = serve.status().applications.get(APP_NAME)
    if app is None or app.status != ApplicationStatus.DEPLOY_FAILED:
        return None
    return f"the replicas could not start: {_last_line(app.message)}"


def _answers(settings: Settings) -> bool:
    url = f"{banner.address(settings)}/readyz"
    try:
        with urllib.request.urlopen(url, timeout=5, context=_any_certificate()) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _any_certificate() -> ssl.SSLContext:
    """Speak TLS with this machine itself, whose address the certificate need not name."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what Ray tells of its own actors' deaths off the terminal, also from its other threads."""
    sys.stdout.flush()
    kept = {stream: os.dup(stream) for stream in (1, 2)}
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in kept:
        os.dup2(nowhere, stream)
    try:
        yield
    finally:
        sys.stdout.flush()
        for stream, copy in kept.items():
            os.dup2(copy, stream)
            os.close(copy)
        os.close(nowhere)


def _last_line(text: str) -> str:
    """Return what matters of a text of Ray's, which may be a traceback from another process."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no reason given")


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


def _complain(text: str) -> None:
    print(f"ssfserve: {text}", file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
