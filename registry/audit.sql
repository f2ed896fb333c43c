-- Added to registries that were made without it. Outlives the tasks and keys it tells of.
CREATE TABLE audit (
    number   INTEGER PRIMARY KEY AUTOINCREMENT,
    at       REAL NOT NULL,
    action   TEXT NOT NULL,
    actor    TEXT NOT NULL,
    task     TEXT,
    version  INTEGER,
    alias    TEXT,
    previous INTEGER,
    digest   TEXT,
    key      TEXT
) STRICT;
CREATE INDEX audit_by_task ON audit (task, number);
