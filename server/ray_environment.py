"""The environment that makes Ray and Ray Serve behave; it must be set before Ray is imported anywhere."""

import contextlib
import os
import secrets
from pathlib import Path

from server.ports import Ports
from server.run_dir import ADMIN_SOCKET, RunDir
from server.settings import Settings

TOKEN_FILE = "ray-token"  # noqa: S105  (a file name)


def ray_environment(settings: Settings, run: RunDir, ports: Ports) -> dict[str, str]:
    """Return the variables for the driver and, through it, for every process of a single-node server."""
    return {
        # clients reach a replica through HAProxy, not through a Python proxy: about ten times the requests/s
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_NBTHREAD": "2",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(run.haproxy),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(run.path / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(run.path / ADMIN_SOCKET),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(run.path / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(run.path),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(run.path / "server-state"),
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(_client_timeout_seconds(settings)),
        # two servers on one host share nothing
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports.haproxy_metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(ports.haproxy_stats),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports.fallback),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(ports.replicas.start),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(ports.replicas.stop),
        "AUTOSCALER_METRIC_PORT": str(ports.autoscaler_metrics),
        "DASHBOARD_METRIC_PORT": str(ports.dashboard_metrics),
        # a replica leaves HAProxy's list well within this; the default of 30 s is for load balancers
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        # after the default of 5 s Ray Serve kills a proxy that still starts, as it may on a busy host
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",
        # an HAProxy manager that died is replaced after 3 of these; the default is 10 s each
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2",
        # Ray's own priority 15 starves it beside any busy process
        "RAY_worker_niceness": "0",
        # every listener of a single node on 127.0.0.1
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file(settings.data_dir)),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_metrics_report_interval_ms": "1000",
        "OMP_NUM_THREADS": str(settings.threads or 1),
    }


def token_file(data_dir: Path) -> Path:
    """Return the file with the secret that Ray's processes show each other; make it if it is not there."""
    path = data_dir.resolve() / TOKEN_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{TOKEN_FILE}.{secrets.token_hex(4)}")
    fresh.touch(mode=0o600)
    fresh.write_text(secrets.token_hex(32), encoding="utf-8")
    with contextlib.suppress(FileExistsError):
        os.link(fresh, path)  # whole or not at all, and never over the one another server uses
    fresh.unlink()
    return path


def _client_timeout_seconds(settings: Settings) -> int:
    return (settings.body_timeout_ms + settings.request_timeout_ms) // 1000 + 30
