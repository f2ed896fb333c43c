"""The kernels on a CUDA device, against fp64 at the shapes of real backbones. Run with `make test-gpu`."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from backbone.heads import Head
from backbone.kernels.affine import affine
from backbone.kernels.affine.reference import affine_reference
from backbone.kernels.heads import HeadPool, heads
from backbone.kernels.heads.reference import heads_reference
from backbone.kernels.linear_affine import device_facts, linear_affine
from backbone.kernels.linear_affine.reference import linear_affine_reference
from backbone.kernels.linear_affine.tuning import CANDIDATES, Tile, choose
from backbone.kernels.norm_affine import add_norm_affine, norm_affine
from backbone.kernels.norm_affine.reference import norm_affine_reference
from backbone.kernels.normalize import normalize, pixel_affine
from backbone.kernels.normalize.reference import normalize_reference
from tests.kernel_cases import OPS, run_cases

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this host has no CUDA device"),
]

# one rounding of the output's dtype, plus what fp32 arithmetic adds before it
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
SLOTS = 65

every_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(shape, generator=generator, device="cuda").to(dtype)


def bank(channels: int) -> tuple[Tensor, Tensor]:
    rows = randn(SLOTS, 2, 3 * channels, seed=1)[:, :, channels : 2 * channels]
    return 1 + 0.1 * rows[:, 0], rows[:, 1]


def distinct(batch: int) -> Tensor:
    return torch.arange(1, batch + 1, dtype=torch.int32, device="cuda")


def assert_close_to_fp64(actual: Tensor, expected: Tensor) -> None:
    assert expected.dtype == torch.float64
    tolerance = TOLERANCE[actual.dtype]
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)


def test_every_interpreter_case_passes_on_thedevice_facts(tmp_path: Path) -> None:
    outcomes, output = run_cases(tmp_path, interpret=False)
    assert set(outcomes) == set(OPS), output
    assert all(set(lines) == {"ok"} for lines in outcomes.values()), output


@every_dtype
@pytest.mark.parametrize("shape", [(64, 197, 768), (16, 56, 56, 128), (3, 257, 384)], ids=str)
def test_affine(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, slots = randn(*shape, dtype=dtype), distinct(shape[0])
    scale, shift = bank(shape[-1])
    expected = affine_reference(x.double(), scale.double(), shift.double(), slots, x.double(), act="gelu")
    assert_close_to_fp64(affine(x, scale, shift, slots, act="gelu", residual=x), expected)


@every_dtype
@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("shape", [(64, 197, 768), (16, 3136, 96), (3, 257, 1280)], ids=str)
def test_add_norm_affine(shape: tuple[int, ...], kind: str, dtype: torch.dtype) -> None:
    x, delta, slots = randn(*shape, dtype=dtype), randn(*shape, dtype=dtype, seed=2), distinct(shape[0])
    scale, shift = bank(shape[-1])
    total, out = add_norm_affine(x, delta, scale, shift, slots, kind=kind)
    assert torch.equal(total, x + delta)
    expected = norm_affine_reference(
        total.double(), scale.double(), shift.double(), slots, kind=kind, eps=1e-6
    )
    assert_close_to_fp64(out, expected)
    assert torch.equal(norm_affine(total, scale, shift, slots, kind=kind), out)


@every_dtype
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("size", [224, 518])
def test_normalize(size: int, channels_last: bool, dtype: torch.dtype) -> None:
    images = torch.randint(256, (16, 3, size, size), device="cuda").byte()
    scale, shift = (vector.cuda() for vector in pixel_affine((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    out = normalize(images, scale, shift, dtype=dtype, channels_last=channels_last)
    expected = normalize_reference(
        images, scale.double(), shift.double(), dtype=torch.float64, channels_last=channels_last
    )
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert out.is_contiguous(memory_format=layout)
    assert_close_to_fp64(out, expected)


def make_pool(width: int, dtype: torch.dtype) -> HeadPool:
    pool = HeadPool(width, slots=SLOTS, max_classes=1000, pages=1200, device="cuda", dtype=dtype)
    for slot in range(1, SLOTS):
        classes = (2, 10, 100, 1000)[slot % 4]
        pool.write(slot, Head(randn(classes, width, seed=slot) / width**0.5, randn(classes, seed=slot)))
    return pool


@every_dtype
def test_heads(dtype: torch.dtype) -> None:
    pool, features, slots = make_pool(768, dtype), randn(64, 768, dtype=dtype), distinct(64)
    logits, probabilities, indices = heads(features, pool, slots, top_k=5)
    pages = (pool.weight, pool.bias, pool.table, pool.classes)
    expected, shares, _ = heads_reference(features.double(), *pages, slots, top_k=5)
    torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(probabilities.double(), shares, rtol=1e-5, atol=1e-5)
    named = indices >= 0
    torch.testing.assert_close(
        logits.gather(1, indices.clamp(min=0).long())[named],
        logits.sort(dim=1, descending=True).values[:, :5][named],
    )
    for i in (0, 17, 63):
        alone = heads(features[i : i + 1], pool, slots[i : i + 1], top_k=5)
        assert torch.equal(alone[0][0], logits[i])


@every_dtype
@pytest.mark.parametrize("act", ["none", "gelu"])
@pytest.mark.parametrize(("batch", "per_image"), [(64, 197), (5, 49), (33, 1)])
@pytest.mark.parametrize(("n_out", "n_in"), [(2304, 768), (384, 1536)])
def test_linear_affine(
    n_out: int, n_in: int, batch: int, per_image: int, act: str, dtype: torch.dtype
) -> None:
    x, slots, (scale, shift) = randn(batch, per_image, n_in, dtype=dtype), distinct(batch), bank(n_out)
    weight = (randn(n_out, n_in, seed=2) / n_in**0.5).to(dtype)
    residual = randn(batch, per_image, n_out, dtype=dtype, seed=3)
    out = linear_affine(x, weight, scale, shift, slots, act=act, residual=residual)
    wide = (tensor.double() for tensor in (x, weight, scale, shift))
    expected = linear_affine_reference(*wide, slots, residual.double(), act=act)
    assert_close_to_fp64(out, expected)


@pytest.mark.parametrize("tile", CANDIDATES, ids=str)
def test_every_tile_that_tuning_may_choose(tile: Tile) -> None:
    x, slots, (scale, shift) = randn(7, 197, 768, dtype=torch.bfloat16), distinct(7), bank(1152)
    weight = (randn(1152, 768, seed=2) / 768**0.5).bfloat16()
    if tile.tma and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("TMA came with sm_90")
    from backbone.kernels.linear_affine.triton_impl import linear_affine_triton

    run = partial(linear_affine_triton, act="gelu", tile=tile, programs=132)
    out = run(x, weight, scale, shift, slots, None)
    wide = (tensor.double() for tensor in (x, weight, scale, shift))
    assert_close_to_fp64(out, linear_affine_reference(*wide, slots, None, act="gelu"))
    alone = run(x[6:].clone(), weight, scale, shift, slots[6:], None)
    assert torch.equal(alone[0], out[6])


@every_dtype
def test_bits_do_not_depend_on_the_batch(dtype: torch.dtype) -> None:
    x, slots, (scale, shift) = randn(64, 197, 768, dtype=dtype), distinct(64), bank(768)
    weight = (randn(768, 768, seed=2) / 768**0.5).to(dtype)

    def linear(x: Tensor, scale: Tensor, shift: Tensor, slots: Tensor) -> Tensor:
        return linear_affine(x, weight, scale, shift, slots, act="gelu", residual=x)

    ours = choose(*device_facts(x.device)[:1], dtype, 768, 768, 197).use == "triton"
    for run in (partial(affine, act="gelu"), norm_affine, *[linear] * ours):
        together = run(x, scale, shift, slots)
        for i in (0, 17, 63):
            alone = run(x[i : i + 1].clone(), scale, shift, slots[i : i + 1])
            assert torch.equal(alone[0], together[i])


def test_compile_and_graphs_take_the_ops_whole() -> None:
    x, slots, vectors = randn(4, 197, 768, dtype=torch.bfloat16), distinct(4), bank(768)
    weight = (randn(768, 768, seed=2) / 768**0.5).bfloat16()

    def forward(x: Tensor) -> Tensor:
        x = affine(x, *vectors, slots, act="gelu", residual=x)
        x = linear_affine(x, weight, *vectors, slots, residual=x)
        return add_norm_affine(x, x, *vectors, slots)[1]

    expected = forward(x)
    assert torch.equal(torch.compile(forward, fullgraph=True)(x), expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = forward(x)
    captured.fill_(torch.nan)
    graph.replay()
    assert torch.equal(captured, expected)
