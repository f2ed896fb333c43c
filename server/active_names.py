"""Which of many names are the most active, within fixed memory."""

import heapq
import time
from collections import Counter
from collections.abc import Callable

PERIOD_SECONDS = 10.0  # names change hands at most so often
HALF_LIFE_SECONDS = 60.0
LEAD = 2.0  # how much more active a name must be to displace another: no taking turns
SPARE = 4  # candidates that are remembered, per place
MAX_COUNTED = 2000  # names that are counted in one period, beyond which it does not matter who leads


class ActiveNames:
    """A set of at most `limit` names, of those that were noted most, with exponentially fading weight.

    While there is room every name is taken. Afterwards one that is LEAD times as active as the least active
    displaces it. Noting costs a dictionary entry, and every PERIOD_SECONDS a sort of the candidates.

    Args:
        limit: Size of the set.
        dropped: Called with each name that is displaced.
        clock: Seconds that never go back.
    """

    def __init__(
        self, limit: int, *, dropped: Callable[[str], object], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit = limit
        self._dropped = dropped
        self._clock = clock
        self._names: set[str] = set()
        self._activity: dict[str, float] = {}
        self._counted: Counter[str] = Counter()
        self._ranked = clock()

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def note(self, name: str) -> bool:
        """Note that something was done under a name; return True if it is in the set."""
        if self._clock() - self._ranked >= PERIOD_SECONDS:
            self._rank()
        if name in self._counted or len(self._counted) < MAX_COUNTED:
            self._counted[name] += 1
        if len(self._names) < self._limit:
            self._names.add(name)
        return name in self._names

    def _rank(self) -> None:
        now = self._clock()
        fade = 0.5 ** ((now - self._ranked) / HALF_LIFE_SECONDS)
        self._ranked = now
        current: Counter[str] = Counter()
        for past in (self._activity, self._counted):
            current.update({name: activity * fade for name, activity in past.items()})
        self._counted.clear()
        self._displace(current)
        spare = heapq.nlargest(SPARE * self._limit, current, key=current.__getitem__)
        self._activity = {name: current[name] for name in {*spare, *self._names}}

    def _displace(self, activity: Counter[str]) -> None:
        rivals = set(activity) - self._names
        challengers = heapq.nlargest(self._limit, rivals, key=activity.__getitem__)
        weakest = sorted(self._names, key=activity.__getitem__)
        for challenger, holder in zip(challengers, weakest, strict=False):
            if activity[challenger] <= LEAD * activity[holder]:
                break
            self._names.remove(holder)
            self._names.add(challenger)
            self._dropped(holder)
