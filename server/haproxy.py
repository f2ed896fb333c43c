"""HAProxy as Ray Serve starts it, with three of its habits changed.

Ray Serve's configuration offers HAProxy's metrics and its statistics page on every interface, without a
password; an HAProxy whose manager was killed lives on and keeps its port; and where a replica is lost,
clients read plain text. So the launcher names a script as Ray Serve's HAProxy binary. The script runs `main`:
it binds both to loopback, gives HAProxy's own errors the shape of ours, asks the kernel to end HAProxy with
its manager, and becomes HAProxy, under the same pid and with the same arguments.
"""

import json
import os
import re
import shlex
import signal
import sys
from http import HTTPStatus
from pathlib import Path

from server.processes import die_with_parent

# `frontend prometheus` / `bind :9101` and `listen stats` / `bind *:8404`, as Ray Serve writes them
OPEN_BIND = re.compile(r"(?m)^(frontend prometheus|listen stats)\n(\s+bind )[^\s:]*:(\d+)$")
# `errorfile 502 /…/500.http`, and what answers while no replica is known
ERROR_FILE = re.compile(r"(?m)^(\s*errorfile (50[234]) ).*$")
NO_BACKEND = re.compile(r"(?m)^(backend default_backend\n\s+http-request return ).*$")
REUSE = re.compile(r"(?m)^(\s+)http-reuse always$")

ERRORS = {
    502: ("replica_lost", "the replica that had this request ended before it answered; retry"),
    503: ("no_replica", "no replica can answer now; retry"),
    504: ("replica_timeout", "the replica did not answer in time; retry"),
}


def error_body(status: int) -> str:
    """Return what clients read where HAProxy answers instead of a replica."""
    error_type, message = ERRORS[status]
    return json.dumps({"error": message, "error_type": error_type})


def shape_errors(config: str, folder: Path) -> str:
    """Return the configuration with the errors that `write_errors` wrote into a folder."""
    # on a connection to a replica that had carried a request before, HAProxy answers its loss with no more
    # than a closed one, whatever the errors are; a new connection for each request costs 0.15 ms of CPU
    config = REUSE.sub(r"\g<1>option http-server-close", config)
    config = ERROR_FILE.sub(rf"\g<1>{folder}/\2.http", config)
    answer = f"status 503 content-type application/json string '{error_body(503)}' hdr Retry-After 1"
    return NO_BACKEND.sub(rf"\g<1>{answer}", config)


def write_errors(folder: Path) -> None:
    for status in ERRORS:
        body = error_body(status)
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            "Retry-After: 1",
        )
        (folder / f"{status}.http").write_text("\r\n".join((*head, "", body)), encoding="ascii", newline="")


def close_binds(config: str) -> str:
    """Return the configuration with the metrics and statistics listeners on loopback only."""
    return OPEN_BIND.sub(r"\1\n\g<2>127.0.0.1:\3", config)


def write_script(path: Path, binary: str) -> None:
    """Write the script that stands in for HAProxy's `binary`. It starts in about 30 ms."""
    root = str(Path(__file__).resolve().parents[1])
    code = f"import sys; sys.path.append({root!r}); from server.haproxy import main; main(sys.argv[1:])"
    # -I -S: nothing but the standard library and this project
    command = shlex.join([sys.executable, "-I", "-S", "-c", code, binary])
    path.write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
    path.chmod(0o700)


def main(arguments: list[str]) -> None:
    """Become HAProxy: the first argument is its binary, the rest are its own."""
    die_with_parent(signal.SIGKILL)
    if "-f" in arguments:
        config = Path(arguments[arguments.index("-f") + 1])
        write_errors(config.parent)
        text = close_binds(config.read_text(encoding="utf-8"))
        config.write_text(shape_errors(text, config.parent), encoding="utf-8")
    os.execv(arguments[0], arguments)  # noqa: S606
