"""What the page says of the matrix: one line a case, and three charts over the batch."""

import re
from collections.abc import Callable
from typing import Any

from benchmarks.charts import Chart
from benchmarks.common import dtype_and_host

Row = dict[str, Any]
WAYS = {
    "torch": "eager",
    "torch channels_last": "eager NHWC",
    "torch compiled": "compiled",
    "openvino": "OpenVINO",
    "openvino 4s": "in 4s",
    "openvino 8s": "in 8s",
}
WORDS = re.compile(r"[A-Za-z0-9]{2,}")
UNIT = re.compile(r"\(([^()]+)\)$")  # as benchmarks.common.cpu_name ends
MIXES = ("identical", "uniform", "skewed", "distinct")


class Case:
    """The rows of one model and batch."""

    def __init__(self, rows: list[Row]) -> None:
        self._rows = {(row["executor"], row["mix"]): row for row in rows}
        ours = [kind for kind, _ in self._rows if kind != "plain"]
        self.model, self.dtype, self.batch = (rows[0][key] for key in ("model", "dtype", "batch"))
        self.host = rows[0]["host"]
        self.rounds = rows[0]["rounds"]
        self.kind = ours[0]  # the server's default on this device

    def value(self, kind: str, mix: str, key: str) -> float | None:
        value = self._rows.get((kind, mix), {}).get(key)
        return value if isinstance(value, float) else None

    @property
    def tax(self) -> float | None:
        return self.value(self.kind, "distinct", "vs_plain_best")

    @property
    def flatness(self) -> float | None:
        return self.value(self.kind, "distinct", "vs_identical")

    @property
    def of_floor(self) -> float | None:
        return self.value(self.kind, "distinct", "of_floor")

    def cells(self) -> dict[str, object]:
        """Return the line of the table, by heading."""
        plain = {title: self.value("plain", way, "vs_plain_best") for way, title in WAYS.items()}
        mixes = {f"**{mix}**": self.value(self.kind, mix, "vs_plain_best") for mix in MIXES}
        return {
            "model": self.model,
            "dtype": self.dtype,
            "batch": self.batch,
            "rounds": self.rounds,
            **plain,
            **mixes,
            "distinct on torch": self.value("torch", "distinct", "vs_plain_best"),
            "distinct ÷ identical": self.flatness,
            "of the floor": self.of_floor,
        }


def cases(rows: list[Row]) -> list[Case]:
    """Group the rows, in their order; models that do not run have none."""
    grouped: dict[tuple[str, str, str, int], list[Row]] = {}
    for row in rows:
        if "unsupported" not in row:
            grouped.setdefault((row["model"], *dtype_and_host(row), row["batch"]), []).append(row)
    return [Case(group) for group in grouped.values()]


def unsupported(rows: list[Row]) -> list[str]:
    """Return the models that ran nowhere."""
    ran = {row["model"] for row in rows if "unsupported" not in row}
    return list(dict.fromkeys(row["model"] for row in rows if row["model"] not in ran))


def charts(rows: list[Row]) -> dict[str, Chart]:
    """Return the charts by file name, a set for each dtype and host that has cases of more than one batch."""
    made: dict[str, Chart] = {}
    for dtype, host in dict.fromkeys((case.dtype, case.host) for case in cases(rows)):
        found = [case for case in cases(rows) if (case.dtype, case.host) == (dtype, host)]
        if len({case.batch for case in found}) > 1:
            where = f"{dtype}-{'-'.join(WORDS.findall(host))}".lower()
            unit = UNIT.search(host)
            on = f"{dtype}, {unit[1] if unit else host}"  # a whole name would not fit
            made |= {f"{name}-{where}": chart for name, chart in _charts(found, on).items()}
    return made


def _charts(found: list[Case], on: str) -> dict[str, Chart]:
    def over_batches(of: Callable[[Case], float | None]) -> dict[str, list[tuple[float, float]]]:
        lines: dict[str, list[tuple[float, float]]] = {}
        for case in found:
            if (value := of(case)) is not None:
                lines.setdefault(case.model, []).append((case.batch, value))
        return lines

    made = {
        "tax": Chart(
            f"All-distinct tasks against the fastest plain model, {on}",
            "images/s ÷ plain",
            over_batches(lambda case: case.tax),
            level=1.0,
        ),
        "flatness": Chart(
            f"All-distinct tasks against one task, {on}",
            "images/s ÷ identical",
            over_batches(lambda case: case.flatness),
            level=1.0,
        ),
        "floor": Chart(
            f"Share of the floor that all-distinct tasks reach, {on}",
            "floor ÷ time",
            over_batches(lambda case: case.of_floor),
        ),
    }
    return {name: chart for name, chart in made.items() if chart.lines}
