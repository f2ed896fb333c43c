"""What `ssfserve serve` prints once the server is ready."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from server.settings import Settings

IMAGE_TYPES = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".webp": "image/webp"}
NAMED_TASKS = 8


def address(settings: Settings) -> str:
    """Return the URL under which this machine reaches the server."""
    host = settings.host.strip("[]")
    if host in {"0.0.0.0", "::", "localhost"}:  # noqa: S104
        host = "127.0.0.1" if host != "::" else "::1"
    scheme = "http" if settings.tls_cert is None else "https"
    return f"{scheme}://[{host}]:{settings.port}" if ":" in host else f"{scheme}://{host}:{settings.port}"


def ready(settings: Settings, report: Mapping[str, Any]) -> str:
    """Describe a server that is ready, from the report of one of its replicas."""
    return "\n".join(
        (
            f"ready      {address(settings)}   (API: /docs, metrics: /metrics)",
            f"backbone   {_backbone(report['backbone'])}",
            f"tasks      {_tasks(report['tasks'])}",
            f"try        {_curl(settings, report['answering'])}",
        )
    )


def started(began: float, marks: Mapping[str, float]) -> str:
    """Say what a start took, part by part.

    Args:
        began: When it began, in seconds since the epoch.
        marks: When each part ended, by name, in order.
    """
    ends = list(marks.values())
    parts = zip(marks, [began, *ends[:-1]], ends, strict=True)
    told = ", ".join(f"{name} {end - start:.1f}" for name, start, end in parts)
    return f"started    in {ends[-1] - began:.1f} s: {told}"


def _backbone(info: Mapping[str, Any]) -> str:
    return (
        f"{info['name']}, {info['parameters'] / 1e6:.1f} M parameters, {info['dtype']} on {info['device']}, "
        f"{info['height']}x{info['width']} px, {info['slots']} slots"
    )


def _tasks(tasks: list[str]) -> str:
    if not tasks:
        return "none yet: ssfserve push FILE --task TASK"
    more = f" and {len(tasks) - NAMED_TASKS} more" if len(tasks) > NAMED_TASKS else ""
    return ", ".join(tasks[:NAMED_TASKS]) + more


def _curl(settings: Settings, tasks: list[str]) -> str:
    """Return a command that works as printed."""
    trust = "" if settings.tls_cert is None else f"--cacert {settings.tls_cert} "
    found = settings.seed_dir and next(
        ((task, image) for task in tasks if (image := _sample(settings.seed_dir, task))), None
    )
    if not found:
        return f"curl -s {trust}{address(settings)}/v1/tasks"
    task, image = found
    content_type = IMAGE_TYPES[image.suffix.lower()]
    return (
        f"curl -s {trust}--data-binary @{image} -H 'Content-Type: {content_type}' "
        f"{address(settings)}/v1/tasks/{task}/predict"
    )


def _sample(folder: Path, task: str) -> Path | None:
    """Find an image of a task beside the seeds: its name or its folder's begins with the task's."""
    images = (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in IMAGE_TYPES)
    return next((i for i in images if i.name.startswith(task) or i.parent.name.startswith(task)), None)
