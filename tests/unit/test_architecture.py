"""The rules of the layout, kept by the machine."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = ("backbone", "adapters", "registry", "server")  # each may import only those before it
NARROW = {("registry", "adapters"): {"adapters.manifest", "adapters.errors"}}
FOREIGN_TO_LOW_LAYERS = {"backbone", "adapters"}  # must also run on GPU hosts with few packages
LOW_LAYER_IMPORTS = {
    "torch", "torchvision", "timm", "triton", "numpy", "safetensors", "PIL", "tqdm", "pydantic", *LAYERS,
}  # fmt: skip
OPTIONAL = {  # imported where used
    ("backbone/offline.py", "onnx"),
    ("backbone/executors/quiet_openvino.py", "openvino"),
    ("adapters/onnx_export.py", "onnx"),
    ("adapters/report.py", "matplotlib"),
}
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_KERNEL_LINES = 100


def sources(package: str) -> Iterator[tuple[str, ast.Module]]:
    for path in sorted((ROOT / package).rglob("*.py")):
        yield str(path.relative_to(ROOT)), ast.parse(path.read_text())


def imports(package: str) -> Iterator[tuple[str, str]]:
    for path, tree in sources(package):
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                yield path, node.module
            elif isinstance(node, ast.Import):
                yield from ((path, alias.name) for alias in node.names)


@pytest.mark.parametrize("package", LAYERS)
def test_imports_point_down(package: str) -> None:
    above = LAYERS[LAYERS.index(package) + 1 :]
    bad = [f"{p}: {m}" for p, m in imports(package) if m.split(".")[0] in above]
    for (source, target), allowed in NARROW.items():
        if source == package:
            bad += [
                f"{p}: {m}" for p, m in imports(package) if m.split(".")[0] == target and m not in allowed
            ]
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize("package", sorted(FOREIGN_TO_LOW_LAYERS))
def test_low_layers_import_only_what_gpu_hosts_have(package: str) -> None:
    allowed = LOW_LAYER_IMPORTS | sys.stdlib_module_names
    bad = [(p, m) for p, m in imports(package) if m.split(".")[0] not in allowed]
    assert not [pair for pair in bad if (pair[0], pair[1].split(".")[0]) not in OPTIONAL]


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("redis", {"registry/redis_backend.py"}),
        ("ray", {"server/ray_app.py", "server/ray_driver.py"}),
        ("openvino", {"backbone/executors/quiet_openvino.py"}),
        ("fastapi", {"server/"}),
        ("prometheus_client", {"server/"}),
    ],
)
def test_library_stays_in_its_place(module: str, allowed: set[str]) -> None:
    users = {p for package in LAYERS for p, m in imports(package) if m.split(".")[0] == module}
    assert not {p for p in users if not any(p.startswith(place) for place in allowed)}


@pytest.mark.parametrize("package", LAYERS)
def test_files_and_functions_stay_small(package: str) -> None:
    big = []
    for path, tree in sources(package):
        lines = (ROOT / path).read_text().count("\n")
        big += [f"{path}: {lines} lines"] if lines > MAX_FILE_LINES else []
        limit = MAX_KERNEL_LINES if "kernels" in path else MAX_FUNCTION_LINES
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                big += [f"{path}:{node.lineno} {node.name}: {length} lines"] if length > limit else []
    assert not big, "\n".join(big)


@pytest.mark.parametrize(
    "module",
    ["registry", "registry.open", "adapters.manifest", "server.settings", "server.app", "server.cli"],
)
def test_light_modules_do_not_load_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
