"""The listener's certificate: what is refused before a start, and what a change of its files does."""

import os
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from server import ports, preflight, tls
from server.errors import SettingsInvalid
from server.settings import Settings
from server.tls import Certificate


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


class Files:
    """A certificate and its key on disk."""

    def __init__(self, folder: Path, authority: trustme.CA) -> None:
        self.cert, self.key, self._authority = folder / "cert.pem", folder / "key.pem", authority
        self.issue()

    def issue(self) -> None:
        issued = self._authority.issue_cert("localhost")
        chain = b"\n".join(part.bytes() for part in issued.cert_chain_pems)
        self.cert.write_bytes(b"# K\xf6ln\n\n" + chain)  # as people write them
        self.key.write_bytes(issued.private_key_pem.bytes())

    def settings(self, **given: object) -> Settings:
        return Settings.model_validate({"tls_cert": self.cert, "tls_key": self.key} | given)


@pytest.fixture
def files(tmp_path: Path, authority: trustme.CA) -> Files:
    return Files(tmp_path, authority)


def test_a_certificate_with_its_key_is_good_and_none_at_all_too(files: Files) -> None:
    tls.check(files.settings())
    tls.check(Settings())


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"tls_key": None}, "SSFSERVE_TLS_KEY: is missing"),
        ({"tls_cert": None}, "SSFSERVE_TLS_CERT: is missing"),
        ({"tls_cert": "/nowhere/c.pem"}, "SSFSERVE_TLS_CERT: /nowhere/c.pem: No such file"),
        ({"tls_key": "/nowhere/k.pem"}, "SSFSERVE_TLS_KEY: /nowhere/k.pem: No such file"),
        ({"tls_key": "/dev/null"}, "are not a certificate and its key in PEM"),
        ({"tls_cert": "/dev/null"}, "are not a certificate and its key in PEM"),
    ],
)
def test_what_is_missing_or_no_certificate_is_named(
    files: Files, given: dict[str, object], told: str
) -> None:
    with pytest.raises(SettingsInvalid, match=told):
        tls.check(files.settings(**given))


def test_the_key_of_another_certificate_is_refused(files: Files, authority: trustme.CA) -> None:
    files.key.write_bytes(authority.issue_cert("localhost").private_key_pem.bytes())
    with pytest.raises(SettingsInvalid, match=r"key\.pem is not the key of .*cert\.pem"):
        tls.check(files.settings())


def test_a_server_does_not_start_with_it(files: Files, tmp_path: Path) -> None:
    files.cert.write_text("no certificate")
    with pytest.raises(SettingsInvalid, match="SSFSERVE_TLS_CERT"):
        preflight.check(files.settings(port=ports.choose(8000).fallback, data_dir=tmp_path / "data"))
    assert not (tmp_path / "data").exists(), "nothing was begun"


class Admin(socketserver.ThreadingUnixStreamServer):
    """Takes orders as HAProxy does: one a connection, ended by a line or, after `<<`, by an empty one."""

    def __init__(self, path: Path) -> None:
        self.orders: list[str] = []
        self.answer = "Committing . Success!\n"
        super().__init__(str(path), AdminHandler)


class AdminHandler(socketserver.StreamRequestHandler):
    server: Admin

    def handle(self) -> None:
        order = line = self.rfile.readline().decode()
        if line.rstrip().endswith("<<"):
            while (line := self.rfile.readline().decode("latin-1")).strip():
                order += line
        self.server.orders.append(order)
        self.wfile.write(self.server.answer.encode())


@pytest.fixture
def admin(tmp_path: Path) -> Iterator[Admin]:
    with Admin(tmp_path / "admin.sock") as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def renewed(files: Files, tmp_path: Path) -> Certificate:
    made = Certificate.of(files.settings(), tmp_path / "tls.pem")
    assert made is not None
    made.write()
    return made


def test_what_haproxy_reads_is_private_and_whole(files: Files, tmp_path: Path) -> None:
    renewed(files, tmp_path)
    pem = tmp_path / "tls.pem"
    assert pem.stat().st_mode & 0o777 == 0o600
    assert files.cert.read_bytes().strip() in pem.read_bytes()
    assert files.key.read_bytes() in pem.read_bytes()
    assert Certificate.of(Settings(), pem) is None


def test_changed_files_are_handed_over_once(files: Files, tmp_path: Path, admin: Admin) -> None:
    certificate, sockets = renewed(files, tmp_path), [tmp_path / "admin.sock"]
    assert certificate.renew(sockets) is None
    files.issue()
    assert certificate.renew(sockets) == "the new certificate is used"
    given, committed = admin.orders
    assert given.startswith(f"set ssl cert {tmp_path}/tls.pem <<\n# K\xf6ln\n-----BEGIN CERTIFICATE-----\n")
    assert "PRIVATE KEY" in given
    assert committed == f"commit ssl cert {tmp_path}/tls.pem\n"
    assert certificate.renew(sockets) is None
    assert files.key.read_bytes() in (tmp_path / "tls.pem").read_bytes(), "a HAProxy to come reads it too"


def test_half_a_change_waits_for_the_other_half(files: Files, tmp_path: Path, admin: Admin) -> None:
    certificate, sockets = renewed(files, tmp_path), [tmp_path / "admin.sock"]
    before, key = (tmp_path / "tls.pem").read_bytes(), files.key.read_bytes()
    files.issue()
    new_key = files.key.read_bytes()
    files.key.write_bytes(key)
    told = certificate.renew(sockets)
    assert told is not None
    assert "is not the key of" in told
    assert certificate.renew(sockets) is None, "told once"
    assert (tmp_path / "tls.pem").read_bytes() == before
    assert not admin.orders
    files.key.write_bytes(new_key)
    os.utime(files.key, ns=(1, 1))  # whatever the clock's steps
    assert certificate.renew(sockets) == "the new certificate is used"


def test_a_haproxy_that_refuses_is_told_of(files: Files, tmp_path: Path, admin: Admin) -> None:
    certificate = renewed(files, tmp_path)
    admin.answer = "Can't load it\n"
    files.issue()
    told = certificate.renew([tmp_path / "admin.sock"])
    assert told == 'the new certificate is used after a restart: HAProxy says "Can\'t load it"'
