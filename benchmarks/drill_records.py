"""What the drill's clients saw, and the judgement of it: what is wrong, stale, lost, or not as documented."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

Actor = Literal["prediction", "move", "upload"]

AWAY = {"503 registry_unavailable", "504 not_confirmed"}
LOST = {"502 replica_lost", "503 no_replica", "connection lost"}

# what docs/operations.md and docs/registry.md say may fail, and while what is going on
DOCUMENTED: dict[str, dict[Actor, set[str]]] = {
    "replica killed": {"prediction": LOST, "move": LOST | {"504 not_confirmed"}, "upload": LOST},
    "redis killed": {"move": AWAY, "upload": AWAY},
    "redis paused": {"move": AWAY, "upload": AWAY},
}


def documented(phase: str, actor: Actor) -> set[str]:
    return DOCUMENTED.get(phase, {}).get(actor, set())


@dataclass(frozen=True, slots=True)
class Call:
    """One call; times of `time.perf_counter()`. `failure` is status and error type, None for a success."""

    actor: Actor
    sent: float
    answered: float
    failure: str | None = None
    task: str = ""
    version: int = 0


@dataclass(slots=True)
class Phase:
    """Something done to the servers. `over` is when the fault itself ended, `end` when the phase did."""

    name: str
    began: float
    over: float = float("inf")
    end: float = float("inf")
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class Records:
    phases: list[Phase] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def phase_of(self, call: Call) -> Phase:
        """Return the last phase that a call met before its answer."""
        return [phase for phase in self.phases if phase.began <= call.answered][-1]

    def met(self, call: Call) -> list[str]:
        """Return the names of all phases that went on during a call."""
        return [p.name for p in self.phases if p.began <= call.answered and call.sent <= p.end]

    def undocumented(self) -> list[str]:
        """Tell of failures that no phase they met explains."""
        return [
            f"{call.actor} in {'/'.join(self.met(call))}: {call.failure}"
            for call in self.calls
            if call.failure
            and not any(call.failure in documented(name, call.actor) for name in self.met(call))
        ]

    def stale(self, task: str) -> Iterator[str]:
        """Tell of answers by a version that a confirmed move had ended before they were asked for.

        A move that failed may have happened; one that was sent before the answer may have been seen by it.
        """
        moves = [c for c in self.calls if c.actor == "move" and c.task == task]
        for call in self.calls:
            if call.actor != "prediction" or call.task != task or call.failure is not None:
                continue
            done = [i for i, m in enumerate(moves) if m.failure is None and m.answered <= call.sent]
            if not done:
                continue
            allowed = {m.version for m in moves[done[-1] :] if m.sent <= call.answered}
            if call.version not in allowed:
                yield f"version {call.version} {call.sent - moves[done[-1]].answered:.3f} s after its end"

    def row(self, phase: Phase) -> dict[str, Any]:
        """Return the figures of one phase."""
        mine = [call for call in self.calls if self.phase_of(call) is phase]
        failed = [call for call in mine if call.failure is not None]
        row: dict[str, Any] = {"phase": phase.name, "seconds": phase.end - phase.began}
        for actor in ("prediction", "move", "upload"):
            row[f"{actor}s"] = sum(call.actor == actor for call in mine)
            row[f"{actor}s_failed"] = sum(call.actor == actor for call in failed)
        kinds = Counter(f"{call.actor}: {call.failure}" for call in failed)
        row["errors"] = ", ".join(f"{count} × {kind}" for kind, count in sorted(kinds.items()))
        last = max((call.answered for call in failed), default=phase.over)
        row["recovery_s"] = max(0.0, last - phase.over)
        moved = sorted(c.answered - c.sent for c in mine if c.actor == "move" and c.failure is None)
        row["move_p50_ms"] = 1e3 * moved[len(moved) // 2] if moved else float("nan")
        row["move_max_ms"] = 1e3 * moved[-1] if moved else float("nan")
        return row | phase.extra
