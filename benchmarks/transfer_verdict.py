"""Whether the claim holds, in words: SSF as good as full training, and better than a linear probe."""

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.transfer_plan import SETS
from benchmarks.transfer_rows import Transfer


@dataclass(frozen=True, slots=True)
class Claim:
    """SSF's accuracy is at least another method's and `margin` points."""

    other: str
    margin: float

    def __str__(self) -> str:
        return f"`ssf` ≥ `{self.other}` {'-' if self.margin < 0 else '+'} {abs(self.margin):g} points"

    def holds(self, difference: float) -> bool:
        return round(difference - self.margin, 6) >= 0


CLAIMS = (Claim("full", -0.5), Claim("linear", 3.0))


def verdict(transfer: Transfer) -> str:
    """Return a line a claim."""
    return "\n" + "".join(f"- {claim}: {_judge(transfer, claim)}\n" for claim in CLAIMS)


def _judge(transfer: Transfer, claim: Claim) -> str:
    cells = {name: (transfer.cell("ssf", name), transfer.cell(claim.other, name)) for name in SETS}
    apart = {name: ours.mean - theirs.mean for name, (ours, theirs) in cells.items() if ours and theirs}
    without = [name for name in SETS if name not in apart]
    parts = [_open(without)] if without else [_on_average(transfer, claim), _by_seed(transfer, claim)]
    parts += [_by_set(apart, claim), _room(transfer, claim)]
    return " ".join(part for part in parts if part)


def _open(without: list[str]) -> str:
    return f"**open**: not both have a run on {', '.join(without)}."


def _on_average(transfer: Transfer, claim: Claim) -> str:
    ours, theirs = transfer.mean("ssf") or 0.0, transfer.mean(claim.other) or 0.0
    word = "holds" if claim.holds(ours - theirs) else "does not hold"
    so_far = " so far" if {"ssf", claim.other} & transfer.missing().keys() else ""
    return f"**{word}**{so_far} on average, {ours:.1f} against {theirs:.1f}: {ours - theirs:+.1f}."


def _by_seed(transfer: Transfer, claim: Claim) -> str:
    ours, theirs = transfer.by_seed("ssf"), transfer.by_seed(claim.other)
    apart = [f"{ours[seed] - theirs[seed]:+.1f}" for seed in ours if seed in theirs]
    return f"By seed {', '.join(apart)}." if len(apart) > 1 else ""


def _by_set(apart: Mapping[str, float], claim: Claim) -> str:
    held = [f"{name} ({by:+.1f})" for name, by in apart.items() if claim.holds(by)]
    failed = [f"{name} ({by:+.1f})" for name, by in apart.items() if not claim.holds(by)]
    parts = [f"it holds on {', '.join(held)}"] * bool(held) + [f"not on {', '.join(failed)}"] * bool(failed)
    return f"By set {'; '.join(parts)}." if parts else ""


def _room(transfer: Transfer, claim: Claim) -> str:
    cells = {name: transfer.cell(claim.other, name) for name in SETS}
    full = [name for name, cell in cells.items() if cell and cell.mean + claim.margin > 100]
    return f"No room for it on {', '.join(full)}." if full else ""
