from itertools import product
from typing import Any

import pytest

from benchmarks import report, transfer_sets
from benchmarks.charts import Chart
from benchmarks.transfer_charts import charts, pictures
from benchmarks.transfer_page import SOURCES, TRAINED, page
from benchmarks.transfer_plan import CORE, OTHERS, SETS, cases
from benchmarks.transfer_rows import METHODS, Robustness, Transfer, impossible
from benchmarks.transfer_verdict import verdict

Rows = list[dict[str, Any]]
VIT, CONVOLUTIONAL = "vit_small_patch14_dinov2", "tf_efficientnet_lite0"
CONDITIONS = {"commit": "abc", "date": "2026-01-01T00:00Z", "host": "a CPU", "cores": 2, "torch": "2.11"}
ACCURACY = {
    "linear": 0.85, "bias": 0.86, "norm": 0.87, "ssf": 0.9, "vpt-deep": 0.84, "adapter": 0.89, "full": 0.904,
}  # fmt: skip
RATES = (0.001, 0.002, 0.005)


def run(method: str, name: str, seed: int = 0, **other: Any) -> dict[str, Any]:
    return {
        "backbone": VIT, "pixels": 56, "set": name, "method": method, "stage": "final", "lr": 0.002,
        "seed": seed, "train_images": 800, "val_images": 192, "test_images": 992,
        "test_accuracy": ACCURACY[method], "trainable": 102912, "head": 3850, "epochs": 8,
        "seconds": 36.0, "dtype": "float32", **CONDITIONS, **other,
    }  # fmt: skip


def finals(**other: Any) -> Rows:
    """Every method on every set with three seeds a point apart."""
    return [
        run(method, name, seed, test_accuracy=ACCURACY[method] + 0.01 * (seed - 1), **other)
        for method, name, seed in product(METHODS, SETS, range(3))
    ]


def corrupted(method: str, name: str, corruption: str, severity: int, **other: Any) -> dict[str, Any]:
    clean = ACCURACY[method]
    return {
        "backbone": VIT, "pixels": 56, "set": name, "method": method, "seed": 0, "corruption": corruption,
        "severity": severity, "test_images": 250, "clean_accuracy": clean,
        "test_accuracy": clean - 0.1 * severity, **CONDITIONS, **other,
    }  # fmt: skip


def corruptions() -> Rows:
    places = product(("ssf", "linear"), ("mnist", "photos"), ("noise", "jpeg"), (1, 3))
    return [corrupted(*place) for place in places]


def step(method: str, images_per_s: float, peak_memory: int, **other: Any) -> dict[str, Any]:
    return {
        "backbone": VIT, "pixels": 224, "method": method, "compile": False, "images_per_s": images_per_s,
        "peak_memory": peak_memory, **CONDITIONS, **other,
    }  # fmt: skip


def without(rows: Rows, **values: Any) -> Rows:
    return [row for row in rows if not values.items() <= row.items()]


def line(text: str, start: str, after: str = "") -> str:
    """Return the first line of the text that starts so, after another."""
    return next(found for found in text[text.index(after) :].splitlines() if found.startswith(start))


def cells(text: str, method: str, under: str) -> list[str]:
    return line(text, f"| `{method}`", f"### {under}").strip("| ").split(" | ")[1:]


def vit(rows: Rows) -> Transfer:
    return Transfer(rows, VIT, 56)


def test_the_page_of_no_rows_says_that_nothing_ran() -> None:
    assert "Nothing has run yet" in page([], [])


def test_every_set_and_method_that_runs_is_described() -> None:
    assert SOURCES.keys() == set(SETS) and TRAINED.keys() == set(METHODS) == {*CORE, *OTHERS}
    assert {k: int(v[0]) for k, v in SOURCES.items()} == {
        k: len(transfer_sets.SETS[k]().labels) for k in SETS
    }


def test_what_never_runs_is_what_is_impossible() -> None:
    planned = {(case.backbone, case.method) for case in cases()}
    for backbone, method in product({backbone for backbone, _ in planned}, METHODS):
        assert ((backbone, method) in planned) == (impossible(method, backbone) is None)


def test_accuracy_is_the_mean_over_seeds_with_its_deviation_and_over_sets() -> None:
    found = cells(page(finals(), []), "ssf", "Accuracy")
    assert found == ["90.0 ± 1.0"] * len(SETS) + ["90.0"]
    assert "Missing" not in page(finals(), []).partition("### Cost")[0]


