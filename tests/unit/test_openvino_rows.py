"""The rows of a piece lie so that the graph splits them without a copy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from backbone.executors.openvino_rows import PieceRows, RowsBySite
from backbone.sites import Op, Site, SiteList

WIDTHS = st.lists(st.sampled_from([1, 4, 6, 16, 24]), min_size=1, max_size=5)


def make_sites(widths: list[int]) -> SiteList:
    return SiteList(tuple(Site(f"site{place}", width, Op.LINEAR) for place, width in enumerate(widths)))


def make_bank(sites: SiteList, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(5, 2, sites.total_width, generator=torch.Generator().manual_seed(0)).to(dtype)


@given(widths=WIDTHS, slots=st.lists(st.integers(0, 4), min_size=1, max_size=8))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_site_finds_the_vectors_of_each_image(
    dtype: torch.dtype, widths: list[int], slots: list[int]
) -> None:
    sites = make_sites(widths)
    bank, piece, rows = make_bank(sites, dtype), PieceRows(sites, len(slots), dtype), RowsBySite(sites)
    piece.gather(bank, slots)
    rows.set(piece.values)
    for place, (start, width) in enumerate(zip(np.cumsum([0, *widths]), widths, strict=False)):
        expected = bank[slots, :, start : start + width].float()
        assert torch.equal(rows.scale[place], expected[:, 0])
        assert torch.equal(rows.shift[place], expected[:, 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_row_is_put_as_it_is_gathered(dtype: torch.dtype) -> None:
    sites = make_sites([4, 6])
    bank = make_bank(sites, dtype)
    put, gathered = PieceRows(sites, 1, dtype), PieceRows(sites, 1, dtype)
    put.put(bank[3].float())
    gathered.gather(bank, [3])
    assert torch.equal(put.values, gathered.values)


def test_a_graph_reads_the_buffer_itself() -> None:
    piece = PieceRows(make_sites([2]), 1, torch.float32)
    piece.put(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert piece.tensor.data.tolist() == [1.0, 2.0, 3.0, 4.0]
