"""OpenVINO without its telemetry.

Its Python package reports every import and conversion to its vendor unless the user has opted out; without
the telemetry package it falls back to a stub. Import OpenVINO from here only.
"""

import sys

sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # an import of it fails from now on

import openvino  # noqa: E402  # the line above must run first
from openvino.frontend import FrontEndManager  # noqa: E402
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder  # noqa: E402
from openvino.properties import hint, inference_num_threads, num_streams  # noqa: E402

__all__ = [
    "FrontEndManager",
    "TorchScriptPythonDecoder",
    "hint",
    "inference_num_threads",
    "num_streams",
    "openvino",
]