def test_a_mean_over_sets_waits_for_every_set() -> None:
    text = page(without(finals(), method="ssf", set="mnist"), [])
    assert cells(text, "ssf", "Accuracy") == ["–", *["90.0 ± 1.0"] * 3, "–"]
    assert cells(text, "full", "Accuracy")[-1] == "90.4"
    assert "**Missing**: `ssf` on mnist." in text


def test_missing_seeds_are_counted() -> None:
    rows = [row for row in finals() if (row["method"], row["set"]) != ("full", "faces") or row["seed"] == 0]
    text = page(rows, [])
    assert cells(text, "full", "Accuracy")[1] == "89.4 (1)"
    assert "**Missing**: `full` on faces (1 of 3 seeds)." in text
    once = page([run("ssf", name) for name in SETS], [])
    assert "`ssf` on mnist (1 of 3 seeds), faces (1 of 3 seeds)" in once


def test_searches_and_unfinished_runs_are_no_results() -> None:
    rows = [run("ssf", "mnist", stage="search"), run("ssf", "photos", test_accuracy=None)]
    assert cells(page(rows, []), "ssf", "Accuracy") == ["–"] * (len(SETS) + 1)


def test_the_later_of_two_runs_of_a_seed_counts() -> None:
    again = [run("ssf", "mnist", seed, test_accuracy=0.5) for seed in range(3)]
    assert cells(page(finals() + again, []), "ssf", "Accuracy")[0] == "50.0 ± 0.0"


def test_what_a_backbone_cannot_do_is_explained_and_not_missed() -> None:
    rows = without(finals(backbone=CONVOLUTIONAL), method="vpt-deep")
    text = page(rows, [])
    assert cells(text, "vpt-deep", "Accuracy") == ["–"] * (len(SETS) + 1)
    assert "`vpt-deep` puts tokens" in text and "**Missing**: `" not in text
    assert "**Missing**: `vpt-deep` on every set." in page(without(finals(), method="vpt-deep"), [])


def test_methods_that_are_one_and_the_same_are_said_to_be() -> None:
    said = "`norm` and `ssf` are one and the same here"
    alike = [row | {"method": "norm"} for row in finals() if row["method"] == "ssf"]
    assert said not in page(finals(), []) and said not in page([], [])
    assert said in page([row for row in finals() if row["method"] != "norm"] + alike, [])


def test_backbones_and_sizes_stand_apart() -> None:
    text = page(finals() + finals(pixels=112) + finals(backbone=CONVOLUTIONAL), [])
    assert [found for found in text.splitlines() if found.startswith("## ")] == [
        f"## {VIT} at 56 px", f"## {VIT} at 112 px", f"## {CONVOLUTIONAL} at 56 px",
    ]  # fmt: skip


def test_cost_is_that_of_a_step_relative_to_full_training_of_the_same_backbone() -> None:
    rows = [run("full", "mnist", trainable=21_000_000), run("ssf", "mnist"), run("ssf", "photos", head=6160)]
    steps = [
        step("full", 50.0, 4000), step("ssf", 100.0, 1000),
        step("full", 10.0, 10, compile=True), step("full", 1.0, 1, backbone=CONVOLUTIONAL),
    ]  # fmt: skip
    text = page(rows, [], steps)
    assert cells(text, "ssf", "Cost") == ["102,912", "3,850 to 6,160", "2.00", "0.25"]
    assert "benchmarks.step_cost` at 224 px" in text
    assert cells(text, "full", "Cost") == ["21,000,000", "3,850", "1.00", "1.00"]
    assert cells(text, "bias", "Cost") == ["–"] * 4 and "steps of `full`" not in text


def test_costs_without_steps_of_full_training_are_missing() -> None:
    text = page([run("ssf", "mnist")], [], [step("ssf", 100.0, 1000)])
    assert cells(text, "ssf", "Cost") == ["102,912", "3,850", "–", "–"]
    assert "**Missing**: steps of `full`." in text


def test_a_learning_rate_at_the_end_of_the_search_is_marked() -> None:
    tried = {"mnist": RATES, "faces": (*RATES, 0.01), "optdigits": RATES}
    rows = [run("ssf", name, stage="search", lr=lr, epochs=3) for name in tried for lr in tried[name]]
    rows += [run("ssf", name, lr=lr) for name, lr in zip(tried, (0.001, 0.005, 0.005), strict=True)]
    found = cells(page(rows, []), "ssf", "Learning")
    assert found == ["0.001↓", "0.005", "0.005↑", "–", "0.001, 0.002, 0.005, 0.01", "3 to 8"]


