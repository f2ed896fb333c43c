"""A bound on the memory of decoding, whatever the number of threads."""

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class PixelBudget:
    """Pixels that threads may hold at a time. First come, first served: a large image is never overtaken.

    Args:
        total: Pixels; an image that has more waits until it is alone.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._held = 0
        self._turn = threading.Condition()
        self._waiting: deque[object] = deque()

    @contextmanager
    def hold(self, pixels: int) -> Iterator[float]:
        """Block until the pixels fit beside those that others hold, and hold them while the block runs.

        Yields:
            How many seconds that took.
        """
        share, started = min(pixels, self._total), time.perf_counter()
        self._acquire(share)
        try:
            yield time.perf_counter() - started
        finally:
            with self._turn:
                self._held -= share
                self._turn.notify_all()

    def _acquire(self, share: int) -> None:
        ticket = object()
        with self._turn:
            self._waiting.append(ticket)
            self._turn.wait_for(lambda: self._waiting[0] is ticket and self._held + share <= self._total)
            self._waiting.popleft()
            self._held += share
            self._turn.notify_all()  # the next one may fit too
