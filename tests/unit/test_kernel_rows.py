"""How kernels see activations: what they are compiled for (alignment, strides) has no batch in it."""

import pytest
import torch
from torch import Tensor

from backbone.kernels.rows import ALIGNMENT, Rows, block_of, rows_of


def facts(rows: Rows) -> tuple[int, ...]:
    return rows.image_stride, rows.row_stride, rows.per_image, rows.channels


@pytest.mark.parametrize("image", range(4))
@pytest.mark.parametrize("channels", [64, 65])
def test_one_image_looks_as_it_does_in_its_batch(channels: int, image: int) -> None:
    batch = torch.randn(4, 19, channels)
    alone = rows_of(batch[image : image + 1], 1)
    assert facts(alone) == facts(rows_of(batch, 4))
    assert alone.data.data_ptr() % ALIGNMENT == 0
    assert torch.equal(alone.data[0], batch[image])


@pytest.mark.parametrize(
    ("x", "copied"),
    [
        (torch.zeros(2, 8, 48)[:, ::2, 16:32], False),
        (torch.zeros(2, 8, 48)[:, :, 1:17], True),
        (torch.zeros(2, 48, 8).transpose(1, 2), True),
        (torch.zeros(2, 16, 3, 5).to(memory_format=torch.channels_last).permute(0, 2, 3, 1), False),
    ],
    ids=["aligned part", "odd start", "channels apart", "channels last"],
)
def test_only_what_cannot_be_addressed_is_copied(x: Tensor, copied: bool) -> None:
    assert (rows_of(x, 2).data.data_ptr() != x.data_ptr()) == copied


def test_axis_of_length_one_has_the_stride_of_a_longer_one() -> None:
    pooled = torch.zeros(1, 1, 64).as_strided((1, 1, 64), (7, 5, 1))
    assert facts(rows_of(pooled, 1)) == (64, 64, 1, 64)


@pytest.mark.parametrize(
    ("width", "block"), [(1, 32), (96, 32), (129, 32), (384, 128), (768, 256), (1000, 512), (3072, 512)]
)
def test_block_is_the_largest_that_pads_little(width: int, block: int) -> None:
    assert block_of(width, largest=512) == block
