"""The application for a Ray cluster that is there already: what `deploy/serve.yaml` names.

    serve deploy deploy/serve.yaml

There is no launcher: the cluster's nodes have Ray's variables and ours in their environment, the same on all
of them. Replicas read them there, so that no password gets into Ray's own state.
"""

from typing import Any

from server.errors import SettingsInvalid
from server.ray_app import options
from server.settings import PREFIX, Settings

# what Ray Serve's own configuration says: `host` and `port`, `num_replicas` or `autoscaling_config`
RAYS_OWN = {"host": "http_options", "port": "http_options"} | dict.fromkeys(
    ("replicas", "max_replicas", "target_ongoing", "scale_up_delay_ms", "scale_down_delay_ms"), "deployments"
)
EVERYWHERE = "0.0.0.0"  # noqa: S104  (what Ray listens on is not known here: keys are needed in any case)


def build(given: dict[str, Any]) -> Any:
    """Return the application; Ray Serve calls it on one node with the configuration's `args`.

    Args:
        given: Settings by name, as in a settings file. They win over the nodes' environment.

    Raises:
        SettingsInvalid: Also if the settings cannot be those of a cluster.
    """
    for name in sorted(RAYS_OWN.keys() & given.keys()):
        raise SettingsInvalid(f"args: {name}: on a cluster, `{RAYS_OWN[name]}` says it")
    given = {**given, "host": EVERYWHERE, "replicas": 1}
    settings = Settings.load(given)
    _check(settings)
    return options(settings, gpus=0).bind(given, None)


def _check(settings: Settings) -> None:
    if settings.tls_cert is not None:
        raise SettingsInvalid(f"{PREFIX}TLS_CERT: only `ssfserve serve` has TLS; use an ingress on a cluster")
    if settings.registry.startswith("embedded:"):
        raise SettingsInvalid(f"{PREFIX}REGISTRY: a cluster needs one that every node reaches: redis://…")
    if not settings.data_dir.is_absolute():
        raise SettingsInvalid(f"{PREFIX}DATA_DIR: {settings.data_dir} must be absolute on a cluster")
