"""Which training of the comparison comes next."""

import json
from pathlib import Path

import pytest

from benchmarks import common, transfer
from benchmarks.transfer_plan import CORE, DINOV2, FIRST, GRID, LITE0, SEEDS, Case, Row, Run, cases, missing

CASE = Case(DINOV2, 56, "mnist", "ssf")


def row(run: Run, accuracy: float = 0.5, case: Case = CASE) -> Row:
    return {
        **case.key,
        "stage": run.stage,
        "lr": run.lr,
        "seed": run.seed,
        "val_accuracy": accuracy,
        "val_loss": 1.0,
    }


def play(best: float) -> list[Run]:
    """Run a case to its end where one learning rate is better than all others."""
    rows: list[Row] = []
    runs: list[Run] = []
    while (run := missing(CASE, rows)) is not None:
        runs.append(run)
        rows.append(row(run, 0.9 if run.lr == best else 0.5))
    return runs


def test_a_search_inside_the_grid_is_followed_by_the_seeds() -> None:
    runs = play(best=FIRST[1])
    assert runs[: len(FIRST)] == [Run("search", lr, 0) for lr in FIRST]
    assert runs[len(FIRST) :] == [Run("final", FIRST[1], seed) for seed in SEEDS]


@pytest.mark.parametrize(("edge", "beyond"), [(FIRST[0], GRID[0]), (FIRST[-1], GRID[-1])])
def test_a_best_rate_at_the_edge_is_looked_beyond(edge: float, beyond: float) -> None:
    runs = play(best=edge)
    assert runs[len(FIRST)] == Run("search", beyond, 0)
    assert [run.lr for run in runs if run.stage == "final"] == [edge] * len(SEEDS)


def test_seeds_of_a_rate_that_is_not_the_best_any_more_do_not_count() -> None:
    searched = [row(Run("search", lr, 0), 0.9 if lr == FIRST[1] else 0.5) for lr in FIRST]
    stale = [row(Run("final", FIRST[2], seed)) for seed in SEEDS]
    assert missing(CASE, searched + stale) == Run("final", FIRST[1], 0)


def test_rows_of_other_cases_are_not_taken() -> None:
    other = Case(LITE0, 64, "mnist", "ssf")
    assert missing(CASE, [row(Run("search", FIRST[0], 0), case=other)]) == Run("search", FIRST[0], 0)


def test_the_claim_comes_first_and_prompts_are_for_transformers() -> None:
    order = cases()
    claim = [case for case in order if case.method in CORE]
    assert order[: len(claim)] == claim
    assert {case.backbone for case in order if case.method == "vpt-deep"} == {DINOV2}
    assert len(set(order)) == len(order)


def test_a_row_that_is_made_again_replaces_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr(transfer, "RESULTS", tmp_path)
    search, final = Run("search", FIRST[0], 0), Run("final", FIRST[0], 0)
    transfer.append("transfer", [row(search), row(final, 0.1)])
    transfer.append("transfer", [row(Run("final", FIRST[1], 0), 0.2)])
    kept = json.loads((tmp_path / "transfer.json").read_text())
    assert [(r["stage"], r["lr"], r["val_accuracy"]) for r in kept] == [
        ("search", FIRST[0], 0.5),
        ("final", FIRST[1], 0.2),
    ]
    assert all("commit" in r and "host" in r for r in kept)
