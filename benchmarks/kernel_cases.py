"""What the kernel benchmark times: each op where ViT-B/16 has it, its bytes, operations and plain twin."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from backbone.heads import Head
from backbone.kernels.affine import affine
from backbone.kernels.affine.reference import affine_reference
from backbone.kernels.heads import HeadPool, heads
from backbone.kernels.heads.reference import heads_reference
from backbone.kernels.linear_affine import linear_affine
from backbone.kernels.linear_affine.reference import linear_affine_reference
from backbone.kernels.norm_affine import add_norm_affine
from backbone.kernels.norm_affine.reference import add_norm_affine_reference
from backbone.kernels.normalize import normalize, pixel_affine
from backbone.kernels.normalize.reference import normalize_reference

CLASSES, PIXELS = 100, 224
RELATIVE_ERROR = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}


@dataclass(frozen=True)
class Case:
    """One op at one place.

    Attributes:
        bytes: What must be read and written once.
        operations: Multiplications and additions of a product; 0 where bytes decide.
        run: The op.
        expected: Its reference in fp32.
        plain: What the plain model runs there.
    """

    op: str
    shape: str
    dtype: str
    mix: str
    bytes: int
    operations: int
    run: Callable[[], Tensor]
    expected: Callable[[], Tensor]
    plain: Callable[[], object]

    def check(self) -> None:
        """Raise ArithmeticError if the op is further from its reference than rounding explains."""
        out, expected = self.run(), self.expected().float()
        error = float((out.float() - expected).norm() / expected.norm())
        if not error <= RELATIVE_ERROR[out.dtype]:
            raise ArithmeticError(f"{self.op} {self.shape} {self.mix}: relative error {error:.2e}")


class Maker:
    """Makes inputs on one device, and cases of them."""

    def __init__(self, device: torch.device, dtype: torch.dtype, batch: int, tokens: int, width: int) -> None:
        self.device, self.dtype, self.batch, self.tokens, self.width = device, dtype, batch, tokens, width
        self._generator = torch.Generator(device).manual_seed(0)
        self.mixes = {
            "identical": torch.ones(batch, dtype=torch.int32, device=device),
            "distinct": torch.arange(1, batch + 1, dtype=torch.int32, device=device),
        }

    def randn(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        values = torch.randn(shape, device=self.device, generator=self._generator)
        return values.to(dtype or self.dtype)

    def bank(self, channels: int) -> tuple[Tensor, Tensor]:
        rows = self.randn(self.batch + 1, 2, 3 * channels, dtype=torch.float32)[:, :, :channels]
        return 1 + 0.1 * rows[:, 0], rows[:, 1]

    def case(self, op: str, shape: tuple[int, ...], mix: str, **facts: Any) -> Case:
        named = {"op": op, "shape": str(list(shape)), "dtype": str(self.dtype).removeprefix("torch.")}
        return Case(**named, mix=mix, **{"operations": 0} | facts)


def cases(
    device: torch.device, dtype: torch.dtype, batch: int, *, tokens: int = 197, width: int = 768
) -> Iterator[Case]:
    maker = Maker(device, dtype, batch, tokens, width)
    for mix, slots in maker.mixes.items():
        yield affine_case(maker, mix, slots)
        yield norm_case(maker, mix, slots)
        yield heads_case(maker, mix, slots)
        for n_out, n_in, act in ((3, 1, "none"), (1, 1, "none"), (4, 1, "gelu"), (1, 4, "none")):
            yield linear_case(maker, mix, slots, (n_out * width, n_in * width), act)
    yield normalize_case(maker)


def affine_case(maker: Maker, mix: str, slots: Tensor) -> Case:
    x = maker.randn(maker.batch, maker.tokens, 4 * maker.width)
    (scale, shift), bias = maker.bank(x.shape[-1]), maker.randn(x.shape[-1])
    return maker.case(
        "affine + gelu",
        tuple(x.shape),
        mix,
        bytes=2 * x.nbytes,
        run=lambda: affine(x, scale, shift, slots, act="gelu"),
        expected=lambda: affine_reference(x.float(), scale, shift, slots, None, act="gelu"),
        plain=lambda: F.gelu(x + bias),
    )


def norm_case(maker: Maker, mix: str, slots: Tensor) -> Case:
    x, delta = (maker.randn(maker.batch, maker.tokens, maker.width) for _ in range(2))
    (scale, shift), gain, bias = maker.bank(maker.width), maker.randn(maker.width), maker.randn(maker.width)
    options: dict[str, Any] = {"kind": "layer", "eps": 1e-6}
    return maker.case(
        "add + norm_affine",
        tuple(x.shape),
        mix,
        bytes=4 * x.nbytes,
        run=lambda: add_norm_affine(x, delta, scale, shift, slots, **options)[1],
        expected=lambda: add_norm_affine_reference(x, delta, scale, shift, slots, **options)[1],
        plain=lambda: F.layer_norm(x + delta, (maker.width,), gain, bias),
    )


def linear_case(maker: Maker, mix: str, slots: Tensor, shape: tuple[int, int], act: str) -> Case:
    n_out, n_in = shape
    x = maker.randn(maker.batch, maker.tokens, n_in)
    weight = (maker.randn(n_out, n_in, dtype=torch.float32) / n_in**0.5).to(maker.dtype)
    (scale, shift), bias = maker.bank(n_out), maker.randn(n_out)
    rows = maker.batch * maker.tokens
    after = F.gelu if act == "gelu" else torch.nn.Identity()
    return maker.case(
        f"linear_affine, {act}",
        (rows, n_in, n_out),
        mix,
        bytes=x.nbytes + weight.nbytes + rows * n_out * x.element_size(),
        operations=2 * rows * n_out * n_in,
        run=lambda: linear_affine(x, weight, scale, shift, slots, act=act),
        expected=lambda: linear_affine_reference(
            x.float(), weight.float(), scale, shift, slots, None, act=act
        ),
        plain=lambda: after(F.linear(x, weight, bias)),
    )


def heads_case(maker: Maker, mix: str, slots: Tensor) -> Case:
    pages = 7 * (maker.batch + 1)
    pool = HeadPool(maker.width, slots=maker.batch + 1, max_classes=CLASSES, pages=pages, device=maker.device)
    for slot in range(1, maker.batch + 1):
        weight = maker.randn(CLASSES, maker.width, dtype=torch.float32) / maker.width**0.5
        pool.write(slot, Head(weight, maker.randn(CLASSES, dtype=torch.float32)))
    features = maker.randn(maker.batch, maker.width)
    shared, bias = maker.randn(CLASSES, maker.width), maker.randn(CLASSES)
    tensors = (pool.weight, pool.bias, pool.table, pool.classes, slots)
    distinct = len(set(slots.tolist()))
    return maker.case(
        "heads, top 5",
        (maker.batch, maker.width, CLASSES),
        mix,
        bytes=features.nbytes + distinct * CLASSES * (maker.width + 1) * 4 + maker.batch * CLASSES * 4,
        run=lambda: heads(features, pool, slots, top_k=5)[1],
        expected=lambda: heads_reference(features.float(), *tensors, top_k=5)[1],
        plain=lambda: F.linear(features, shared, bias).softmax(1).topk(5),
    )


def normalize_case(maker: Maker) -> Case:
    images = torch.randint(256, (maker.batch, 3, PIXELS, PIXELS), device=maker.device).byte()
    statistics = pixel_affine((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    scale, shift = (vector.to(maker.device) for vector in statistics)
    factor, summand = scale.view(3, 1, 1), shift.view(3, 1, 1)
    return maker.case(
        "normalize",
        tuple(images.shape),
        "",
        bytes=images.nbytes * (1 + maker.dtype.itemsize),
        run=lambda: normalize(images, scale, shift, dtype=maker.dtype),
        expected=lambda: normalize_reference(images, scale, shift, dtype=torch.float32, channels_last=False),
        plain=lambda: torch.addcmul(summand, images.float(), factor).to(maker.dtype),
    )
