"""How much memory a training needs."""

import re
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # of the resident set, see proc(5)


class PeakMemory:
    """Bytes at the peak since it was made: what PyTorch allocated on a GPU, or by how much the process grew.

    None where the system does not tell (other than Linux).
    """

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            return
        try:
            CLEAR.write_text(RESET_PEAK)
            self._before: int | None = _resident("VmRSS")
        except OSError:
            self._before = None

    def peak(self) -> int | None:
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        return None if self._before is None else max(0, _resident("VmHWM") - self._before)


def _resident(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"{STATUS} has no {field}")
    return int(found[1]) * 1024
