"""int8 products on OpenVINO: frozen weights rounded once, activations as they come. Imports no torch.

The weight of a linear layer has a scale for each output channel. Its input is quantised in the forward,
every `GROUP` channels of a token by their largest value: ranges follow each task's γ and β with nothing to
calibrate, and a row depends on nothing but itself. All else stays fp32. Measured: docs/adr/0009.
"""

import logging
from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backbone.errors import DeviceUnavailable
from backbone.executors.quiet_openvino import hint, openvino

GROUP = 64  # of 128 is 1.06 times as fast, with more error
LEAST_GROUP = 32  # OpenVINO's
_LARGEST = 127
_PRODUCTS = {"MatMul", "Convolution", "GroupConvolution"}

logger = logging.getLogger(__name__)

Options = dict[Any, Any]


def in_int8(graph: openvino.Model) -> tuple[openvino.Model, Options]:
    """Return a copy of a graph whose linear layers multiply in int8, and the options to compile it with.

    One whose width does not divide into groups stays as it is.

    Raises:
        DeviceUnavailable: If the graph has no linear layer that does, as most convolutional models.
    """
    quantised = graph.clone()
    linears = [op for op in quantised.get_ordered_ops() if _is_linear(op)]
    if not linears:
        wants = f"of a width that {LEAST_GROUP} divides, and only they multiply in it"
        raise DeviceUnavailable("int8", f"the model has no linear layers {wants}")
    group = gcd(GROUP, *(_weight(op).shape[1] for op in linears))
    for op in linears:
        _quantise(op)
    products = sum(op.get_type_name() in _PRODUCTS for op in graph.get_ordered_ops())
    logger.info("%d of %d products multiply in int8, in groups of %d", len(linears), products, group)
    return quantised, {hint.dynamic_quantization_group_size: group}


def _is_linear(op: openvino.Node) -> bool:
    """Whether an op multiplies what is the image's by a frozen weight whose rows divide into groups."""
    if op.get_type_name() != "MatMul" or op.get_attributes()["transpose_a"]:
        return False
    if op.input_value(1).get_node().get_type_name() != "Constant":
        return False
    if op.get_output_partial_shape(0)[0].is_static:  # Swin v2 computes its position bias from constants
        return False
    return _weight(op).ndim == 2 and _weight(op).shape[1] % LEAST_GROUP == 0


def _weight(op: openvino.Node) -> NDArray[np.float32]:
    """Return the weight [out, in] of a product."""
    weight: NDArray[np.float32] = op.input_value(1).get_node().data
    return weight if op.get_attributes()["transpose_b"] else weight.T


def _quantise(op: openvino.Node) -> None:
    """Put a product by an int8 weight in the place of one."""
    ops = openvino.opset13
    rounded, scale = round_rows(_weight(op))
    weight = ops.multiply(ops.convert(ops.constant(rounded), "f32"), ops.constant(scale))
    product = ops.matmul(op.input_value(0), weight, transpose_a=False, transpose_b=True)
    for reader in list(op.output(0).get_target_inputs()):
        reader.replace_source_output(product.output(0))


def round_rows(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return a weight [out, in] as int8 and the scale [out, 1] by which each of its rows was divided."""
    largest = np.abs(weight).max(axis=1, keepdims=True)
    scale = np.where(largest > np.finfo(np.float32).tiny * _LARGEST, largest / _LARGEST, 1).astype(np.float32)
    return np.ascontiguousarray(np.rint(weight / scale).astype(np.int8)), scale
