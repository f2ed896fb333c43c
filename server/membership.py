"""Where this replica stands among all that follow one registry, on any host: its lease, and the others'.

Whoever moves an alias may wait until every replica has applied the move. A replica is waited for from before
it reads the registry for the first time until it leaves, or has told nothing for as long as its lease: then
it is gone, or cut off and knows that itself. No two clocks are compared. Each watcher measures silence by its
own, and counts no time in which the registry did not answer it: a registry that was away makes nobody lapse.
"""

import asyncio
import contextlib
import logging
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from registry.base import Registry
from registry.errors import RegistryError, RegistryUnavailable
from registry.models import START, Lease, position
from server.errors import NotConfirmed

LEASE_SECONDS = 10.0
BEATS_A_LEASE = 3
LOOK_SECONDS = 0.03  # between looks at the leases while somebody waits
LEAVE_SECONDS = 1.0

logger = logging.getLogger(__name__)


def make_name() -> str:
    """Return a name for this process that no other has had: host, pid, and four random bytes."""
    host = re.sub("[^a-z0-9]+", "-", socket.gethostname().lower()).strip("-")[:40] or "host"
    return f"{host}-{os.getpid()}-{secrets.token_hex(4)}"


class Member(NamedTuple):
    """A replica that holds a lease, and for how many seconds it has told nothing."""

    lease: Lease
    silent_seconds: float


class Membership:
    """All methods run on one event loop; nothing is told before `begin`.

    Args:
        registry: The registry that all follow.
        name: This replica's.
        lease_seconds: How long this replica is believed to be there without telling anything.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        name: str | None = None,
        lease_seconds: float = LEASE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name or make_name()
        self._registry = registry
        self._clock = clock
        self._beat_seconds = lease_seconds / BEATS_A_LEASE
        self._lease = Lease(replica=self.name, cursor=START, beat=0, seconds=lease_seconds)
        self._told_at = self._held_until = self._looked_at = float("-inf")
        self._waited_for = False
        self._members: dict[str, Member] = {}

    @property
    def is_cut_off(self) -> bool:
        """True while nobody need wait for this replica: what it knows may be older than others were told."""
        return self._clock() >= self._held_until

    @property
    def cursor(self) -> str:
        """The cursor of the last event that this replica has told to have applied."""
        return self._lease.cursor

    async def begin(self) -> None:
        """Be waited for, if nobody does: called before each read of the registry.

        Whoever moves an alias after this waits for this replica; what moved before will be read.
        """
        if self.is_cut_off:
            self._waited_for = await self._tell(self._lease.cursor)

    async def applied(self, cursor: str) -> None:
        """Tell what has been read and applied, if that is news or the lease needs it."""
        sent_at = self._clock()
        due = sent_at - self._told_at >= self._beat_seconds
        if cursor == self._lease.cursor and not due and not self.is_cut_off:
            return
        if await self._tell(cursor) and self._waited_for:
            self._held_until = sent_at + self._lease.seconds
        if due:
            with contextlib.suppress(RegistryUnavailable):
                await self.look()

    async def leave(self) -> None:
        """Be waited for no longer. This replica must answer nothing more."""
        self._held_until = float("-inf")
        if self._lease.beat == 0:
            return
        try:
            async with asyncio.timeout(LEAVE_SECONDS):
                await self._registry.drop_lease(self._lease)
        except (RegistryError, TimeoutError) as error:
            logger.info("this replica's lease stays until it lapses: %s", error)

    async def look(self) -> tuple[Member, ...]:
        """Return who may be there, by name; forget those that were silent for longer than their leases.

        Raises:
            RegistryUnavailable
        """
        leases = await self._registry.leases()
        now = self._clock()
        passed = min(now - self._looked_at, self._beat_seconds)
        self._looked_at = now
        self._members = {lease.replica: self._seen(lease, passed) for lease in leases}
        if self.name not in self._members:  # the registry has lost it
            self._told_at = float("-inf")
        for member in tuple(self._members.values()):
            if member.silent_seconds >= member.lease.seconds and await self._registry.drop_lease(
                member.lease
            ):
                logger.warning("replica %s has lapsed: it has ended or is cut off", member.lease.replica)
                self._members.pop(member.lease.replica, None)
        return tuple(self._members.values())

    async def confirm(self, cursor: str, seconds: float) -> tuple[str, ...]:
        """Wait until all replicas have applied the events up to a cursor; return their names.

        Raises:
            NotConfirmed: If not all have within `seconds`, or the registry was away at their end.
        """
        behind: Sequence[str] = ()
        try:
            async with asyncio.timeout(seconds):
                while True:
                    with contextlib.suppress(RegistryUnavailable):
                        members = await self.look()
                        behind = _behind(members, cursor)
                        if not behind:
                            return tuple(member.lease.replica for member in members)
                    await asyncio.sleep(LOOK_SECONDS)
        except TimeoutError:
            raise NotConfirmed(tuple(behind)) from None

    def _seen(self, lease: Lease, passed: float) -> Member:
        known = self._members.get(lease.replica)
        if known is None or lease.beat > known.lease.beat:
            return Member(lease, 0.0)
        return Member(lease, known.silent_seconds + passed)

    async def _tell(self, cursor: str) -> bool:
        """Return whether it was heard; if not, it is due again, and the lease may lapse."""
        # counted even if no answer comes: it may have arrived
        self._lease = self._lease.model_copy(update={"cursor": cursor, "beat": self._lease.beat + 1})
        self._told_at = self._clock()
        try:
            await self._registry.put_lease(self._lease)
        except RegistryUnavailable as error:
            logger.warning("this replica could not renew its lease: %s", error)
            self._told_at = float("-inf")
            return False
        return True


def _behind(members: Sequence[Member], cursor: str) -> tuple[str, ...]:
    return tuple(m.lease.replica for m in members if position(m.lease.cursor) < position(cursor))
