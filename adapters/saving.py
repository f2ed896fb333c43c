"""Writing an adapter so that the file is whole and good, or not there."""

import os
import tempfile
from pathlib import Path

from adapters.file import Adapter, digest, read_adapter, write_adapter
from adapters.folding import fold_adapter
from adapters.probe import check_probe, probe_image
from backbone.executors.torch_executor import TorchExecutor
from backbone.load import Backbone


def save_checked(adapter: Adapter, backbone: Backbone, path: Path, *, device: str, dtype: str) -> str:
    """Write an adapter file, after reading its bytes back and passing the check a server makes on arrival.

    Returns:
        The file's digest.

    Raises:
        AdapterError: If the file would not be accepted; nothing is written then.
        OSError: If it cannot be written.
    """
    data = write_adapter(adapter)
    check_as_served(read_adapter(data), backbone, device=device, dtype=dtype)
    replace_file(path, data)
    return digest(data)


def check_as_served(adapter: Adapter, backbone: Backbone, *, device: str, dtype: str) -> None:
    """Run the probe through the server's arithmetic.

    Raises:
        AdapterIncompatible, ProbeMismatch: As a server would on upload.
    """
    folded = fold_adapter(backbone, adapter)
    executor = TorchExecutor(backbone, device=device, dtype=dtype, slots=1)
    image = probe_image(backbone.spec.height, backbone.spec.width)
    check_probe(adapter.manifest.probe, executor.run_beside_bank(image, folded), dtype)


def replace_file(path: Path, data: bytes) -> None:
    """Put bytes at a path at once: a reader, or an interrupt, meets the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
