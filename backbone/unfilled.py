"""Building a model whose weights come from elsewhere, without drawing random ones first."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# what modules draw weights by and bend them with; for a ViT-S it is most of the time that building takes
_INITIALISERS = (
    "uniform_", "normal_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_",
    "xavier_normal_",
)  # fmt: skip
_SKIPPED = frozenset(
    {Tensor.uniform_, Tensor.normal_, Tensor.erfinv_, Tensor.mul_, Tensor.add_, Tensor.clamp_}
) | {getattr(nn.init, name) for name in _INITIALISERS}


class Unfilled(TorchFunctionMode):
    """Leave parameters as they are allocated where a module would draw them; buffers and constants are set.

    Only for a model that is then loaded strictly: a parameter that is not loaded may hold anything.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _SKIPPED:
            tensor = args[0] if args else kwargs["tensor"]
            if isinstance(tensor, nn.Parameter):
                return tensor
        return func(*args, **kwargs)
