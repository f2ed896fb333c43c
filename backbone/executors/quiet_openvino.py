"""OpenVINO without its telemetry.

Its Python package reports every import and conversion to its vendor unless the user has opted out; without
the telemetry package it falls back to a stub. Import OpenVINO from here only.
"""

import sys
from typing import Any

sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # an import of it fails from now on

import openvino  # noqa: E402  # the line above must run first
from openvino.properties import hint, inference_num_threads, num_streams  # noqa: E402

__all__ = [
    "hint",
    "inference_num_threads",
    "num_streams",
    "openvino",
    "torch_frontend",
]


def torch_frontend() -> tuple[Any, Any]:
    """Return the manager of frontends and the decoder of traced modules; loads torch."""
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    return FrontEndManager(), TorchScriptPythonDecoder
