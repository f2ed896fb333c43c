"""HAProxy as Ray Serve starts it, with two of its habits changed.

Ray Serve's configuration offers HAProxy's metrics and its statistics page on every interface, without a
password, and an HAProxy whose manager was killed lives on and keeps its port. So the launcher names a script
as Ray Serve's HAProxy binary. The script runs `main`: it binds both to loopback, asks the kernel to end
HAProxy with its manager, and becomes HAProxy, under the same pid and with the same arguments.
"""

import os
import re
import shlex
import signal
import sys
from pathlib import Path

from server.processes import die_with_parent

# `frontend prometheus` / `bind :9101` and `listen stats` / `bind *:8404`, as Ray Serve writes them
OPEN_BIND = re.compile(r"(?m)^(frontend prometheus|listen stats)\n(\s+bind )[^\s:]*:(\d+)$")


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
        config.write_text(close_binds(config.read_text(encoding="utf-8")), encoding="utf-8")
    os.execv(arguments[0], arguments)  # noqa: S606
