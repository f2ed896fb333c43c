"""What must hold for an embedded registry whose process has been killed."""

import copy
import sqlite3
from contextlib import closing
from pathlib import Path

from registry import EmbeddedRegistry
from registry.blobs import sha256
from tests.contract.model import Change, Model, Operation, assert_agrees, changes_since


def check_database(place: Path) -> None:
    with closing(sqlite3.connect(place / "registry.sqlite3")) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []


async def resume(
    registry: EmbeddedRegistry, cursor: str, model: Model, done: list[Operation], doing: Operation | None
) -> Model:
    """Return the model of what the registry holds now; events decide whether the last operation happened."""
    changes: list[Change] = [change for operation in done for change in model.apply(operation)]
    found = await changes_since(registry, cursor)
    if doing is None or found == changes:
        assert found == changes
        return model
    happened = copy.deepcopy(model)
    assert found == changes + happened.apply(doing)
    return happened


async def check(place: Path, registry: EmbeddedRegistry, model: Model) -> None:
    await assert_agrees(registry, model)
    digests = {digest for versions in model.versions.values() for digest in versions.values()}
    blobs = place / "blobs"
    for path in blobs.glob("?" * 64):
        assert sha256(path.read_bytes()) == path.name, "whatever has its name is complete"
    await registry.reclaim()
    assert digests == {path.name for path in blobs.glob("*")}
