"""The drill's judgement: what it must find, it finds."""

import pytest

from benchmarks.drill_records import Actor, Call, Phase, Records


def call(actor: Actor, sent: float, answered: float, version: int = 0, failure: str | None = None) -> Call:
    return Call(actor, sent, answered, failure, "rolled", version)


MOVES = [call("move", 0, 1, 1), call("move", 10, 11, 2)]


@pytest.mark.parametrize(
    ("sent", "answered", "version", "stale"),
    [
        (2, 3, 1, False),
        (2, 3, 2, True),  # of a move that was not even sent
        (9, 10.5, 2, False),  # under way
        (10.5, 12, 1, False),  # sent before the move was confirmed
        (11.1, 12, 1, True),
        (11.1, 12, 2, False),
    ],
)
def test_answers_of_an_ended_version_are_stale(
    sent: float, answered: float, version: int, stale: bool
) -> None:
    records = Records(calls=[*MOVES, call("prediction", sent, answered, version)])
    assert bool(list(records.stale("rolled"))) == stale


def test_a_move_that_failed_may_have_happened() -> None:
    failed = call("move", 12, 13, 1, "503 registry_unavailable")
    records = Records(calls=[*MOVES, failed, *(call("prediction", 14, 15, version) for version in (1, 2))])
    assert list(records.stale("rolled")) == []


@pytest.mark.parametrize(
    ("failed", "documented"),
    [
        (call("prediction", 1, 2, failure="502 replica_lost"), False),
        (call("prediction", 4, 6, failure="502 replica_lost"), True),
        (call("upload", 6, 7, failure="503 registry_unavailable"), False),
        (call("prediction", 6, 7, failure="500 internal"), False),
        (call("upload", 21, 22, failure="503 registry_unavailable"), True),
        (call("prediction", 21, 22, failure="503 registry_unavailable"), False),
    ],
)
def test_failures_are_allowed_only_where_they_are_documented(failed: Call, documented: bool) -> None:
    phases = [Phase("steady", 0, 0, 5), Phase("replica killed", 5, 5, 20), Phase("redis killed", 20, 21, 30)]
    assert Records(phases, [failed]).undocumented() == (
        [] if documented else [f"{failed.actor} in {Records(phases).phase_of(failed).name}: {failed.failure}"]
    )
