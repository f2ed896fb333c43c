"""The command line against the real HTTP application, over a real socket, with a fake model behind it."""

import asyncio
import hashlib
import json
import os
import pwd
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
import uvicorn
from typer.core import TyperGroup

from adapters.header import OTHER_KEYS
from registry.embedded import EmbeddedRegistry
from registry.models import PRODUCTION
from server import http_client
from server.cli import VERBS, build, main
from server.cli.options import DEFAULT_ALIAS
from server.cli.output import printable, show_table
from server.http_client import Client, ClientError, ServerRefused, ServerUnreachable
from tests.fakes import WRONG_PROBE, make_adapter_file
from tests.unit.app_parts import JPEG, World, running


class Result(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Result]


class ServedWorld:
    """An application on a port of its own, in a thread with its own event loop."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self._started: Future[tuple[str, World]] = Future()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(directory, settings),))

    def __enter__(self) -> "ServedWorld":
        self._thread.start()
        self.url, self.world = self._started.result(timeout=30)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=30)
        assert not self._thread.is_alive()

    async def _serve(self, directory: Path, settings: dict[str, Any]) -> None:
        async with running(directory, **settings) as world:
            listener = socket.create_server(("127.0.0.1", 0))
            server = uvicorn.Server(uvicorn.Config(world.app, log_config=None, lifespan="off"))
            serving = asyncio.create_task(server.serve([listener]))
            self._loop = asyncio.get_running_loop()
            self._started.set_result((f"http://127.0.0.1:{listener.getsockname()[1]}", world))
            await asyncio.to_thread(self._stop.wait)
            server.should_exit = True
            await serving
            listener.close()

    def do(self, action: Any) -> Any:
        """Run a coroutine on the application's event loop."""
        return asyncio.run_coroutine_threadsafe(action, self._loop).result(timeout=30)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[ServedWorld]:
    with ServedWorld(tmp_path / "registry") as made:
        yield made


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process."""
    for name in ("SSFSERVE_URL", "SSFSERVE_KEY", "SSFSERVE_DATA_DIR", "SSFSERVE_REGISTRY"):
        monkeypatch.delenv(name, raising=False)

    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["ssfserve", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        return Result(int(stopped.value.code or 0), captured.out, captured.err)

    return call


@pytest.fixture
def ask(run: Run, served: ServedWorld) -> Run:
    """Run the command against the served world."""
    return lambda verb, *arguments: run(verb, "--url", served.url, *arguments)


def adapter(directory: Path, payload: bytes = b"one") -> Path:
    path = directory / "adapter.safetensors"
    path.write_bytes(make_adapter_file(payload))
    return path


def images(directory: Path, *contents: bytes) -> list[Path]:
    paths = [directory / f"{i}.jpg" for i in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(JPEG + content)
    return paths


def test_push_tells_version_digest_and_whether_it_serves(ask: Run, tmp_path: Path) -> None:
    first = ask("push", adapter(tmp_path, b"one"), "--task", "pets")
    digest = hashlib.sha256(make_adapter_file(b"one")).hexdigest()
    assert first == Result(0, f"pets version 1 ({digest})\n", "")
    second = ask("push", adapter(tmp_path, b"two"), "--task", "pets")
    assert second.out.startswith("pets version 2 (")
    assert "ssfserve promote pets 2" in second.out
    third = ask("push", adapter(tmp_path, b"three"), "--task", "pets", "--promote", "--json")
    assert json.loads(third.out)["version"] == 3
    assert json.loads(third.out)["production"] is True


def test_a_refused_push_is_one_clear_line(ask: Run, tmp_path: Path) -> None:
    result = ask("push", adapter(tmp_path, WRONG_PROBE), "--task", "pets")
    assert result.code == 1
    assert result.out == ""
    assert re.fullmatch(
        r"ssfserve: the adapter's probe logits differ .* \(422 probe_mismatch\)\n", result.err
    )


@pytest.mark.parametrize("key", OTHER_KEYS)
def test_a_whole_model_is_refused_before_it_is_sent(run: Run, tmp_path: Path, key: str) -> None:
    header = json.dumps({"__metadata__": {key: "{}"}}).encode()
    (tmp_path / "full.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    nowhere = ("--url", "http://127.0.0.1:1")
    result = run("push", tmp_path / "full.safetensors", "--task", "pets", *nowhere)
    assert result.code == 1 and OTHER_KEYS[key] in result.err


def test_tasks_are_listed_over_pages(ask: Run, served: ServedWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.http_client.PAGE", 2)
    for name in ("cars", "digits", "pets", "textile", "zoo"):
        served.do(served.world.add(name))
    served.do(served.world.add("pets", b"another", promote=True))
    lines = ask("tasks").out.splitlines()
    assert [line.split() for line in lines] == [
        ["TASK", "VERSIONS", "ALIASES"],
        ["cars", "1", "production=1"],
        ["digits", "1", "production=1"],
        ["pets", "2", "production=2"],
        ["textile", "1", "production=1"],
        ["zoo", "1", "production=1"],
    ]
    assert [task["task"] for task in json.loads(ask("tasks", "--json").out)][-1] == "zoo"


def test_one_tasks_versions_are_listed_over_pages(
    ask: Run, served: ServedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.http_client.PAGE", 2)
    versions = [served.do(served.world.add("pets", f"{i}".encode())) for i in range(5)]
    lines = [line.split() for line in ask("tasks", "pets").out.splitlines()]
    assert [line[:2] for line in lines[1:]] == [[str(v.version), v.digest[:12]] for v in versions]
    assert lines[1][-1] == "production"
    shown = json.loads(ask("tasks", "pets", "--json").out)
    assert [version["version"] for version in shown["versions"]] == [1, 2, 3, 4, 5]


def test_promote_and_rollback_move_an_alias(ask: Run, served: ServedWorld) -> None:
    for payload in (b"1", b"2"):
        served.do(served.world.add("pets", payload))
    assert ask("promote", "pets", 2).out == "pets: production is version 2 (was version 1)\n"
    assert ask("promote", "pets", 1, "--alias", "canary").out == "pets: canary is version 1\n"
    assert "confirmed_by" in ask("promote", "pets", 2, "--wait", "--json").out
    assert ask("rollback", "pets", "--wait").out == "pets: production is version 1 (was version 2)\n"
    assert served.do(served.world.registry.get_task("pets")).aliases == {"production": 1, "canary": 1}
    again = json.loads(ask("promote", "pets", 2, "--json").out)
    assert (again["alias"], again["version"], again["previous"]) == ("production", 2, 1)


def test_promote_compares_before_it_sets(ask: Run, served: ServedWorld) -> None:
    for payload in (b"1", b"2"):
        served.do(served.world.add("pets", payload))
    refused = ask("promote", "pets", 2, "--expected", 2)
    assert (refused.code, refused.out) == (1, "")
    assert "points to version 1, not to version 2 as expected (409 " in refused.err
    assert ask("promote", "pets", 2, "--expected", 1).code == 0


def test_delete_asks_first(ask: Run, served: ServedWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    for payload in (b"1", b"2"):
        served.do(served.world.add("pets", payload))
    monkeypatch.setattr("sys.stdin", StringIO())  # nobody answers
    assert ask("delete", "pets", 2).code == 1
    assert served.do(served.world.registry.get_task("pets")).versions == 2
    assert ask("delete", "pets", 2, "--yes").out == "deleted version 2 of task pets\n"
    refused = ask("delete", "pets", 1, "--yes")
    assert "is in use by alias `production`; move it first" in refused.err
    assert ask("delete", "pets", "-y").out == "deleted task pets with all its versions\n"
    assert json.loads(ask("tasks", "--json").out) == []


def test_predict_shows_a_row_per_image_in_their_order(ask: Run, served: ServedWorld, tmp_path: Path) -> None:
    served.do(served.world.add("pets"))
    paths = images(tmp_path, *(f"{i}".encode() for i in range(40)))
    result = ask("predict", "pets", *paths)
    rows = [line.split() for line in result.out.splitlines()]
    assert rows[0] == ["IMAGE", "LABEL", "PROBABILITY", "VERSION"]
    assert [row[0] for row in rows[1:]] == [str(path) for path in paths]
    answers = json.loads(ask("predict", "pets", "--json", "--top-k", 3, *paths).out)
    for row, answer in zip(rows[1:], answers, strict=True):
        best = answer["predictions"][0]
        assert row[1:] == [*best["label"].split(), f"{best['probability']:.4f}", "1"]
        assert len(answer["predictions"]) == 3


def test_predict_takes_a_version_or_an_alias(ask: Run, served: ServedWorld, tmp_path: Path) -> None:
    for payload in (b"1", b"2"):
        served.do(served.world.add("pets", payload))
    ask("promote", "pets", 2, "--alias", "canary")
    (image,) = images(tmp_path, b"")
    assert ask("predict", "pets", image, "--version", 2).out.splitlines()[1].endswith(" 2")
    assert ask("predict", "pets", image, "--alias", "canary").out.splitlines()[1].endswith(" 2")
    both = ask("predict", "pets", image, "--alias", "canary", "--version", 2)
    assert both.code == 2
    assert "not both" in both.err


def test_an_image_that_fails_does_not_stop_the_others(ask: Run, served: ServedWorld, tmp_path: Path) -> None:
    served.do(served.world.add("pets"))
    good, broken = images(tmp_path, b"good", b"broken")
    text = tmp_path / "notes.txt"
    text.write_text("not an image")
    result = ask("predict", "pets", broken, text, tmp_path / "none.jpg", good)
    assert result.code == 1
    assert [line.split()[0] for line in result.out.splitlines()] == ["IMAGE", str(good)]
    errors = result.err.splitlines()
    assert errors[0].startswith(f"ssfserve: {broken}: not an image that can be decoded: it is cut off")
    assert errors[1].startswith(f"ssfserve: {text}: this file is not an image type")
    assert errors[2] == f"ssfserve: {tmp_path / 'none.jpg'}: No such file or directory"
    answers = json.loads(ask("predict", "pets", "--json", broken, good).out)
    assert ["error" in answer for answer in answers] == [True, False]


def test_an_unknown_task_is_told_once_however_many_images(ask: Run, tmp_path: Path) -> None:
    result = ask("predict", "nosuch", *images(tmp_path, *[b""] * 20))
    assert result == Result(1, "", "ssfserve: task `nosuch` is not registered (404 task_not_found)\n")


def test_a_server_that_is_not_there_says_what_to_do(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        free = listener.getsockname()[1]
    result = run("tasks", "--url", f"http://127.0.0.1:{free}")
    assert result.code == 1
    assert "start one with `ssfserve serve`" in result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "nonsense", "http://"])
def test_a_url_that_cannot_be_used_is_one_line(run: Run, url: str) -> None:
    result = run("tasks", "--url", url)
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert result.err.startswith("ssfserve: no answer from ")


def test_another_server_is_recognised(run: Run) -> None:
    async def hello(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"<html>hello"})

    with Hello(hello) as url:
        assert "what answers is not ssfserve" in run("tasks", "--url", url).err


class Hello:
    """Any ASGI application on a port of its own."""

    def __init__(self, app: Any) -> None:
        self._server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],))

    def __enter__(self) -> str:
        self._thread.start()
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=30)
        self._listener.close()


def test_url_and_key_come_from_the_environment_too(
    run: Run, served: ServedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.do(served.world.add_key("secret", "predict", "manage"))
    monkeypatch.setenv("SSFSERVE_URL", served.url)
    refused = run("tasks")
    assert refused.code == 1
    assert "(401 " in refused.err
    assert "--key or SSFSERVE_KEY" in refused.err
    monkeypatch.setenv("SSFSERVE_KEY", "secret")
    assert run("tasks").code == 0
    assert run("tasks", "--key", "wrong").code == 1


@pytest.mark.parametrize("port", [None, "", "served"])
def test_without_a_url_the_port_of_the_settings_is_asked(
    port: str | None, run: Run, served: ServedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(http_client, "Client", lambda url, _key: asked.append(url) or Client(served.url))
    if port is not None:
        monkeypatch.setenv("SSFSERVE_PORT", port and served.url.rsplit(":")[-1])
    assert run("tasks").code == 0
    assert asked == [served.url if port else "http://127.0.0.1:8000"]


def test_keys_are_made_listed_and_deleted(run: Run, tmp_path: Path) -> None:
    scopes = ("--scope", "manage", "--scope", "predict")
    limits = ("--rate", 0.5)
    made = run("keys", "add", "ci", *scopes, *limits, "--task", "pets*", "--data-dir", tmp_path)
    token = made.out.strip()
    assert (made.code, made.err) == (0, "")
    assert len(token) > 40

    async def stored() -> Any:
        registry = EmbeddedRegistry(tmp_path)
        try:
            return await registry.list_keys()
        finally:
            await registry.close()

    (key,) = asyncio.run(stored())
    assert key.secret_hash == hashlib.sha256(token.encode()).hexdigest()
    assert (key.name, key.scopes, key.tasks) == ("ci", {"manage", "predict"}, ("pets*",))
    assert (key.images_per_second, key.max_concurrent) == (0.5, None)
    listed = run("keys", "list", "--data-dir", tmp_path).out
    assert listed.splitlines()[1].split()[:7] == [
        "ci",
        key.id,
        "manage",
        "predict",
        "pets*",
        "0.5",
        "default",
    ]
    as_json = run("keys", "list", "--data-dir", tmp_path, "--json").out
    assert json.loads(as_json)[0]["tasks"] == ["pets*"]
    assert json.loads(as_json)[0]["id"] == key.id
    assert token not in listed + as_json
    assert key.secret_hash not in listed + as_json
    assert "exists" in run("keys", "add", "ci", "--data-dir", tmp_path).err
    assert run("keys", "delete", "ci", "--data-dir", tmp_path).out == "deleted key ci\n"
    assert run("keys", "delete", "ci", "--data-dir", tmp_path).code == 1


def test_the_audit_log_is_read_from_the_registry_and_from_a_server(run: Run, tmp_path: Path) -> None:
    user = pwd.getpwuid(os.getuid()).pw_name
    token = run("keys", "add", "boss", "--scope", "manage", "--data-dir", tmp_path).out.strip()
    with ServedWorld(tmp_path) as served:
        remote = ("--url", served.url, "--key", token)
        file = tmp_path / "pets.safetensors"
        file.write_bytes(make_adapter_file(b"pets"))
        assert run("push", file, "--task", "pets", *remote).code == 0
        seen = run("audit", *remote)
        assert seen.code == 0
        head, alias, version, key = seen.out.splitlines()
        assert head.split() == ["WHEN", "WHO", "ACTION", "WHAT", "DIGEST"]
        assert re.search(r"Z  key boss \([0-9a-f]{12}\)  alias_set +pets production=1  +[0-9a-f]{64}$", alias)
        assert re.search(r"version_added +pets:1 ", version)
        assert re.search(rf"Z  local {user} +key_added +boss$", key)
        assert run("audit", "--data-dir", tmp_path).out == seen.out
        assert len(run("audit", "--task", "pets", "--limit", 1, *remote).out.splitlines()) == 2
        whole = json.loads(run("audit", "--json", *remote).out)
        assert [entry["number"] for entry in whole] == [3, 2, 1]
        assert json.loads(run("audit", "--json", "--data-dir", tmp_path).out) == whole


def test_a_file_keeps_the_token_of_its_key(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "token"

    def keep() -> str:
        made = run("keys", "add", "prometheus", "--task", "-", "--to", file, "--data-dir", tmp_path)
        assert made == (0, "", "")
        return file.read_text()

    first = keep()
    assert len(first.strip()) > 40
    assert keep() == first
    file.write_text("another")
    second = keep()
    assert second not in {first, "another"}
    run("keys", "delete", "prometheus", "--data-dir", tmp_path)
    assert keep() != second, "no key knew it any more"
    listed = json.loads(run("keys", "list", "--data-dir", tmp_path, "--json").out)
    assert [(key["name"], key["tasks"]) for key in listed] == [("prometheus", ["-"])]
    assert [path.name for path in tmp_path.glob(".token*")] == []


def test_a_key_opens_a_server_on_the_same_registry(run: Run, tmp_path: Path) -> None:
    token = run("keys", "add", "reader", "--data-dir", tmp_path).out.strip()
    with ServedWorld(tmp_path) as served:
        served.do(served.world.add("pets"))
        (image,) = images(tmp_path, b"")
        assert run("predict", "pets", image, "--url", served.url, "--key", token).code == 0
        refused = run("delete", "pets", "--yes", "--url", served.url, "--key", token)
        assert "(403 " in refused.err


def test_the_tokens_of_keys_differ(run: Run, tmp_path: Path) -> None:
    tokens = {run("keys", "add", name, "--data-dir", tmp_path).out for name in "abc"}
    assert len(tokens) == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["keys", "add", "Bad Name"], "key name 'Bad Name' must match"),
        (["keys", "list", "--registry", "mysql:"], "SSFSERVE_REGISTRY"),
    ],
)
def test_wrong_values_are_one_line(run: Run, tmp_path: Path, arguments: list[str], said: str) -> None:
    result = run(*arguments, "--data-dir", tmp_path)
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert said in result.err


def test_client_settings_in_the_environment_do_not_stop_the_others(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSFSERVE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("SSFSERVE_KEY", "secret")
    assert run("keys", "list", "--data-dir", tmp_path).code == 0


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_where_the_table_says(run: Run, verb: str) -> None:
    command = typer.main.get_command(build([verb]))
    assert isinstance(command, TyperGroup)
    assert command.commands[verb].get_short_help_str(limit=200) == VERBS[verb].help
    assert f"ssfserve {verb}" in run(verb, "--help").out


def test_help_lists_every_verb(run: Run) -> None:
    text = run("--help").out
    assert all(re.search(rf"^\W*{verb}\b", text, re.MULTILINE) for verb in VERBS)
    assert run("nosuch").code == 2
    assert "No such command 'nosuch'" in run("nosuch").err


def test_a_verb_may_follow_a_dash(run: Run, tmp_path: Path) -> None:
    assert run("--", "keys", "list", "--data-dir", tmp_path).code == 0


def modules_after(*arguments: str) -> set[str]:
    """Return what a new interpreter has loaded once it knows the verb."""
    code = f"import sys; from server.cli import build; build({arguments!r}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


def test_help_imports_no_verb() -> None:
    loaded = modules_after("--help")
    assert not loaded & {"torch", "ray", "fastapi", "httpx", "pydantic", "numpy"}
    assert not {name for name in loaded if name.startswith("server.cli.")}


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_loads_neither_torch_nor_ray_before_it_runs(verb: str) -> None:
    loaded = modules_after(verb)
    assert VERBS[verb].module in loaded
    assert not loaded & {"torch", "ray", "timm"}


def test_version_is_shown(run: Run) -> None:
    assert re.fullmatch(r"ssfserve \d+\.\d+\.\d+\S*\n", run("--version").out)


def test_our_mistakes_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("server.cli.build", lambda arguments: fail)
    monkeypatch.setattr(sys, "argv", ["ssfserve", "tasks"])
    with pytest.raises(ZeroDivisionError):
        main()


def test_the_default_alias_is_the_registrys() -> None:
    assert DEFAULT_ALIAS == PRODUCTION


def test_names_from_outside_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    show_table(("A", "B"), [("ok", "\x1b[31mred\nline")])
    assert capsys.readouterr().out == "A   B\nok  \ufffd[31mred\ufffdline\n"
    assert printable("épée 名") == "épée 名"


def test_names_are_escaped_in_paths(served: ServedWorld) -> None:
    with Client(served.url) as client, pytest.raises(ServerRefused) as refused:
        client.task("../../metrics?x=#")
    assert refused.value.status in {404, 422}


@pytest.mark.parametrize("error", [ServerUnreachable("http://x", "gone"), ServerRefused(404, "kind", "text")])
def test_client_errors_travel(error: ClientError) -> None:
    import pickle

    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy)) == (type(error), str(error))


def test_without_arguments_the_help_is_shown(run: Run) -> None:
    assert build() is not build()
    assert "Usage: ssfserve" in run().out
