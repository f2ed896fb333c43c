"""Keep big temporary buffers of the CPU forward mapped.

glibc returns every block above its mmap threshold to the kernel on free, so that each layer's activations
fault in page by page again. With the threshold raised they stay in the process. Linux with glibc only;
elsewhere nothing happens.
"""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_MMAP_BYTES = 1 << 30
_TRIM_BYTES = 2_000_000_000


def keep_large_buffers() -> bool:
    """Set the process-wide thresholds; return whether the allocator took them."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES) and mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES))
