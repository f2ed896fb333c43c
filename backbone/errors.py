"""Errors raised by `backbone`.

BackboneError
├── UnsupportedModel      a module of the model stands in the way; it is named
├── WeightsUnavailable    the weights cannot be had; `str` names the ways out
├── WeightsInvalid        a checkpoint does not fit the model
├── PixelsUnsupported     an image's pixel format has no known range
├── ShapeMismatch         a tensor has the wrong shape: our bug
├── HeadPoolFull          no room for another head; evict one
├── DeviceMemoryShort     weights, graphs and slots do not fit on the device
└── DeviceUnavailable     the asked-for device or dtype is not to be had here
"""


class BackboneError(Exception):
    """Base of every error this package raises on purpose. `args` are the fields: errors travel by pickle."""


class UnsupportedModel(BackboneError):
    def __init__(self, model: str, module: str, reason: str) -> None:
        super().__init__(model, module, reason)
        self.model, self.module, self.reason = model, module, reason

    def __str__(self) -> str:
        return f"`{self.model}` is not supported: module `{self.module}` {self.reason}"


class WeightsUnavailable(BackboneError):
    def __init__(self, model: str, detail: str) -> None:
        super().__init__(model, detail)
        self.model, self.detail = model, detail

    def __str__(self) -> str:
        return f"no weights for `{self.model}`: {self.detail}"


class WeightsInvalid(BackboneError):
    def __init__(self, source: str, detail: str) -> None:
        super().__init__(source, detail)
        self.source, self.detail = source, detail

    def __str__(self) -> str:
        return f"the weights in {self.source} do not fit: {self.detail}"


class PixelsUnsupported(BackboneError):
    def __init__(self, mode: str) -> None:
        super().__init__(mode)
        self.mode = mode

    def __str__(self) -> str:
        return f"pixels of format {self.mode} have no known range; use 8-bit pixels, or 16-bit grey"


class ShapeMismatch(BackboneError):
    def __init__(self, what: str, expected: str, got: str) -> None:
        super().__init__(what, expected, got)
        self.what, self.expected, self.got = what, expected, got

    def __str__(self) -> str:
        return f"{self.what}: expected shape {self.expected}, got {self.got}"


class HeadPoolFull(BackboneError):
    def __init__(self, needed: int, free: int) -> None:
        super().__init__(needed, free)
        self.needed, self.free = needed, free

    def __str__(self) -> str:
        return f"the head needs {self.needed} pages and {self.free} are free: evict an adapter"


class DeviceMemoryShort(BackboneError):
    def __init__(self, needed: int, limit: int, parts: str, slots: int) -> None:
        super().__init__(needed, limit, parts, slots)
        self.needed, self.limit, self.parts, self.slots = needed, limit, parts, slots

    def __str__(self) -> str:
        fits = (
            f"{self.slots} slots would fit" if self.slots else "no number of slots fits; try a smaller batch"
        )
        return (
            f"the device's memory is short: {self.needed / 2**20:.0f} MiB are needed and "
            f"{self.limit / 2**20:.0f} MiB may be used ({self.parts}); {fits}"
        )


class DeviceUnavailable(BackboneError):
    def __init__(self, what: str, detail: str) -> None:
        super().__init__(what, detail)
        self.what, self.detail = what, detail

    def __str__(self) -> str:
        return f"{self.what} cannot be used here: {self.detail}"
