"""`affine`: the slot's scale and shift, an activation and a residual add in one pass over the activations."""

from torch import Tensor
from torch.library import custom_op

from backbone.kernels.activations import check_activation
from backbone.kernels.affine.reference import affine_reference
from backbone.kernels.checks import check_like, check_rows


def affine(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    slots: Tensor,
    *,
    act: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """Return `act(x · scale[slot] + shift[slot]) + residual`, contiguous, each image with its own slot.

    Args:
        x: Activations [.., C] of B images, images outermost: [B, N, C], [B, H, W, C], [B · windows, m, C].
        scale: γ' of the bank at this site, [S, C], fp32; rows may be strided.
        shift: β' of the bank at this site, like `scale`.
        slots: Bank row of each image, [B], int32. The caller keeps them below S: a check would sync.
        act: none, gelu, gelu_tanh, silu, relu or relu6.
        residual: Like x; added after the activation.

    Raises:
        ShapeMismatch: If a tensor does not fit the shapes above.
        TypeError: If a dtype does not.
        ValueError: If there is no such activation.
    """
    check_rows(x, scale, shift, slots, width=x.shape[-1])
    check_activation(act)
    if residual is not None:
        check_like("residual", residual, x.shape, x.dtype)
    out: Tensor = _affine(x, scale, shift, slots, residual, act=act)
    return out


@custom_op("ssfserve::affine", mutates_args=(), device_types="cpu")
def _affine(
    x: Tensor, scale: Tensor, shift: Tensor, slots: Tensor, residual: Tensor | None, *, act: str
) -> Tensor:
    return affine_reference(x, scale, shift, slots, residual, act=act)


@_affine.register_kernel("cuda")
def _on_cuda(
    x: Tensor, scale: Tensor, shift: Tensor, slots: Tensor, residual: Tensor | None, *, act: str
) -> Tensor:
    from backbone.kernels.affine.triton_impl import affine_triton

    return affine_triton(x, scale, shift, slots, residual, act=act)


@_affine.register_fake
def _of_shape(
    x: Tensor, scale: Tensor, shift: Tensor, slots: Tensor, residual: Tensor | None, *, act: str
) -> Tensor:
    return x.new_empty(x.shape)