def test_a_rate_that_nothing_was_compared_with_has_no_mark() -> None:
    rows = [run("ssf", "mnist", stage="search"), run("ssf", "mnist"), run("ssf", "mnist", 1, lr=0.1)]
    assert cells(page(rows, []), "ssf", "Learning")[0] == "0.002, 0.1"


def test_the_verdict_says_what_holds_on_average_by_seed_and_by_set() -> None:
    rows = [
        row | {"test_accuracy": 0.8} if row["method"] == "ssf" and row["set"] == "mnist" else row
        for row in finals()
    ]
    full, linear = verdict(vit(rows)).strip().splitlines()
    assert full.startswith(
        "- `ssf` ≥ `full` - 0.5 points: **does not hold** on average, 87.5 against 90.4: -2.9."
    )
    assert "By seed -2.7, -2.9, -3.2." in full
    assert "By set it holds on faces (-0.4), optdigits (-0.4), photos (-0.4);" in full
    assert full.endswith("; not on mnist (-10.4).")
    assert linear.startswith(
        "- `ssf` ≥ `linear` + 3 points: **does not hold** on average, 87.5 against 85.0: +2.5."
    )


@pytest.mark.parametrize(("accuracy", "word"), [(0.895, "**holds**"), (0.8949, "**does not hold**")])
def test_a_claim_holds_up_to_its_margin(accuracy: float, word: str) -> None:
    rows = without(finals(), method="ssf") + [run("ssf", name, test_accuracy=accuracy) for name in SETS]
    rows = [row | {"test_accuracy": 0.9} if row["method"] == "full" else row for row in rows]
    assert word in verdict(vit(rows)).strip().splitlines()[0]


def test_a_verdict_of_missing_sets_is_open_and_tells_of_the_others() -> None:
    full, linear = verdict(vit(without(finals(), method="full", set="faces"))).strip().splitlines()
    assert "**open**: not both have a run on faces." in full and "By set it holds on mnist" in full
    assert "**holds** on average" in linear


def test_a_verdict_of_missing_seeds_is_of_now() -> None:
    rows = without(finals(), method="full", set="faces", seed=2)
    full, linear = verdict(vit(rows)).strip().splitlines()
    assert "**holds** so far" in full and "so far" not in linear
    assert "By seed -0.4, -0.4. " in full


def test_a_verdict_without_rows_is_open() -> None:
    assert verdict(vit([])).count("**open**: not both have a run on mnist, faces") == 2


def test_sets_where_the_other_is_too_good_to_be_beaten_are_named() -> None:
    rows = [
        row | {"test_accuracy": 0.98} if row["method"] == "linear" and row["set"] == "faces" else row
        for row in finals()
    ]
    full, linear = verdict(vit(rows)).strip().splitlines()
    assert linear.endswith("No room for it on faces.") and "No room" not in full


def test_corruption_is_told_with_what_it_took_from_clean_images() -> None:
    rows = [
        row | {"test_accuracy": row["test_accuracy"] - 0.2 * (row["corruption"] == "jpeg")}
        for row in corruptions()
    ]
    text = page(finals(), rows)
    assert line(text, "| method", "### Under") == "| method | clean | noise | jpeg | all |"
    assert cells(text, "ssf", "Under") == ["90.0", "70.0 (-20.0)", "50.0 (-40.0)", "60.0 (-30.0)"]
    assert (
        "sets mnist, photos\n" in text
        and "severities 1, 3\n" in text
        and "- 250 test images of a set\n" in text
    )
    assert "Not corrupted: methods `bias`, `norm`, `vpt-deep`, `adapter`, `full`." in text
    assert "Not corrupted: sets faces, optdigits." in text


def test_what_is_lost_is_never_minus_nothing() -> None:
    rows = [corrupted("ssf", "mnist", "jpeg", 1, test_accuracy=0.8999)]
    assert cells(page([], rows), "ssf", "Under")[1] == "90.0 (+0.0)"


