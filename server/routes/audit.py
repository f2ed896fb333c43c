"""GET /v1/audit: who changed what, and when."""

from fastapi import APIRouter, Request

from registry.base import Registry
from registry.errors import RegistryUnavailable
from registry.models import AuditEntry
from server import openapi
from server.access import MANAGE
from server.auth import Caller
from server.middleware import exchange_of
from server.parts import parts_of
from server.queries import AuditQuery, parameters, query_of
from server.schemas import AuditPage

AT_ONCE = 1000
MAX_READS = 10  # bounds the work for a key whose tasks are rare

router = APIRouter(prefix="/v1/audit", tags=["audit"])


@router.get(
    "",
    dependencies=[MANAGE],
    responses=openapi.problems(*openapi.COMMON, RegistryUnavailable("embedded", "")),
    openapi_extra={"parameters": parameters(AuditQuery)},
)
async def read_audit(request: Request) -> AuditPage:
    """List changes, latest first: those of the tasks that the key covers; of keys, if it covers all tasks.

    A page may be shorter than asked for: follow `next_after` until it is null.
    """
    query, caller = query_of(request, AuditQuery), exchange_of(request).caller
    if query.task is not None:
        caller.check_task(query.task)
    return await _page(parts_of(request).registry, query, caller)


async def _page(registry: Registry, query: AuditQuery, caller: Caller) -> AuditPage:
    after, found = query.after, list[AuditEntry]()
    at_once = query.limit if caller.covers_all else AT_ONCE
    for _ in range(MAX_READS):
        entries = await registry.audit(task=query.task, after=after, limit=at_once)
        found += [entry for entry in entries if caller.covers_all or _covers(caller, entry)]
        after = entries[-1].number if len(entries) == at_once else None
        if after is None or len(found) >= query.limit:
            break
    if len(found) > query.limit:
        found, after = found[: query.limit], found[query.limit - 1].number
    return AuditPage(entries=tuple(found), next_after=after)


def _covers(caller: Caller, entry: AuditEntry) -> bool:
    return entry.task is not None and caller.may_use(entry.task)
