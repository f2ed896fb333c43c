"""Who gets in, and how: TLS, keys and their limits, ports, headers, and what the audit log says of it."""

import json
import re
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from tests.e2e.adapters import Known, make_png
from tests.e2e.calls import PNG, check_answer, predict
from tests.e2e.listeners import is_loopback, listeners
from tests.e2e.servers import Server, eventually, started

pytestmark = pytest.mark.e2e


class Secured:
    """A server on every interface, with TLS and keys; `authority` has signed its certificate."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = trustme.CA()
        self.cert, self.key, self.trusted = folder / "cert.pem", folder / "key.pem", folder / "ca.pem"
        self.authority.cert_pem.write_to_path(str(self.trusted))
        self.issue()
        self.manages = self.command(
            "keys", "add", "manager", "--scope", "manage", "--scope", "predict"
        ).strip()
        self.slow = self.command("keys", "add", "slow", "--rate", 0.01).strip()

    def issue(self) -> None:
        issued = self.authority.issue_cert("127.0.0.1", "localhost")
        self.key.write_bytes(issued.private_key_pem.bytes())
        self.cert.write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))

    def command(self, *words: object) -> str:
        """Run `ssfserve` beside the server, on the same registry."""
        line = [sys.executable, "-m", "server.cli", *map(str, words), "--data-dir", self.folder / "data"]
        return subprocess.run(line, capture_output=True, text=True, check=True).stdout

    def curl(self, server: Server, path: str, *options: str, key: str | None = None) -> tuple[int, str, str]:
        """Return (status, head, body) as a real client outside of Python gets them."""
        authorization = [] if key is None else ["-H", f"Authorization: Bearer {key}"]
        command = ["curl", "-sS", "-i", "--cacert", self.trusted, *authorization, *options]
        done = subprocess.run([*command, f"{server.url}{path}"], capture_output=True, text=True, check=True)
        head, _, body = done.stdout.replace("\r\n", "\n").partition("\n\n")
        return int(head.split()[1]), head, body


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Secured:
    return Secured(tmp_path_factory.mktemp("secured"))


@pytest.fixture(scope="module")
def tls_server(secured: Secured, seed_dir: Path) -> Iterator[Server]:
    given: dict[str, Any] = {"tls_cert": secured.cert, "tls_key": secured.key, "host": "0.0.0.0"}
    with started(secured.folder, seed_dir=seed_dir, verify=str(secured.trusted), **given) as server:
        yield server


def test_curl_is_answered_over_tls_and_told_what_a_browser_must_know(
    tls_server: Server, secured: Secured
) -> None:
    status, head, body = secured.curl(tls_server, "/v1/tasks", key=secured.manages)
    assert (status, [task["task"] for task in json.loads(body)["tasks"]]) == (200, ["cats", "dogs"])
    assert head.startswith("HTTP/2 ")
    for line in (
        "strict-transport-security: max-age=31536000",
        "x-content-type-options: nosniff",
        "cache-control: no-store",
    ):
        assert line in head.lower()
    assert secured.curl(tls_server, "/v1/tasks")[0] == 401
    assert secured.curl(tls_server, "/healthz")[0] == 200


def test_nothing_is_answered_in_the_clear(tls_server: Server) -> None:
    port = tls_server.url.rpartition(":")[2]
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=10)


def test_only_haproxy_listens_where_others_can_reach_it(tls_server: Server, secured: Secured) -> None:
    port = int(tls_server.url.rpartition(":")[2])
    found = listeners([tls_server.process.pid, *tls_server.look()])
    assert ("0.0.0.0", port) in found
    assert {where for where in found if not is_loopback(where[0])} == {("0.0.0.0", port)}
    assert len(found) > 8, "the test sees what Ray listens on"
    token = secured.folder / "data" / "ray-token"
    assert token.stat().st_mode & 0o777 == 0o600


def test_on_loopback_nothing_can_be_reached_from_elsewhere(server: Server) -> None:
    found = listeners([server.process.pid, *server.look()])
    assert len(found) > 8
    assert not {where for where in found if not is_loopback(where[0])}


async def test_a_key_has_its_limit(tls_server: Server, secured: Secured, cats: Known) -> None:
    image = make_png(3)
    context = ssl.create_default_context(cafile=str(secured.trusted))
    headers = {"authorization": f"Bearer {secured.slow}"}
    async with httpx.AsyncClient(
        base_url=tls_server.url, verify=context, headers=headers, timeout=60
    ) as client:
        check_answer(await predict(client, "cats", image), cats, image)
        refused = await predict(client, "cats", image)
        assert (refused.status_code, refused.json()["error_type"]) == (429, "rate_limited")
        assert 90 < int(refused.headers["retry-after"]) <= 100


def test_the_audit_log_names_keys_and_who_ran_the_command(tls_server: Server, secured: Secured) -> None:
    change = ("-X", "PUT", "-d", '{"version": 1}', "-H", "x-request-id: r-9")
    assert secured.curl(tls_server, "/v1/tasks/cats/aliases/canary", *change, key=secured.manages)[0] == 200
    _, _, body = secured.curl(tls_server, "/v1/audit", key=secured.manages)
    latest, *before = json.loads(body)["entries"]
    assert (latest["action"], latest["alias"]) == ("alias_set", "canary")
    assert (latest["actor"]["kind"], latest["actor"]["name"]) == ("key", "manager")
    assert latest["actor"]["request_id"] == "r-9"
    assert [entry["actor"]["kind"] for entry in before] == ["server"] * 4 + ["local"] * 2
    shown = secured.command("audit", "--limit", 1)
    assert re.search(r"key manager \([0-9a-f]{12}\)  alias_set  cats canary=1 ", shown)


def test_a_renewed_certificate_is_taken_up_while_the_server_runs(
    tls_server: Server, secured: Secured
) -> None:
    port = int(tls_server.url.rpartition(":")[2])
    before = ssl.get_server_certificate(("127.0.0.1", port))
    secured.issue()
    eventually(
        lambda: ssl.get_server_certificate(("127.0.0.1", port)) != before, 30, "taking the certificate up"
    )
    assert secured.curl(tls_server, "/healthz")[0] == 200
    assert "TLS: the new certificate is used" in tls_server.output


@pytest.mark.parametrize("given", ["a b", "x" * 129, "sane-1", None])
async def test_an_answer_has_one_request_id(client: httpx.AsyncClient, given: str | None) -> None:
    answer = await client.get("/healthz", headers={} if given is None else {"x-request-id": given})
    (found,) = answer.headers.get_list("x-request-id")
    assert (found == given) == (given == "sane-1")


async def test_clients_cannot_set_what_is_rays(client: httpx.AsyncClient, cats: Known) -> None:
    headers = PNG | {"x-request-timeout-seconds": "0.000001"}
    image = make_png(4)
    answer = await client.post("/v1/tasks/cats/predict?logits=true", content=image, headers=headers)
    check_answer(answer, cats, image)
