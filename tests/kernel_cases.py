"""Runs the kernel cases in a process of their own: Triton's interpreter is chosen when Triton is imported."""

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
CASES = ROOT / "tests" / "unit" / "kernels"
OPS = sorted(path.stem.removesuffix("_cases") for path in CASES.glob("*_cases.py"))

Outcomes = dict[str, list[str]]


def run_cases(folder: Path, *, interpret: bool) -> tuple[Outcomes, str]:
    """Run every case; return one line a case by op, `ok` or what happened instead, and the whole output."""
    report = folder / "cases.xml"
    files = [str(CASES / f"{op}_cases.py") for op in OPS]
    switch = ["env", f"TRITON_INTERPRET={int(interpret)}"]
    command = [
        *switch,
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        f"--junitxml={report}",
        *files,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    outcomes: Outcomes = {op: [] for op in OPS}
    if report.exists():
        for case in ElementTree.parse(report).iter("testcase"):
            op = case.get("classname", "").rpartition(".")[2].removesuffix("_cases")
            outcomes.setdefault(op, []).append(_outcome(case))
    return outcomes, done.stdout + done.stderr


def _outcome(case: ElementTree.Element) -> str:
    return "ok" if not list(case) else f"{case.get('name')}: {case[0].tag}"
