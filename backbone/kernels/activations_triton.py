"""The activations of `activations.py` inside a kernel, on fp32 values."""

import triton
import triton.language as tl


@triton.jit
def activate(x, ACT: tl.constexpr):
    # comparisons, not maximum and minimum: a NaN must stay visible
    if ACT == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACT == "gelu_tanh":
        # 0.5 * (1 + tanh(u)) is sigmoid(2u)
        x = x * tl.sigmoid(1.5957691216057308 * x * tl.fma(x * x, 0.044715, 1.0))
    elif ACT == "silu":
        x = x * tl.sigmoid(x)
    elif ACT == "relu":
        x = tl.where(x < 0.0, 0.0, x)
    elif ACT == "relu6":
        x = tl.where(x < 0.0, 0.0, tl.where(x > 6.0, 6.0, x))
    return x
