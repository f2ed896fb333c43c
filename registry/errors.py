"""Errors raised by the registry.

RegistryError
├── InvalidName            a task, alias or key name that breaks the naming rule
├── TaskNotFound           no such task
├── VersionNotFound        the task has no such version
├── AliasNotFound          the task has no such alias, or nothing to roll back to
├── BlobNotFound           no bytes are stored for this digest
├── BlobCorrupt            stored bytes no longer match their digest
├── AliasConflict          compare-and-set failed: the alias is elsewhere than expected
├── VersionInUse           an alias still points to the version
├── KeyConflict            an API key of this name exists
├── KeyNotFound            no API key of this name
├── RestoreConflict        what is to be restored meets something else
├── CursorInvalid          not a cursor of this registry: list everything again
├── RegistryUrlInvalid     no backend for this URL
└── RegistryUnavailable    the backend does not answer; the caller may retry
"""


class RegistryError(Exception):
    """Base of every error this package raises on purpose. `args` are the fields: errors travel by pickle."""


class InvalidName(RegistryError):
    def __init__(self, what: str, name: str) -> None:
        super().__init__(what, name)
        self.what, self.name = what, name

    def __str__(self) -> str:
        return f"{self.what} name {self.name[:80]!r} must match [a-z0-9][a-z0-9._-]{{0,62}}"


class TaskNotFound(RegistryError):
    def __init__(self, task: str) -> None:
        super().__init__(task)
        self.task = task

    def __str__(self) -> str:
        return f"task `{self.task}` is not registered"


class VersionNotFound(RegistryError):
    def __init__(self, task: str, version: int) -> None:
        super().__init__(task, version)
        self.task, self.version = task, version

    def __str__(self) -> str:
        return f"task `{self.task}` has no version {self.version}"


class AliasNotFound(RegistryError):
    def __init__(self, task: str, alias: str) -> None:
        super().__init__(task, alias)
        self.task, self.alias = task, alias

    def __str__(self) -> str:
        return f"task `{self.task}` has no alias `{self.alias}`, or nothing it could be rolled back to"


class BlobNotFound(RegistryError):
    def __init__(self, digest: str) -> None:
        super().__init__(digest)
        self.digest = digest

    def __str__(self) -> str:
        return f"no bytes are stored for {self.digest}"


class BlobCorrupt(RegistryError):
    def __init__(self, digest: str) -> None:
        super().__init__(digest)
        self.digest = digest

    def __str__(self) -> str:
        return f"the bytes stored for {self.digest} do not match it"


class AliasConflict(RegistryError):
    def __init__(self, task: str, alias: str, expected: int | None, actual: int | None) -> None:
        super().__init__(task, alias, expected, actual)
        self.task, self.alias, self.expected, self.actual = task, alias, expected, actual

    def __str__(self) -> str:
        return (
            f"alias `{self.alias}` of task `{self.task}` points to {_version(self.actual)}, "
            f"not to {_version(self.expected)} as expected"
        )


class VersionInUse(RegistryError):
    def __init__(self, task: str, version: int, aliases: tuple[str, ...]) -> None:
        super().__init__(task, version, aliases)
        self.task, self.version, self.aliases = task, version, aliases

    def __str__(self) -> str:
        names = ", ".join(f"`{alias}`" for alias in self.aliases)
        return f"version {self.version} of task `{self.task}` is in use by alias {names}; move it first"


class KeyConflict(RegistryError):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"an API key named `{self.name}` exists"


class KeyNotFound(RegistryError):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"there is no API key named `{self.name}`"


class RestoreConflict(RegistryError):
    def __init__(self, task: str, detail: str) -> None:
        super().__init__(task, detail)
        self.task, self.detail = task, detail

    def __str__(self) -> str:
        return f"task `{self.task}` exists with other content: {self.detail}"


class CursorInvalid(RegistryError):
    def __init__(self, cursor: str) -> None:
        super().__init__(cursor)
        self.cursor = cursor

    def __str__(self) -> str:
        return f"{self.cursor[:80]!r} is not a cursor of this registry; list everything again"


class RegistryUrlInvalid(RegistryError, ValueError):
    """Holds no more of the URL than its scheme: the rest may carry a password."""

    def __init__(self, scheme: str, detail: str) -> None:
        super().__init__(scheme, detail)
        self.scheme, self.detail = scheme, detail

    def __str__(self) -> str:
        return f"registry URL `{self.scheme}…`: {self.detail}"


class RegistryUnavailable(RegistryError):
    def __init__(self, backend: str, detail: str) -> None:
        super().__init__(backend, detail)
        self.backend, self.detail = backend, detail

    def __str__(self) -> str:
        return f"the {self.backend} registry does not answer: {self.detail}"


def _version(number: int | None) -> str:
    return "no version" if number is None else f"version {number}"
