import pytest
import torch
from torch import Tensor

from backbone.kernels.normalize.reference import normalize_reference
from backbone.kernels.normalize.triton_impl import normalize_triton
from tests.unit.kernels.inputs import assert_close, every_dtype

VIEWS = ["NHWC memory", "crop", "axes swapped", "a row turned to a column", "every second image", "odd start"]

every_layout = pytest.mark.parametrize("channels_last", [False, True], ids=["NCHW", "NHWC"])


def pixels(*shape: int, device: torch.device) -> Tensor:
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(0)).byte().to(device)


def check(images: Tensor, *, channels_last: bool, dtype: torch.dtype = torch.float32) -> None:
    channels = images.shape[1]
    scale = torch.linspace(0.01, 0.02, channels, device=images.device)
    shift = torch.linspace(-2, -1, channels, device=images.device)
    actual = normalize_triton(images, scale, shift, dtype=dtype, channels_last=channels_last)
    expected = normalize_reference(images, scale, shift, dtype=dtype, channels_last=channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert actual.is_contiguous(memory_format=layout)
    assert_close(actual, expected)


@every_layout
@every_dtype
def test_matches_reference(dtype: torch.dtype, channels_last: bool, device: torch.device) -> None:
    check(pixels(2, 3, 50, 50, device=device), channels_last=channels_last, dtype=dtype)


@every_layout
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 3, 1, 7), (2, 4, 5, 1), (2, 3, 37, 61)], ids=str)
def test_odd_shapes(shape: tuple[int, ...], channels_last: bool, device: torch.device) -> None:
    check(pixels(*shape, device=device), channels_last=channels_last)


@every_layout
@pytest.mark.parametrize("view", VIEWS)
def test_strided_input(view: str, channels_last: bool, device: torch.device) -> None:
    wide = pixels(4, 3, 10, 12, device=device)
    images = {
        "NHWC memory": pixels(2, 10, 12, 3, device=device).permute(0, 3, 1, 2),
        "crop": wide[:, :, 2:7, 3:9],
        "axes swapped": wide.transpose(2, 3),
        "a row turned to a column": wide[:, :, 4:5].transpose(2, 3),
        "every second image": wide[::2],
        "odd start": wide.flatten()[1 : 1 + 3 * 40].view(1, 3, 8, 5),
    }[view]
    check(images, channels_last=channels_last)


@every_layout
def test_result_does_not_depend_on_neighbours(channels_last: bool, device: torch.device) -> None:
    images = pixels(3, 3, 9, 11, device=device)
    scale, shift = torch.full((3,), 0.017, device=device), torch.full((3,), -2.1, device=device)
    options = {"dtype": torch.bfloat16, "channels_last": channels_last}
    together = normalize_triton(images, scale, shift, **options)
    for i in range(3):
        assert torch.equal(normalize_triton(images[i : i + 1], scale, shift, **options)[0], together[i])
