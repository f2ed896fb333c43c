"""One SQLite file in WAL mode, used by threads of several processes; the one place that knows its errors."""

import fcntl
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from registry.errors import RegistryUnavailable
from registry.files import make_directory, sync_directory

SCHEMA_VERSION = 1

_SCHEMA = Path(__file__).with_name("schema.sql")
_AUDIT = Path(__file__).with_name("audit.sql")
_PROBLEMS = {
    sqlite3.SQLITE_BUSY: "another process holds its lock",
    sqlite3.SQLITE_LOCKED: "another process holds its lock",
    sqlite3.SQLITE_READONLY: "it is read-only",
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_IOERR: "the disk is full or failing",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened",
    sqlite3.SQLITE_CORRUPT: "it is damaged; restore it from a backup",
    sqlite3.SQLITE_NOTADB: "it is damaged or no registry; restore it from a backup",
}
# after these the same connection can go on once the cause is gone
_PASSING = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}


class Database:
    """Transactions, each on a connection of the calling thread. Touches nothing before the first one."""

    def __init__(self, path: Path, *, busy_seconds: float) -> None:
        self._path = path
        self._busy_seconds = busy_seconds
        self._local = threading.local()
        self._lock = threading.Lock()
        self._connections: set[sqlite3.Connection] = set()
        self._prepared = False
        self._file: tuple[int, int] | None = None  # device and inode of the file all connections have open

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """See one state of the registry throughout; waits for no writer."""
        with self._transaction("BEGIN") as db:
            yield db

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Hold the write lock, alone among all processes; committed and durable at a normal exit."""
        with self._transaction("BEGIN IMMEDIATE") as db:
            yield db

    def close(self) -> None:
        """Close the connections of all threads; no transaction may be running."""
        with self._translated():
            while self._connections:
                self._connections.pop().close()

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with self._translated():
            db = self._connection()
            try:
                db.execute(begin)
                yield db
                db.execute("COMMIT")
            except BaseException as error:
                self._give_up(db, error)
                raise

    def _give_up(self, db: sqlite3.Connection, error: BaseException) -> None:
        """Undo; and begin with a new connection after an error that may lie in this one."""
        try:
            if db.in_transaction:
                db.execute("ROLLBACK")
        finally:
            if isinstance(error, sqlite3.Error) and _code(error) not in _PASSING:
                self._local.db = None
                self._connections.discard(db)
                db.close()

    def _connection(self) -> sqlite3.Connection:
        db: sqlite3.Connection | None = getattr(self._local, "db", None)
        if self._file is not None and self._identity() != self._file:
            raise RegistryUnavailable(
                "embedded", f"{self._path} was removed or replaced while in use; put it back, or restart"
            )
        if db is None:
            self._prepare()
            self._local.db = db = self._connect()
            self._connections.add(db)
        return db

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(
            self._path, timeout=self._busy_seconds, isolation_level=None, check_same_thread=False
        )
        try:
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA foreign_keys = ON")
        except BaseException:
            db.close()
            raise
        return db

    def _prepare(self) -> None:
        """Create what is missing, once per process and one process at a time."""
        with self._lock:
            if self._prepared:
                return
            make_directory(self._path.parent)
            # SQLite has no waiting lock for the change to WAL, so a file lock orders the processes
            with self._path.with_suffix(".lock").open("w") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                self._create()
            self._file = self._identity()
            self._prepared = True

    def _identity(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def _create(self) -> None:
        db = self._connect()
        try:
            (found,) = db.execute("PRAGMA user_version").fetchone()
            if found > SCHEMA_VERSION:
                raise RegistryUnavailable(
                    "embedded",
                    f"{self._path} has schema {found}, this program knows {SCHEMA_VERSION}; upgrade ssfserve",
                )
            (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode != "wal":
                raise RegistryUnavailable("embedded", f"{self._path}: this file system allows no WAL mode")
            if found == 0:
                schema = _SCHEMA.read_text(encoding="utf-8")
                db.executescript(f"BEGIN; {schema} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
                sync_directory(self._path.parent)
            if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'audit'").fetchone() is None:
                db.executescript(f"BEGIN; {_AUDIT.read_text(encoding='utf-8')} COMMIT;")
        finally:
            db.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn what SQLite and the file system raise into the one error the contract allows."""
        try:
            yield
        except sqlite3.Error as error:
            problem = _PROBLEMS.get(_code(error), "SQLite fails")
            raise RegistryUnavailable("embedded", f"{self._path}: {problem} ({error})") from error
        except OSError as error:
            where = error.filename or self._path.parent
            raise RegistryUnavailable("embedded", f"{where}: {error.strerror or error}") from error


def _code(error: sqlite3.Error) -> int:
    """Return SQLite's primary result code, 0 where the error is Python's own."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF
