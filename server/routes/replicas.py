"""The replicas that follow the registry, this server's and others', and how far each is."""

from fastapi import APIRouter, Request

from registry.errors import RegistryUnavailable
from registry.models import position
from server import openapi
from server.access import MANAGE
from server.parts import parts_of
from server.schemas import Replicas, ReplicaStatus

router = APIRouter(prefix="/v1/replicas", tags=["service"])


@router.get(
    "",
    dependencies=[MANAGE],
    responses=openapi.problems(*openapi.COMMON, RegistryUnavailable("embedded", "")),
)
async def list_replicas(request: Request) -> Replicas:
    """List the replicas of all servers on this registry, with how far behind each is."""
    parts = parts_of(request)
    membership = parts.catalog.membership
    members = await membership.look()
    latest = position(await parts.registry.cursor())
    return Replicas(
        replicas=tuple(
            ReplicaStatus(
                replica=lease.replica,
                answers=lease.replica == membership.name,
                behind=max(0, latest - position(lease.cursor)),
                silent_seconds=round(silent, 3),
                lease_seconds=lease.seconds,
            )
            for lease, silent in members
        )
    )
