"""Versions as the API shows them: what the registry has, and where this replica keeps them."""

from collections.abc import Mapping
from typing import Any

from registry.models import Version
from server.contracts import Engine
from server.schemas import VersionDetail, VersionSummary


def summary(version: Version, aliases: Mapping[str, int], engine: Engine) -> VersionSummary:
    return VersionSummary(**_facts(version, aliases, engine))


def detail(version: Version, aliases: Mapping[str, int], engine: Engine) -> VersionDetail:
    facts = _facts(version, aliases, engine)
    return VersionDetail(task=version.task, manifest=version.manifest, **facts)


def _facts(version: Version, aliases: Mapping[str, int], engine: Engine) -> dict[str, Any]:
    state = engine.state(version.digest)
    return {
        "version": version.version,
        "digest": version.digest,
        "size": version.size,
        "created": version.created,
        "method": version.manifest.method,
        "num_classes": version.manifest.num_classes,
        "aliases": tuple(sorted(name for name, number in aliases.items() if number == version.version)),
        "tier": state.tier,
        "pinned": state.pinned,
        "last_used": state.last_used,
    }
