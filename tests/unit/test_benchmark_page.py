import json
from operator import itemgetter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks import common
from benchmarks.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Chart
from benchmarks.common import RESULTS, load
from benchmarks.matrix_page import charts
from benchmarks.report import CHARTS, DOCS, matrix, pages, pictures

MADE_BY = "run `python -m benchmarks.report`"
SVG = "{http://www.w3.org/2000/svg}"


def row(batch: int, executor: str, mix: str, images_per_s: float) -> dict[str, Any]:
    return {
        "model": "a<b", "batch": batch, "rounds": 3, "dtype": "bfloat16", "executor": executor, "mix": mix,
        "images_per_s": images_per_s, "vs_plain_best": images_per_s / 100, "vs_identical": 0.99,
        "of_floor": 0.5, "floor_ms": 1.0, "tflop_per_s": 2.0, "gb_per_s": 3.0, "load": 1.0, "host": "host",
        "cores": 2, "torch": "t", "commit": "c", "date": "d",
    }  # fmt: skip


ROWS = [
    row(1, "plain", "openvino", 100.0), row(1, "openvino", "distinct", 90.0),
    row(16, "plain", "openvino", 100.0), row(16, "openvino", "distinct", 120.0),
    {"model": "strange", "batch": 0, "unsupported": "of no family"},
]  # fmt: skip


def test_the_pages_are_made_from_the_committed_rows() -> None:
    made = pages()
    assert {name: (DOCS / name).read_text() for name in made} == made, MADE_BY
    assert (DOCS / "transfer.md").exists() == ("transfer.md" in made)


def test_the_charts_are_made_from_the_committed_rows_and_all_are_shown() -> None:
    made, text = pictures(), "".join(pages().values())
    assert {path.name: path.read_text() for path in CHARTS.glob("*")} == made, MADE_BY
    assert all(f"(charts/{name})" in text for name in made)


def test_every_row_says_where_it_was_measured() -> None:
    names = {path.stem for path in RESULTS.glob("*.json")}
    assert {"tax", "today", "scale", "http", "decode"} <= names
    for name in names:
        for found in load(name):
            assert {"commit", "date", "host", "cores", "torch"} <= found.keys(), (name, found)


def test_a_chart_draws_each_line_inside_its_frame_and_names_it() -> None:
    picture = ElementTree.fromstring(charts(ROWS)["tax-bfloat16-host"].svg())
    (line,) = picture.iter(f"{SVG}polyline")
    places = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
    assert len(places) == 2 and all(0 < x < WIDTH and 0 < y < HEIGHT for x, y in places)
    assert places[0][0] < places[1][0] and places[0][1] > places[1][1]  # larger is further right, and higher
    assert "a<b" in {text.text for text in picture.iter(f"{SVG}text")}


def test_a_chart_of_one_batch_is_drawn() -> None:
    assert "polyline" in Chart("one", "y", {"m": [(16, 0.9)]}, level=1.0).svg()


def test_a_chart_spans_its_ticks_and_starts_where_it_is_told() -> None:
    ticks = (1e3, 1e4, 1e6)
    chart = Chart("t", "%", {"m": [(1e3, 80.0), (1e4, 90.0)]}, x_label="weights", x_ticks=ticks, y_from=80.0)
    picture = ElementTree.fromstring(chart.svg())
    texts = [text.text for text in picture.iter(f"{SVG}text")]
    assert [text for text in texts if text in {"1k", "10k", "1M"}] == ["1k", "10k", "1M"]
    assert {"weights", "80", "85", "100"} <= set(texts)
    low, mid = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in picture.iter(f"{SVG}circle")]
    assert low == (LEFT + 14, HEIGHT - BOTTOM)
    assert mid[1] == (TOP + HEIGHT - BOTTOM) / 2
    assert mid[0] == pytest.approx(LEFT + 14 + (WIDTH - LEFT - RIGHT - 28) / 3, abs=0.1)


def test_a_chart_of_a_linear_axis_may_start_at_zero() -> None:
    chart = Chart("t", "%", {"m": [(0, 50.0), (1, 40.0), (4, 10.0)]}, logarithmic=False)
    xs = [float(c.attrib["cx"]) for c in ElementTree.fromstring(chart.svg()).iter(f"{SVG}circle")]
    assert (xs[1] - xs[0]) * 4 == pytest.approx(xs[2] - xs[0])


def test_the_matrix_has_a_line_a_case_and_names_what_does_not_run() -> None:
    text = matrix(json.loads(json.dumps(ROWS)))
    lines = [line for line in text.splitlines() if line.startswith("| a<b")]
    assert [line.split(" | ")[1:3] for line in lines] == [["bfloat16", "1"], ["bfloat16", "16"]]
    assert "1.20" in lines[1] and "Not yet supported: strange." in text


def test_a_model_that_ran_on_some_host_is_supported() -> None:
    assert "Not yet supported" not in matrix([*ROWS[:-1], {"model": "a<b", "batch": 0, "unsupported": "no"}])


def test_rows_of_several_runs_name_every_commit_and_the_first_and_last_date() -> None:
    later = [found | {"commit": "c2", "date": "d2"} for found in ROWS[2:4]]
    assert "commit c, c2, d to d2." in matrix([*ROWS[:2], *later])


def test_the_titles_of_the_charts_fit() -> None:
    # 13 px sans-serif: no more than 7 px a character in the mean
    assert all(LEFT + 7 * len(chart.title) < WIDTH for chart in charts(load("matrix")).values())


def test_a_matrix_of_nothing_but_unsupported_models_is_told() -> None:
    assert "Not yet supported: strange." in matrix(ROWS[-1:])


def test_rows_of_another_host_are_shown_by_themselves() -> None:
    others = [found | {"host": "Other (R) CPU (AMX)", "vs_plain_best": 0.7} for found in ROWS[:-1]]
    text = matrix(ROWS + others)
    mine, theirs = text.index("host, 2 cores"), text.index("Other (R) CPU (AMX), 2 cores")
    assert text.index("| 1.20 |") < mine < text.index("| 0.70 |") < theirs
    assert {"tax-bfloat16-host", "tax-bfloat16-other-cpu-amx"} <= charts(ROWS + others).keys()


def test_rows_of_this_host_and_dtype_give_way_and_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    here = common.conditions()["host"]
    kept = [{"dtype": "int8", "host": here, "n": 1}, {"dtype": "float32", "host": "other", "n": 2}]
    gone = {"dtype": "float32", "host": here, "n": 3}
    (tmp_path / "x.json").write_text(json.dumps([*kept, gone]))
    common.save_beside_others("x", [{"dtype": "float32", "n": 4}])
    assert [found["n"] for found in common.load("x")] == [1, 2, 4]
    common.save_beside_others("x", [{"dtype": "float32", "n": 5}], part=itemgetter("host"))
    assert [found["n"] for found in common.load("x")] == [2, 5]


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["avx512f", "avx512_bf16", "amx_bf16"], "CPU (AMX)"),
        (["avx512_vnni", "avx512_bf16"], "CPU (AVX-512 bf16)"),
        (["avx2"], "CPU (AVX2)"),
        ([], "CPU"),
    ],
)
def test_a_cpu_is_named_by_what_multiplies(flags: list[str], name: str) -> None:
    assert common.cpu_name("CPU", flags) == name
