"""The container's health check: exit code 0 if the server in it wants traffic. Standard library only."""

import os
import ssl
import sys
import urllib.request
from http.client import HTTPException

SECONDS = 2.0


def is_ready(port: str) -> bool:
    """Ask the server on this machine, over TLS if it does not answer without."""
    unverified = ssl._create_unverified_context()  # noqa: S323  (its certificate names another host than this)
    for scheme in ("http", "https"):
        try:
            with urllib.request.urlopen(  # noqa: S310
                f"{scheme}://127.0.0.1:{port}/readyz", timeout=SECONDS, context=unverified
            ) as answer:
                return bool(answer.status == 200)
        except (OSError, HTTPException):  # refused, reset, not HTTP, or any status but 2xx
            continue
    return False


if __name__ == "__main__":
    sys.exit(not is_ready(os.environ.get("SSFSERVE_PORT") or "8000"))
