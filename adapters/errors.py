"""Errors raised by `adapters`.

AdapterError
├── AdapterFileInvalid       the bytes are not an adapter file; `reason` is a code
├── ManifestInvalid          the manifest inside the file breaks a rule
├── AdapterIncompatible      a good adapter for another backbone or preprocessing
├── ProbeMismatch            the adapter computes other logits here than where it was trained
├── NotMergeable             no plain model computes what the adapter does
├── CheckpointInvalid        a checkpoint of another tool cannot become an adapter
├── BookmarkInvalid          a training cannot go on from this file
└── DataInvalid              a training or evaluation data set cannot be used
"""

from enum import StrEnum


class Reason(StrEnum):
    """Why bytes are not an adapter file."""

    TRUNCATED = "truncated"
    HEADER_TOO_LARGE = "header_too_large"
    HEADER = "header"
    DUPLICATE_KEY = "duplicate_key"
    METADATA = "metadata"
    TENSOR_UNKNOWN = "tensor_unknown"
    TENSOR_MISSING = "tensor_missing"
    SHAPE = "shape"
    LABELS = "labels"
    DTYPE = "dtype"
    LAYOUT = "layout"
    NOT_FINITE = "not_finite"


class AdapterError(Exception):
    """Base of every error this package raises on purpose. `args` are the fields: errors travel by pickle."""


class AdapterFileInvalid(AdapterError):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return f"not a valid adapter file ({self.reason}): {self.detail}"


class ManifestInvalid(AdapterError):
    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail

    def __str__(self) -> str:
        return f"the adapter's manifest is not valid: {self.detail}"


class AdapterIncompatible(AdapterError):
    def __init__(self, what: str, expected: str, got: str) -> None:
        super().__init__(what, expected, got)
        self.what, self.expected, self.got = what, expected, got

    def __str__(self) -> str:
        return f"the adapter does not fit this backbone: {self.what} is {self.got}, expected {self.expected}"


class ProbeMismatch(AdapterError):
    def __init__(self, difference: float, tolerance: float) -> None:
        super().__init__(difference, tolerance)
        self.difference, self.tolerance = difference, tolerance

    def __str__(self) -> str:
        return (
            f"the adapter's probe logits differ by {self.difference:.3g} (allowed {self.tolerance:.3g}): "
            "backbone, preprocessing or arithmetic are not those of its training"
        )


class NotMergeable(AdapterError):
    def __init__(self, site: str, detail: str) -> None:
        super().__init__(site, detail)
        self.site, self.detail = site, detail

    def __str__(self) -> str:
        return f"the adapter cannot be merged into plain weights: site {self.site} {self.detail}"


class CheckpointInvalid(AdapterError):
    def __init__(self, source: str, detail: str) -> None:
        super().__init__(source, detail)
        self.source, self.detail = source, detail

    def __str__(self) -> str:
        return f"the checkpoint {self.source} cannot be converted: it {self.detail}"


class BookmarkInvalid(AdapterError):
    def __init__(self, path: str, detail: str) -> None:
        super().__init__(path, detail)
        self.path, self.detail = path, detail

    def __str__(self) -> str:
        return f"{self.path} {self.detail}: give what the training was begun with, or remove it to begin anew"


class DataInvalid(AdapterError):
    def __init__(self, path: str, detail: str) -> None:
        super().__init__(path, detail)
        self.path, self.detail = path, detail

    def __str__(self) -> str:
        return f"{self.path}: {self.detail}"
