import json
from pathlib import Path
from typing import Any

import pytest
import torch

from backbone.kernels.linear_affine import tuning
from backbone.kernels.linear_affine.tuning import TABLE, Choice, Tile, choose, read_table

ROW = {
    "arch": "sm_90",
    "dtype": "bfloat16",
    "n_out": 3072,
    "n_in": 768,
    "use": "cublas",
    "tile": {"block_m": 128, "block_n": 256, "block_k": 64, "num_warps": 8, "num_stages": 4, "tma": True},
    "tflops": 600.0,
}
MEASURED = Choice("cublas", Tile(128, 256, 64, num_warps=8, num_stages=4, tma=True))


def written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "table.json"
    path.write_text(json.dumps({"rows": rows}))
    return path


@pytest.fixture
def with_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = read_table(written(tmp_path, [ROW]))
    monkeypatch.setattr(tuning, "_table", lambda: table)
    monkeypatch.setattr(tuning, "choose", tuning.choose.__wrapped__)


def test_committed_table_is_readable() -> None:
    assert len(read_table(TABLE)) == len(json.loads(TABLE.read_text())["rows"])


@pytest.mark.usefixtures("with_row")
def test_measured_row_decides() -> None:
    assert tuning.choose("sm_90", torch.bfloat16, 3072, 768, 197) == MEASURED


@pytest.mark.usefixtures("with_row")
@pytest.mark.parametrize(
    "key",
    [
        ("sm_80", torch.bfloat16, 3072, 768),
        ("sm_90", torch.float16, 3072, 768),
        ("sm_90", torch.bfloat16, 768, 3072),
    ],
)
def test_what_was_not_measured_gets_the_default(key: tuple[str, torch.dtype, int, int]) -> None:
    assert tuning.choose(*key, 197) == Choice("triton", tuning.DEFAULTS[key[1]])


@pytest.mark.usefixtures("with_row")
def test_short_images_get_a_low_tile() -> None:
    low = tuning.choose("sm_90", torch.bfloat16, 3072, 768, 49).tile
    assert (low.block_m, low.block_n, low.tma) == (64, 128, True)


def test_the_batch_is_no_part_of_the_key() -> None:
    names = choose.__wrapped__.__annotations__
    assert set(names) == {"arch", "dtype", "n_out", "n_in", "per_image", "return"}


@pytest.mark.parametrize(
    ("rows", "error"),
    [
        ([ROW, ROW], ValueError),
        ([ROW | {"use": "magic"}], ValueError),
        ([{name: value for name, value in ROW.items() if name != "n_in"}], KeyError),
        ([ROW | {"tile": {"block_m": 64}}], TypeError),
        ([ROW | {"tile": {**ROW["tile"], "warps": 8}}], TypeError),
    ],
    ids=["twice", "unknown use", "key missing", "tile incomplete", "tile with more"],
)
def test_wrong_table_is_refused(rows: list[dict[str, Any]], error: type[Exception], tmp_path: Path) -> None:
    with pytest.raises(error):
        read_table(written(tmp_path, rows))