def test_means_under_corruption_are_over_the_same_places_or_not_at_all() -> None:
    rows = without(corruptions(), method="linear", set="photos", corruption="jpeg", severity=3)
    text = page([], rows)
    assert cells(text, "linear", "Under") == ["–", "–", "–", "–"]
    assert cells(text, "ssf", "Under")[0] == "90.0"
    assert "**Missing**: `linear`, 1 of 8 combinations" in text and "**Missing**: `ssf`, " not in text
    found = Robustness(rows, VIT, 56)
    assert found.accuracy("linear", "noise") == pytest.approx(65)
    assert (found.at("linear", 1), found.at("linear", 3)) == (pytest.approx(75), None)


def test_a_backbone_without_corrupted_runs_says_so() -> None:
    assert "Not run yet." in page(finals(), []).partition("### Under corruption")[2]


def test_each_machine_tells_its_commits_and_hours() -> None:
    rows = [*finals(), run("ssf", "mnist", 5, host="other", device="a GPU", dtype="bfloat16")]
    rows[-1] |= {"commit": "def", "seconds": 3600}
    text = page(rows, corruptions(), [step("ssf", 1.0, 1)])
    assert "- training: a CPU, 2 cores, torch 2.11, float32; 84 rows, 0.8 hours, commit abc, 2026" in text
    assert "- training: other, 2 cores, torch 2.11, a GPU, bfloat16; 1 rows, 1.0 hours, commit def" in text
    assert "- corruption: a CPU, 2 cores, torch 2.11; 16 rows, commit abc" in text
    assert "- steps: a CPU, 2 cores, torch 2.11; 1 rows, commit abc" in text


def test_sizes_of_the_sets_are_those_that_ran() -> None:
    assert line(page([run("ssf", "photos")], []), "| `photos`").endswith("| 16 | 800 | 192 | 992 |")
    assert line(page([run("ssf", "photos")], []), "| `mnist`").endswith("| 10 | – | – | – |")


def test_charts_show_the_methods_that_have_a_mean_and_the_page_shows_the_charts() -> None:
    rows = without(finals(), method="bias", set="mnist")
    against_parameters, against_severity = charts(vit(rows), Robustness(corruptions(), VIT, 56)).values()
    assert against_parameters.lines.keys() == set(METHODS) - {"bias"}
    assert against_parameters.lines["ssf"] == [(102912 + 3850, pytest.approx(90))]
    assert against_severity.lines["ssf"] == [
        (0, pytest.approx(90)),
        (1, pytest.approx(80)),
        (3, pytest.approx(60)),
    ]
    made = pictures(rows, corruptions())
    assert set(made) == {f"transfer-{VIT}-56.svg", f"transfer-corrupted-{VIT}-56.svg"}
    assert all(f"(charts/{name})" in page(rows, corruptions()) for name in made)


def test_charts_without_points_are_left_out() -> None:
    assert pictures([run("ssf", "mnist")], []) == {}


def test_axes_of_the_charts_hold_their_points() -> None:
    chart, _ = charts(vit(finals()), Robustness(corruptions(), VIT, 56)).values()
    assert chart.x_ticks == [1e5, 1e6] and chart.y_from == 80
    low = [row | {"test_accuracy": 0.0} if row["method"] == "bias" else row for row in finals()]
    high = [row | {"test_accuracy": 1.0} for row in finals()]
    assert charts(vit(low), Robustness([], VIT, 56))[f"transfer-{VIT}-56"].y_from == 0
    assert charts(vit(high), Robustness([], VIT, 56))[f"transfer-{VIT}-56"].y_from == 90


def test_the_report_makes_the_page_its_charts_and_a_link_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"transfer": finals(), "robustness": corruptions(), "step_cost": [step("full", 1.0, 1)]}
    monkeypatch.setattr(report, "load", lambda name: rows.get(name, []))
    assert report.pages()["transfer.md"] == page(finals(), corruptions(), rows["step_cost"])
    assert "(transfer.md)" in report.pages()["benchmarks.md"]
    monkeypatch.setattr(report, "charts", lambda _: {"tax": Chart("t", "y", {"m": [(1, 1.0)]})})
    assert report.pictures().keys() == {"tax.svg", *pictures(finals(), corruptions())}


def test_the_report_of_no_rows_leaves_the_page_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "load", lambda _: [])
    assert report.pages().keys() == {"benchmarks.md"}
    assert "transfer.md" not in report.pages()["benchmarks.md"] and report.pictures() == {}
