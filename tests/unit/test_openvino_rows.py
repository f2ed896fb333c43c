"""γ' and β' of every site are inputs of the graph, and one call fills them all."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from backbone.executors.openvino_rows import PieceRows, PixelsAndVectors, vector_shapes
from backbone.traced import FromPixels
from tests.models import SIZE, make_backbone

SHAPES = st.lists(st.sampled_from([(1,), (4,), (1, 6), (16, 1, 1), (24,)]), min_size=1, max_size=5)


def make_bank(width: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((5, 2, width), np.float32)


@given(shapes=SHAPES, slots=st.lists(st.integers(0, 4), min_size=1, max_size=8))
def test_each_input_holds_the_vectors_of_each_image(shapes: list[tuple[int, ...]], slots: list[int]) -> None:
    widths = [int(np.prod(shape)) for shape in shapes]
    bank, piece = make_bank(sum(widths)), PieceRows(shapes * 2, len(slots))
    piece.gather(bank, slots)
    starts = np.cumsum([0, *widths])
    for place, (tensor, shape) in enumerate(zip(piece.tensors, shapes * 2, strict=True)):
        kind, site = divmod(place, len(shapes))
        expected = bank[slots, kind, starts[site] : starts[site] + widths[site]]
        assert np.array_equal(tensor.data, expected.reshape(len(slots), *shape))


def test_one_row_is_put_as_it_is_gathered() -> None:
    bank, shapes = make_bank(10), [(4,), (6, 1, 1)] * 2
    put, gathered = PieceRows(shapes, 1), PieceRows(shapes, 1)
    put.put(bank[3])
    gathered.gather(bank, [3])
    assert np.array_equal(put.values, gathered.values) and put.values.any()


@pytest.mark.parametrize("kind", ["vit", "swin", "convnext", "efficientnet"])
def test_vectors_give_what_rows_give(kind: str) -> None:
    backbone, generator = make_backbone(kind), torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    rows = 1 + 0.1 * torch.randn(3, 2, backbone.sites.total_width, generator=generator)
    shapes = vector_shapes(backbone, images)
    vectors = [
        vector.reshape(3, *shape)
        for which in (0, 1)
        for vector, shape in zip(
            rows[:, which].split([int(np.prod(shape)) for shape in shapes], 1), shapes, strict=True
        )
    ]
    with torch.inference_mode():
        expected = FromPixels(backbone)(images, rows)
        torch.testing.assert_close(PixelsAndVectors(backbone)(images, *vectors), expected, rtol=0, atol=0)
