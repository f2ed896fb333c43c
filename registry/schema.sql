-- Outlives its task, so that a number is never given out twice.
CREATE TABLE numbers (
    task TEXT PRIMARY KEY,
    last INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE tasks (
    task    TEXT PRIMARY KEY,
    created REAL NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE versions (
    task     TEXT    NOT NULL REFERENCES tasks (task),
    version  INTEGER NOT NULL,
    digest   TEXT    NOT NULL,
    size     INTEGER NOT NULL,
    created  REAL    NOT NULL,
    manifest TEXT    NOT NULL,
    UNIQUE (task, version),
    UNIQUE (task, digest)
) STRICT;
CREATE INDEX versions_by_digest ON versions (digest);

CREATE TABLE aliases (
    task    TEXT    NOT NULL,
    alias   TEXT    NOT NULL,
    version INTEGER NOT NULL,
    PRIMARY KEY (task, alias),
    FOREIGN KEY (task, version) REFERENCES versions (task, version)
) STRICT, WITHOUT ROWID;

-- `undo` is the move that a rollback from here leads to.
CREATE TABLE moves (
    id       INTEGER PRIMARY KEY,
    task     TEXT    NOT NULL,
    alias    TEXT    NOT NULL,
    version  INTEGER NOT NULL,
    previous INTEGER,
    moved    REAL    NOT NULL,
    kind     TEXT    NOT NULL,
    undo     INTEGER
) STRICT;
CREATE INDEX moves_by_alias ON moves (task, alias, id);

CREATE TABLE events (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    kind    TEXT NOT NULL,
    task    TEXT,
    version INTEGER,
    alias   TEXT,
    digest  TEXT,
    at      REAL NOT NULL
) STRICT;

CREATE TABLE keys (
    name   TEXT PRIMARY KEY,
    record TEXT NOT NULL
) STRICT, WITHOUT ROWID;
