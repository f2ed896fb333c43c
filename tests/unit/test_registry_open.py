import pickle
from pathlib import Path

import pytest

import registry
from registry import EmbeddedRegistry, RegistryError, RegistryUrlInvalid, errors, open_registry


@pytest.mark.parametrize(
    ("url", "directory"), [("embedded:", "/data"), ("embedded:/srv/x", "/srv/x"), ("embedded:/a b", "/a b")]
)
def test_embedded_is_opened_where_the_url_says(url: str, directory: str) -> None:
    made = open_registry(url, Path("/data"))
    assert isinstance(made, EmbeddedRegistry)
    assert made.directory == Path(directory)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "embedded",
        "/srv/x",
        "embedded:x",
        "embedded://host/x",
        "sqlite:/x",
        "redis:x",
        "sqlite://u:pw@host/0",
    ],
)
def test_anything_else_is_refused_by_what_is_supported(url: str) -> None:
    with pytest.raises(RegistryUrlInvalid, match="supported are `embedded:`") as caught:
        open_registry(url, Path("/data"))
    assert isinstance(caught.value, ValueError)
    assert "pw" not in str(caught.value)


def test_public_names_exist_and_are_sorted_once() -> None:
    assert len(set(registry.__all__)) == len(registry.__all__)
    assert all(hasattr(registry, name) for name in registry.__all__)
    public = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert public <= set(registry.__all__)


ERRORS = [
    errors.InvalidName("task", "A"),
    errors.TaskNotFound("pets"),
    errors.VersionNotFound("pets", 2),
    errors.AliasNotFound("pets", "canary"),
    errors.BlobNotFound("ab"),
    errors.BlobCorrupt("ab"),
    errors.AliasConflict("pets", "canary", None, 1),
    errors.VersionInUse("pets", 1, ("canary", "production")),
    errors.KeyConflict("ci"),
    errors.KeyNotFound("ci"),
    errors.RestoreConflict("pets", "version 2"),
    errors.CursorInvalid("x"),
    errors.RegistryUrlInvalid("redis:", "no"),
    errors.RegistryUnavailable("embedded", "the disk is full"),
]


def test_the_tree_at_the_top_names_every_error() -> None:
    classes = {value for value in vars(errors).values() if isinstance(value, type)}
    assert classes == {type(error) for error in ERRORS} | {RegistryError}
    assert all(value.__name__ in (errors.__doc__ or "") for value in classes)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_errors_travel_by_pickle(error: RegistryError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (str(copy), vars(copy)) == (str(error), vars(error))
