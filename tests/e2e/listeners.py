"""Which sockets a process listens on, as the kernel tells."""

import contextlib
import ipaddress
import socket
import struct
from collections.abc import Iterable
from pathlib import Path

LISTEN = "0A"


def listeners(pids: Iterable[int]) -> set[tuple[str, int]]:
    """Return (address, port) of every TCP socket on which one of the processes listens."""
    inodes = {inode for pid in pids for inode in _sockets(pid)}
    return {
        where
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        for where, inode in _listening(Path(table))
        if inode in inodes
    }


def is_loopback(address: str) -> bool:
    found = ipaddress.ip_address(address)
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).is_loopback


def _sockets(pid: int) -> set[str]:
    found = set()
    for entry in Path(f"/proc/{pid}/fd").glob("*"):
        with contextlib.suppress(OSError):
            if (target := str(entry.readlink())).startswith("socket:["):
                found.add(target[8:-1])
    return found


def _listening(table: Path) -> Iterable[tuple[tuple[str, int], str]]:
    for line in table.read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == LISTEN:
            address, _, port = fields[1].partition(":")
            yield (_address(address), int(port, 16)), fields[9]


def _address(text: str) -> str:
    """Read an address as the kernel prints it: words of the host's byte order, in hex."""
    words = [int(text[i : i + 8], 16) for i in range(0, len(text), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    return socket.inet_ntop(socket.AF_INET if len(words) == 1 else socket.AF_INET6, packed)
