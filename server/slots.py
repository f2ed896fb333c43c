"""Which adapter is in which slot of the bank, and which of them may be evicted."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

SCAN = 64  # victims looked at for one that no job waits for


@dataclass(slots=True)
class _Slot:
    index: int
    used_at: float
    holders: int = 0
    reserved: bool = False


class Victim(NamedTuple):
    digest: str
    idle_seconds: float


class Claim(NamedTuple):
    """A slot to load into, and the adapter that had to leave it."""

    slot: int
    victim: Victim | None


class SlotTable:
    """The slots 1 to `slots`, and what is in them.

    Evicted is who was used longest ago, first among those for which no job waits. Never evicted are slots
    that a batch in flight holds, kept (pinned by a user) ones, and reserved ones: loaded for waiting jobs and
    not yet used by one.
    """

    def __init__(self, slots: int, *, wanted: Callable[[str], bool], clock: Callable[[], float]) -> None:
        self.total = slots
        self._wanted = wanted
        self._clock = clock
        self._free = list(range(slots, 0, -1))
        self._filled: dict[str, _Slot] = {}
        self._evictable: OrderedDict[str, None] = OrderedDict()
        self._kept: set[str] = set()

    @property
    def used(self) -> int:
        return len(self._filled)

    @property
    def kept(self) -> int:
        return len(self._kept)

    def find(self, digest: str) -> int | None:
        slot = self._filled.get(digest)
        return None if slot is None else slot.index

    def claim(self) -> Claim | None:
        """Take a slot to load into, evicting if need be. None if no slot can be had now.

        The caller ends the claim by `fill` or `free`.
        """
        if self._free:
            return Claim(self._free.pop(), None)
        digest = self._victim()
        if digest is None:
            return None
        slot = self._remove(digest)
        return Claim(slot.index, Victim(digest, self._clock() - slot.used_at))

    def fill(self, index: int, digest: str) -> None:
        """Record that a claimed slot now holds an adapter; it is reserved if jobs wait for it."""
        self._filled[digest] = _Slot(index, self._clock(), reserved=self._wanted(digest))
        self._settle(digest)

    def free(self, index: int) -> None:
        """Give a claimed slot back unused."""
        self._free.append(index)

    def hold(self, digest: str) -> int:
        """Keep a filled slot for a batch and return it; this uses its reservation up."""
        slot = self._filled[digest]
        slot.holders += 1
        slot.reserved = False
        self._evictable.pop(digest, None)
        return slot.index

    def release(self, digest: str) -> None:
        slot = self._filled[digest]
        slot.holders -= 1
        slot.used_at = self._clock()
        self._settle(digest)

    def unreserve(self, digest: str) -> None:
        """End the reservation: the jobs it was for are gone."""
        slot = self._filled.get(digest)
        if slot is not None and slot.reserved:
            slot.reserved = False
            self._settle(digest)

    def is_kept(self, digest: str) -> bool:
        return digest in self._kept

    def keep(self, digest: str) -> None:
        """Never evict this adapter, be it in a slot already or later."""
        self._kept.add(digest)
        self._settle(digest)

    def unkeep(self, digest: str) -> None:
        self._kept.discard(digest)
        self._settle(digest)

    def is_held(self, digest: str) -> bool:
        slot = self._filled.get(digest)
        return slot is not None and slot.holders > 0

    def drop(self, digest: str) -> None:
        """Empty the slot of an adapter that nobody holds, if it has one."""
        if digest in self._filled:
            self._free.append(self._remove(digest).index)

    def _victim(self) -> str | None:
        oldest = list(islice(self._evictable, SCAN))
        unwanted = (digest for digest in oldest if not self._wanted(digest))
        return next(unwanted, oldest[0] if oldest else None)

    def _remove(self, digest: str) -> _Slot:
        self._evictable.pop(digest, None)
        return self._filled.pop(digest)

    def _settle(self, digest: str) -> None:
        slot = self._filled.get(digest)
        if slot is None:
            return
        self._evictable.pop(digest, None)
        if not slot.holders and not slot.reserved and digest not in self._kept:
            self._evictable[digest] = None
