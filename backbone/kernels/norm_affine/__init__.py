"""`norm_affine`: LayerNorm or RMSNorm whose affine is the slot's; `add_norm_affine` adds a residual first."""

from torch import Tensor
from torch.library import custom_op

from backbone.errors import ShapeMismatch
from backbone.kernels.checks import check_like, check_rows
from backbone.kernels.norm_affine.reference import add_norm_affine_reference, norm_affine_reference

KINDS = ("layer", "rms")
MAX_CHANNELS = 8192  # a row stays in one program's registers


def norm_affine(
    x: Tensor, scale: Tensor, shift: Tensor, slots: Tensor, *, kind: str = "layer", eps: float = 1e-6
) -> Tensor:
    """Return `normal(x) · scale[slot] + shift[slot]`, contiguous, each image with its own slot.

    Args:
        x: Activations [.., C] of B images, images outermost; C at most 8192.
        scale: γ' of the bank at this norm, which has the norm's own gain in it, [S, C], fp32, rows strided.
        shift: β' of the bank, like `scale`.
        slots: Bank row of each image, [B], int32. The caller keeps them below S: a check would sync.
        kind: `layer` (mean and variance) or `rms` (root of the mean square).
        eps: Added to the variance or the mean square.

    Raises:
        ShapeMismatch: If a tensor does not fit the shapes above.
        TypeError: If a dtype does not.
        ValueError: If there is no such kind.
    """
    _check(x, scale, shift, slots, kind)
    out: Tensor = _norm_affine(x, scale, shift, slots, kind=kind, eps=eps)
    return out


def add_norm_affine(
    x: Tensor,
    delta: Tensor,
    scale: Tensor,
    shift: Tensor,
    slots: Tensor,
    *,
    kind: str = "layer",
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Return `x + delta`, rounded to the dtype of x, and `norm_affine` of it.

    Takes and raises what `norm_affine` does; `delta` is like x.
    """
    _check(x, scale, shift, slots, kind)
    check_like("delta", delta, x.shape, x.dtype)
    total, out = _add_norm_affine(x, delta, scale, shift, slots, kind=kind, eps=eps)
    return total, out


def _check(x: Tensor, scale: Tensor, shift: Tensor, slots: Tensor, kind: str) -> None:
    check_rows(x, scale, shift, slots, width=x.shape[-1])
    if x.shape[-1] > MAX_CHANNELS:
        raise ShapeMismatch("x", f"[.., C], C at most {MAX_CHANNELS}", str(list(x.shape)))
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")


@custom_op("ssfserve::norm_affine", mutates_args=(), device_types="cpu")
def _norm_affine(x: Tensor, scale: Tensor, shift: Tensor, slots: Tensor, *, kind: str, eps: float) -> Tensor:
    return norm_affine_reference(x, scale, shift, slots, kind=kind, eps=eps)


@_norm_affine.register_kernel("cuda")
def _norm_on_cuda(x: Tensor, scale: Tensor, shift: Tensor, slots: Tensor, *, kind: str, eps: float) -> Tensor:
    from backbone.kernels.norm_affine.triton_impl import norm_affine_triton

    return norm_affine_triton(x, None, scale, shift, slots, kind=kind, eps=eps)[1]


@_norm_affine.register_fake
def _norm_shape(x: Tensor, scale: Tensor, shift: Tensor, slots: Tensor, *, kind: str, eps: float) -> Tensor:
    return x.new_empty(x.shape)


@custom_op("ssfserve::add_norm_affine", mutates_args=(), device_types="cpu")
def _add_norm_affine(
    x: Tensor, delta: Tensor, scale: Tensor, shift: Tensor, slots: Tensor, *, kind: str, eps: float
) -> tuple[Tensor, Tensor]:
    return add_norm_affine_reference(x, delta, scale, shift, slots, kind=kind, eps=eps)


@_add_norm_affine.register_kernel("cuda")
def _add_norm_on_cuda(
    x: Tensor, delta: Tensor, scale: Tensor, shift: Tensor, slots: Tensor, *, kind: str, eps: float
) -> tuple[Tensor, Tensor]:
    from backbone.kernels.norm_affine.triton_impl import norm_affine_triton

    total, out = norm_affine_triton(x, delta, scale, shift, slots, kind=kind, eps=eps)
    assert total is not None
    return total, out


@_add_norm_affine.register_fake
def _add_norm_shapes(
    x: Tensor, delta: Tensor, scale: Tensor, shift: Tensor, slots: Tensor, *, kind: str, eps: float
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)
