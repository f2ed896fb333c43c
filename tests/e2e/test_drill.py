"""The drill, in short: a replica and Redis are killed, Redis is paused, and every answer is checked."""

from pathlib import Path

import pytest

from benchmarks.drill import REDIS_SECONDS, Options, complaints, drill

pytestmark = pytest.mark.e2e

SHORT = Options(moves=6, away_seconds=1, paused_seconds=REDIS_SECONDS + 2, restart=False, lease_ms=2000)


@pytest.mark.usefixtures("needs_redis")
async def test_nothing_happens_that_must_not(tmp_path: Path) -> None:
    records = await drill(SHORT, tmp_path, lambda _: None)
    assert complaints(records) == []
    succeeded = [call.actor for call in records.calls if call.failure is None]
    assert succeeded.count("move") == SHORT.moves
    assert succeeded.count("upload") > 0
    assert {"redis killed", "redis paused"} <= {
        records.phase_of(call).name for call in records.calls if call.failure
    }
