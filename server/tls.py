"""The certificate of the listener: checked before a start, and taken up again when its files change."""

import contextlib
import os
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

from server.errors import SettingsInvalid
from server.settings import Settings

SOCKET_SECONDS = 5.0


def check(settings: Settings) -> None:
    """Refuse a certificate or key that cannot be used.

    Raises:
        SettingsInvalid
    """
    if (settings.tls_cert is None) != (settings.tls_key is None):
        missing = "SSFSERVE_TLS_CERT" if settings.tls_cert is None else "SSFSERVE_TLS_KEY"
        raise SettingsInvalid(f"{missing}: is missing; TLS needs a certificate and its key")
    if settings.tls_cert is None or settings.tls_key is None:
        return
    for name, path in (("SSFSERVE_TLS_CERT", settings.tls_cert), ("SSFSERVE_TLS_KEY", settings.tls_key)):
        try:
            path.read_bytes()
        except OSError as error:
            raise SettingsInvalid(f"{name}: {path}: {error.strerror}") from None
    if (problem := _problem(settings.tls_cert, settings.tls_key)) is not None:
        raise SettingsInvalid(f"SSFSERVE_TLS_CERT, SSFSERVE_TLS_KEY: {problem}")


def _problem(cert: Path, key: Path) -> str | None:
    """Return what is wrong with two files in PEM that are to be a certificate and its key."""
    try:
        # a key with a password is refused: nobody is there to type it
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=lambda: b"-")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            return f"{key} is not the key of {cert}"
        return f"{cert} and {key} are not a certificate and its key in PEM without a password"
    except OSError as error:
        return f"{error.filename or cert}: {error.strerror}"
    return None


class Certificate:
    """The two files, as one that HAProxy reads: `pem`, with mode 0600."""

    def __init__(self, cert: Path, key: Path, pem: Path) -> None:
        self._cert, self._key, self._pem = cert, key, pem
        self._seen: object = None

    @classmethod
    def of(cls, settings: Settings, pem: Path) -> "Certificate | None":
        if settings.tls_cert is None or settings.tls_key is None:
            return None
        return cls(settings.tls_cert, settings.tls_key, pem)

    def write(self) -> None:
        """Put both files together, whole or not at all."""
        self.remember()
        fresh = self._pem.with_suffix(".new")
        fresh.touch(mode=0o600)
        fresh.write_bytes(self._cert.read_bytes().rstrip() + b"\n" + self._key.read_bytes())
        fresh.replace(self._pem)

    def remember(self) -> None:
        """Take the files as they are for the ones in use."""
        self._seen = self._look()

    def renew(self, sockets: list[Path]) -> str | None:
        """Give running HAProxies what is in the files now; return what was done, None if nothing changed.

        Connections go on, new ones get the new certificate. What cannot be used is left alone until the files
        change again.

        Args:
            sockets: Where HAProxies take orders.
        """
        if self._look() == self._seen:
            return None
        self._seen = self._look()
        if (problem := _problem(self._cert, self._key)) is not None:
            return f"the new certificate is not used: {problem}"
        self.write()
        lines = self._pem.read_text(encoding="latin-1").splitlines()  # comments may be in any encoding
        text = "\n".join(line for line in lines if line.strip())  # an empty line would end the order
        for path in sockets:
            _order(path, f"set ssl cert {self._pem} <<\n{text}\n\n")
            answer = _order(path, f"commit ssl cert {self._pem}\n")
            if "Success" not in answer:
                return f"the new certificate is used after a restart: HAProxy says {answer.strip()!r}"
        return "the new certificate is used"

    def _look(self) -> object:
        return [_identity(path) for path in (self._cert, self._key)]


def _identity(path: Path) -> tuple[int, int, int] | None:
    """Tell files apart that had the same name one after the other, through symbolic links."""
    with contextlib.suppress(OSError):
        found = path.stat()
        return found.st_ino, found.st_mtime_ns, found.st_size
    return None


def _order(path: Path, command: str) -> str:
    with socket.socket(socket.AF_UNIX) as admin:
        admin.settimeout(SOCKET_SECONDS)
        admin.connect(os.fspath(path))
        admin.sendall(command.encode("latin-1"))
        return b"".join(_received(admin)).decode(errors="replace")


def _received(admin: socket.socket) -> Iterator[bytes]:
    while data := admin.recv(4096):
        yield data
