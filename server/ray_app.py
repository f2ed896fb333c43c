"""The one Ray Serve deployment: each of its replicas is a `server.replica.Replica`.

HTTP, decoding and the engine are in one process: a call between two deployments costs more than the rest of
a request. The queue is ours too, since only our batcher can mix what waits; Ray Serve lets all through.
"""

import logging
import os
import time
import warnings
from pathlib import Path
from typing import Any

import ray.serve._private.replica as replica_module
from fastapi import FastAPI
from ray import serve
from ray.serve.config import AutoscalingConfig

from adapters.errors import AdapterError
from backbone.errors import BackboneError
from registry.errors import RegistryError
from server import logs
from server.cores import gpu_share
from server.errors import ServerError
from server.exposition import CONTENT_TYPE, merge
from server.replica import Replica
from server.run_dir import RunDir
from server.settings import Settings

APP_NAME = "ssfserve"
DEPLOYMENT_NAME = "Inference"

# what is in the batcher's queue, being decoded, uploading, or asking for something else than a prediction
ONGOING_BEYOND_QUEUE = 1024
HEALTH_PERIOD_SECONDS = 5.0
SCRAPE_SECONDS = 5.0
LOAD_SECONDS = 1.0  # how often replicas tell their load
LOOK_BACK_SECONDS = 5.0  # over which it is averaged
CPUS_PER_REPLICA = 0.1  # for Ray's bookkeeping alone: threads are counted out by `cores.with_threads`

EXPECTED = (ServerError, AdapterError, RegistryError, BackboneError)

logger = logging.getLogger(__name__)


class RayFleet:
    """All running replicas, asked through Ray Serve. Costs about 25 ms for each replica."""

    def __init__(self) -> None:
        self._handle: Any = None

    async def exposition(self) -> tuple[bytes, str]:
        """Return the metrics of all replicas; one that does not answer is left out, as if it were gone."""
        if self._handle is None:
            self._handle = serve.get_deployment_handle(DEPLOYMENT_NAME, APP_NAME)
        answers = await self._handle.broadcast("exposition").results_async(
            timeout_s=SCRAPE_SECONDS, return_exceptions=True
        )
        texts = dict(sorted(answer for answer in answers if not isinstance(answer, BaseException)))
        return merge(texts).encode(), CONTENT_TYPE


@serve.deployment(name=DEPLOYMENT_NAME)
@serve.ingress()  # the application is built in the replica, by `__serve_build_asgi_app__`
class Inference:
    """A replica under Ray Serve.

    Args:
        settings: The settings as JSON values. On a cluster only those that its configuration names: the
            rest, and so every secret, is in the environment of the replica's node.
        run_dir: Where to report to the launcher; None where there is none, on a cluster.
    """

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it
        self, settings: dict[str, Any], run_dir: str | None
    ) -> None:
        marks = {"a replica's process": time.time()}
        read = Settings.load(settings) if run_dir is None else Settings.model_validate(settings)
        run = None if run_dir is None else RunDir(Path(run_dir))
        if run is not None:
            run.redirect_stderr()
            _listen_on_loopback()
        # not sys.stderr: there Ray Serve drops what is no error
        own_stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        logs.configure(level=read.log_level, log_format=read.log_format, stream=own_stderr)
        try:
            self._replica = await Replica.open(
                read, fleet=RayFleet(), mark=lambda part: marks.update({part: time.time()})
            )
        except Exception as error:
            if run is not None:
                run.report_failure(_reason(error))
            raise
        if run is not None:
            run.report_ready(_report(self._replica) | {"marks": marks})

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._replica.app

    async def exposition(self) -> tuple[str, str]:
        """Return this replica's name and its metrics; called on every replica by `RayFleet`."""
        return self._replica.name, self._replica.metrics.text()

    async def check_health(self) -> None:
        """Have Ray Serve replace this replica if the engine cannot answer any more."""
        self._replica.engine.check()

    async def __del__(self) -> None:
        """Let go of everything; Ray Serve awaits it when it stops the replica."""
        if hasattr(self, "_replica"):
            await self._replica.close()


def _listen_on_loopback() -> None:
    """Keep the replica's port for other replicas, which Ray Serve is about to open, off the network.

    On one host nobody else needs it. Ray Serve has no setting for it; the end-to-end tests look.
    """
    real = replica_module.add_port_to_grpc_server

    def add_port(server: Any, address: str) -> Any:
        return real(server, address.replace("[::]", "127.0.0.1"))

    replica_module.add_port_to_grpc_server = add_port


def bind(settings: Settings, run_dir: Path, *, gpus: float) -> Any:
    """Return the application to deploy on this host, which has so many GPUs."""
    return options(settings, gpus=gpus).bind(settings.model_dump(mode="json"), str(run_dir))


def options(settings: Settings, *, gpus: float) -> Any:
    """Return the deployment as Ray Serve is to run it."""
    drain_seconds = settings.drain_timeout_ms / 1000
    deployment: Any = Inference  # `serve.deployment` made it one
    share = gpu_share(settings, gpus)
    return deployment.options(
        **_scale(settings),
        # a restart begins with one replica more, where there is room for it
        max_surge_percent=0 if share else 1,
        max_ongoing_requests=settings.max_queue + ONGOING_BEYOND_QUEUE,
        health_check_period_s=HEALTH_PERIOD_SECONDS,
        graceful_shutdown_wait_loop_s=0.2,
        graceful_shutdown_timeout_s=drain_seconds + 5,
        ray_actor_options={"num_cpus": CPUS_PER_REPLICA, "num_gpus": share},
        logging_config={"log_level": "ERROR", "enable_access_log": False},
    )


def _scale(settings: Settings) -> dict[str, Any]:
    """Return how many replicas there are, or what decides it."""
    if settings.most_replicas == settings.replicas:
        return {"num_replicas": settings.replicas}
    with warnings.catch_warnings():
        # `metrics_interval_s` is deprecated, and still all that sets how soon load is seen
        warnings.simplefilter("ignore", DeprecationWarning)
        config = AutoscalingConfig(
            min_replicas=settings.replicas,
            max_replicas=settings.max_replicas,
            target_ongoing_requests=settings.target_ongoing or 2 * settings.max_batch,
            metrics_interval_s=LOAD_SECONDS,
            look_back_period_s=LOOK_BACK_SECONDS,
            upscale_delay_s=settings.scale_up_delay_ms / 1000,
            downscale_delay_s=settings.scale_down_delay_ms / 1000,
        )
    return {"autoscaling_config": config}


def _report(replica: Replica) -> dict[str, Any]:
    info, tasks = replica.engine.backbone, replica.tasks()
    return {
        "backbone": {
            "name": info.name,
            "parameters": info.parameters,
            "dtype": info.dtype,
            "device": info.device,
            "height": info.preprocessing.height,
            "width": info.preprocessing.width,
            "slots": info.slots,
        },
        "tasks": tasks,
        "answering": [task for task in tasks if replica.answers(task)],
    }


def _reason(error: Exception) -> str:
    if isinstance(error, EXPECTED):
        return str(error)
    logger.error("the replica could not start", exc_info=error)
    return f"the replica could not start: {type(error).__name__}: {error}"
