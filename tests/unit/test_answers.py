"""The table from errors to HTTP is total, and a 5xx tells nothing of the inside."""

import pickle

import pytest

from adapters import errors as adapters
from registry import errors as registry
from server import errors as server
from server.answers import ANSWERS, INTERNAL, ROOTS, answer_for, problem

EXAMPLES: list[Exception] = [
    adapters.AdapterFileInvalid("header", "secret"),
    adapters.ManifestInvalid("labels: secret"),
    adapters.AdapterIncompatible("fingerprint", "aa", "secret"),
    adapters.ProbeMismatch(1.0, 0.1),
    adapters.NotMergeable("norm", "secret"),
    adapters.CheckpointInvalid("secret.pth", "has no head"),
    adapters.BookmarkInvalid("/data/secret", "cannot be read"),
    adapters.DataInvalid("/data/secret", "empty"),
    registry.InvalidName("task", "Secret!"),
    registry.TaskNotFound("pets"),
    registry.VersionNotFound("pets", 3),
    registry.AliasNotFound("pets", "canary"),
    registry.BlobNotFound("ab"),
    registry.BlobCorrupt("secret"),
    registry.AliasConflict("pets", "production", 1, None),
    registry.VersionInUse("pets", 1, ("production",)),
    registry.KeyConflict("ci"),
    registry.KeyNotFound("ci"),
    registry.RestoreConflict("pets", "version 2"),
    registry.CursorInvalid("secret"),
    registry.RegistryUrlInvalid("secret", "not known"),
    registry.RegistryUnavailable("redis", "secret"),
    server.QueueFull(8, 2.5),
    server.RateLimited("key", "ci", 0.5, 1.25),
    server.ConcurrencyLimited("task", "pets", 8),
    server.DeadlineExceeded(),
    server.Draining(),
    server.NotReady(),
    server.NotConfirmed(("secret",)),
    server.AdapterUnavailable("pets", 1, "secret"),
    server.AdapterMisfit("pets", 1, "height is 112, expected 224"),
    server.PinLimit(3),
    server.EngineBroken("secret"),
    server.OutputInvalid("secret", 1),
    server.ComputeFailed("secret", 1),
    server.SettingsInvalid("secret"),
    server.ImageInvalid("truncated"),
    server.ImageTooLarge("9 pixels"),
    server.ImageTypeUnsupported("text/html"),
    server.BodyTooLarge(1024),
    server.BodyTooSlow(0.5),
    server.BatchTooLarge("images", 4),
    server.RequestInvalid("no image"),
    server.ValueInvalid("top_k", "too small"),
    server.Unauthorized(),
    server.ForeignPage("evil.example"),
    server.Forbidden("scope manage"),
]


def below(cls: type[Exception]) -> set[type[Exception]]:
    """Return the classes of the project below `cls`."""
    return {found for sub in cls.__subclasses__() for found in {sub} | below(sub)}


def test_every_error_has_an_answer_and_an_example() -> None:
    raised = {found for root in ROOTS for found in below(root) if not found.__module__.startswith("tests")}
    assert raised == set(ANSWERS) == {type(error) for error in EXAMPLES}


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_error_survives_pickling(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert copy.__dict__ == error.__dict__
    assert str(copy) == str(error)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_only_client_errors_repeat_the_text_of_the_error(error: Exception) -> None:
    status, body, _ = problem(error)
    assert set(body) == {"error", "error_type"}
    assert body["error"]
    if status < 500:
        assert body["error"] == str(error)
    else:
        assert "secret" not in body["error"]


def test_a_subclass_answers_as_its_parent() -> None:
    class TaskMoved(registry.TaskNotFound):
        pass

    assert answer_for(TaskMoved("pets")) == ANSWERS[registry.TaskNotFound]


def test_a_foreign_error_is_internal() -> None:
    answered = problem(ValueError("/etc/secret"))
    assert answered.status == 500
    assert answered.body == {"error": INTERNAL.message, "error_type": "internal"}


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_those_that_pass_say_when_to_come_back(error: Exception) -> None:
    status, _, headers = problem(error)
    assert ("retry-after" in headers) == (status in {429, 503})


def test_retry_after_is_whole_seconds_rounded_up() -> None:
    assert problem(server.QueueFull(8, 2.5)).headers["retry-after"] == "3"
    assert problem(server.QueueFull(8, 0.01)).headers["retry-after"] == "1"


def test_a_missing_key_names_the_scheme() -> None:
    assert problem(server.Unauthorized()).headers == {"www-authenticate": "Bearer"}


def test_error_types_tell_errors_apart() -> None:
    named = [answer.error_type for answer in ANSWERS.values() if answer is not INTERNAL]
    assert len(set(named)) == len(named)
