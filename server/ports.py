"""Find ports, so that several servers can run on one host."""

import socket
from collections.abc import Iterator
from dataclasses import dataclass

INTERNAL = range(20_000, 30_000)  # below what systems hand out for outgoing connections
REPLICAS = range(30_000, 32_700)
REPLICAS_PER_SERVER = 100


@dataclass(frozen=True, slots=True)
class Ports:
    """Ports of a server besides the public one. Ray Serve looks for free ones in `replicas` itself."""

    fallback: int
    haproxy_metrics: int
    haproxy_stats: int
    ray_metrics: int
    autoscaler_metrics: int
    dashboard_metrics: int
    replicas: range


def is_free(host: str, port: int) -> bool:
    """Tell whether a server could listen there now.

    Raises:
        OSError: If the host is not an address of this machine.
    """
    family, kind, proto, _, address = socket.getaddrinfo(
        host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with socket.socket(family, kind, proto) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            if error.errno in {98, 48}:  # EADDRINUSE on Linux and macOS
                return False
            raise
    return True


def choose(public: int) -> Ports:
    """Choose free internal ports. Servers with different public ports look in different places first."""
    free = _free_from(INTERNAL.start + public * 16 % len(INTERNAL))
    first = REPLICAS.start + public * REPLICAS_PER_SERVER % len(REPLICAS)
    return Ports(
        fallback=next(free),
        haproxy_metrics=next(free),
        haproxy_stats=next(free),
        ray_metrics=next(free),
        autoscaler_metrics=next(free),
        dashboard_metrics=next(free),
        replicas=range(first, first + REPLICAS_PER_SERVER),
    )


def _free_from(start: int) -> Iterator[int]:
    for port in (*range(start, INTERNAL.stop), *range(INTERNAL.start, start)):
        if is_free("0.0.0.0", port):  # noqa: S104  (some of Ray's listeners take every interface)
            yield port
