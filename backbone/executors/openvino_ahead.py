"""Compiling a start's graphs while PyTorch is still being imported.

What an executor needs is known for sure only when the weights are loaded. It is nearly always what the last
start with the same settings needed, and that is remembered beside the graphs: compiling it takes a second or
two of the other core. A guess that proves wrong is thrown away. Imports no torch.
"""

import contextlib
import hashlib
import json
import logging
import secrets
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from backbone.executors.openvino_files import Compiled, Wanted, compile_graph, read

logger = logging.getLogger(__name__)


class Ahead:
    """One guess, for one start."""

    def __init__(self, cache: Path, settings: str) -> None:
        """Begin to compile, in a thread, what the last start needed, if there was one.

        Args:
            cache: Directory of the converted graphs.
            settings: All that decides which graph is needed and how it is compiled, in any fixed form.
        """
        self._cache = cache
        self._note = cache / f"last-{hashlib.sha256(settings.encode()).hexdigest()[:16]}.json"
        self._guess = self._remembered()
        self._made: Future[Compiled] | None = None
        if self._guess is not None:
            pool = ThreadPoolExecutor(1, "compile ahead")
            self._made = pool.submit(self._compile, self._guess)
            pool.shutdown(wait=False)

    def take(self, wanted: Wanted) -> Compiled | None:
        """Return what was compiled if it is what is wanted; waits for it. Remembers what is wanted."""
        if self._made is not None and wanted == self._guess:
            try:
                return self._made.result()
            except (OSError, RuntimeError, ValueError) as error:
                logger.info("the graph was not compiled ahead: %s", error)
                return None
        self._remember(wanted)
        return None

    def _compile(self, guess: Wanted) -> Compiled:
        return compile_graph(read(self._cache / guess.graph), guess)

    def _remembered(self) -> Wanted | None:
        try:
            return Wanted(**json.loads(self._note.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def _remember(self, wanted: Wanted) -> None:
        fresh = self._note.with_suffix(f".{secrets.token_hex(4)}")
        with contextlib.suppress(OSError):  # the next start is slower, nothing more
            self._cache.mkdir(parents=True, exist_ok=True)
            fresh.write_text(json.dumps(asdict(wanted)), encoding="utf-8")
            fresh.replace(self._note)
