"""HAProxy as Ray Serve starts it, with some of its habits changed.

Ray Serve's configuration offers HAProxy's metrics and its statistics page on every interface, has no TLS,
and answers in HTML and plain text. An HAProxy whose manager was killed lives on and keeps its port. So the
launcher names a script as Ray Serve's HAProxy binary. The script runs `main`: it changes the configuration,
asks the kernel to end HAProxy with its manager, and becomes HAProxy, under the same pid and with the same
arguments.

Ray Serve itself is told to listen on loopback, replicas included; only HAProxy listens where clients are.
"""

import json
import os
import re
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from http import HTTPStatus
from pathlib import Path

from server.processes import die_with_parent

# `frontend prometheus` / `bind :9101` and `listen stats` / `bind *:8404`, as Ray Serve writes them
OPEN_BIND = re.compile(r"(?m)^(frontend prometheus|listen stats)\n(\s+bind )[^\s:]*:(\d+)$")
FRONTEND = re.compile(r"(?m)^(frontend http_frontend)(\n\s+)bind \S+$")
CHANGED = "# changed by ssfserve"

# Ray Serve would act on these, though they are not for clients to decide
RAY_HEADERS = ("x-request-timeout-seconds", "x-request-disconnect-disabled", "serve_multiplexed_model_id")
HSTS = "max-age=31536000"

# `errorfile 502 /…/500.http`, and what answers while no replica is known
ERROR_FILE = re.compile(r"(?m)^(\s*errorfile (50[234]) ).*$")
NO_BACKEND = re.compile(r"(?m)^(backend default_backend\n\s+http-request return ).*$")
REUSE = re.compile(r"(?m)^(\s+)http-reuse always$")

ERRORS = {
    502: ("replica_lost", "the replica that had this request ended before it answered; retry"),
    503: ("no_replica", "no replica can answer now; retry"),
    504: ("replica_timeout", "the replica did not answer in time; retry"),
}


# the headers of `server.response_headers` where HAProxy answers itself, and the client's request id
_ABSENT = "if !{ res.hdr(x-frame-options) -m found }"
_OWN_ANSWERS = (
    "http-request set-var(txn.request_id) req.hdr(x-request-id)",
    *(
        f'http-after-response set-header {name} "{value}" {_ABSENT}'
        for name, value in (
            ("referrer-policy", "no-referrer"),
            ("cross-origin-resource-policy", "same-origin"),
            ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
            ("cache-control", "no-store"),
            ("x-content-type-options", "nosniff"),
        )
    ),
    "http-after-response set-header x-request-id %[var(txn.request_id)]"
    " if !{ res.hdr(x-frame-options) -m found } { var(txn.request_id) -m reg ^[A-Za-z0-9._:-]{1,128}$ }",
    f"http-after-response set-header x-frame-options DENY {_ABSENT}",  # the last: the others look for it
)


def error_body(status: int) -> str:
    """Return what clients read where HAProxy answers instead of a replica."""
    error_type, message = ERRORS[status]
    return json.dumps({"error": message, "error_type": error_type})


UNANSWERED = f"status 503 content-type application/json string '{error_body(503)}' hdr Retry-After 1"


def shape_errors(config: str, folder: Path) -> str:
    """Return the configuration with the errors that `write_errors` wrote into a folder."""
    # on a connection to a replica that had carried a request before, HAProxy answers its loss with no more
    # than a closed one, whatever the errors are; a new connection for each request costs 0.15 ms of CPU
    config = REUSE.sub(r"\g<1>option http-server-close", config)
    config = ERROR_FILE.sub(rf"\g<1>{folder}/\2.http", config)
    return NO_BACKEND.sub(rf"\g<1>{UNANSWERED}", config)


def write_errors(folder: Path) -> None:
    for status in ERRORS:
        body = error_body(status)
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            "Retry-After: 1",
            "Cache-Control: no-store",
            "X-Content-Type-Options: nosniff",
        )
        (folder / f"{status}.http").write_text("\r\n".join((*head, "", body)), encoding="ascii", newline="")


def close_binds(config: str) -> str:
    """Return the configuration with the metrics and statistics listeners on loopback only."""
    return OPEN_BIND.sub(r"\1\n\g<2>127.0.0.1:\3", config)


@dataclass(frozen=True, slots=True)
class Front:
    """Where clients come in. `folder` holds the files below; `tls` says that `tls.pem` is one of them."""

    host: str
    port: int
    folder: str
    tls: bool

    @property
    def pem(self) -> Path:
        """The certificate with its chain, and its key."""
        return Path(self.folder) / "tls.pem"

    def lines(self) -> Sequence[str]:
        """Return the first lines of the frontend."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        secured = f" ssl crt {self.pem} alpn h2,http/1.1 ssl-min-ver TLSv1.2" if self.tls else ""
        lines = [
            f"bind {host}:{self.port}{secured}",
            *(f"http-request del-header {name}" for name in RAY_HEADERS),
            # Ray Serve adds the id that the client sent to the one that the replica answers with
            "http-response set-header x-request-id %[res.fhdr(x-request-id,1)]"
            " if { res.fhdr_cnt(x-request-id) gt 1 }",
            # Ray Serve's own proxy, while the application is being taken away; no 404 of ours is plain text
            f"http-response return {UNANSWERED}"
            " if { status 404 } { res.hdr(content-type) -m beg text/plain }",
            *_OWN_ANSWERS,
        ]
        if self.tls:
            lines.append(f'http-after-response set-header strict-transport-security "{HSTS}"')
        return lines


def change(config: str, front: Front) -> str:
    """Return Ray Serve's configuration as it is used; a changed one stays as it is."""
    if config.startswith(CHANGED):
        return config
    config = shape_errors(close_binds(config), Path(front.folder))
    lines = front.lines()
    config = FRONTEND.sub(lambda found: "".join([found[1], *(found[2] + line for line in lines)]), config)
    return f"{CHANGED}\n{config}"


def write_script(path: Path, binary: str, front: Front) -> None:
    """Write the script that stands in for HAProxy's `binary`, and its answers. It starts in about 30 ms."""
    write_errors(Path(front.folder))
    root = str(Path(__file__).resolve().parents[1])
    code = f"import sys; sys.path.append({root!r}); from server.haproxy import main; main(sys.argv[1:])"
    # -I -S: nothing but the standard library and this project
    command = shlex.join([sys.executable, "-I", "-S", "-c", code, json.dumps(asdict(front)), binary])
    path.write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
    path.chmod(0o700)


def main(arguments: list[str]) -> None:
    """Become HAProxy: the first argument is the front as JSON, the second its binary, then come its own."""
    die_with_parent(signal.SIGKILL)
    front, *command = arguments
    if "-f" in command:
        config = Path(command[command.index("-f") + 1])
        changed = change(config.read_text(encoding="utf-8"), Front(**json.loads(front)))
        config.write_text(changed, encoding="utf-8")
    os.execv(command[0], command)  # noqa: S606
