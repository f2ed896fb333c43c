"""Which tasks, versions and aliases exist, and their bytes. Knows no tensors and loads no torch."""

from registry.base import Added, Registry
from registry.embedded import EmbeddedRegistry
from registry.errors import (
    AliasConflict,
    AliasNotFound,
    BlobCorrupt,
    BlobNotFound,
    CursorInvalid,
    InvalidName,
    KeyConflict,
    KeyNotFound,
    RegistryError,
    RegistryUnavailable,
    RegistryUrlInvalid,
    RestoreConflict,
    TaskNotFound,
    VersionInUse,
    VersionNotFound,
)
from registry.models import (
    PRODUCTION,
    START,
    AliasMove,
    ApiKey,
    Event,
    EventKind,
    Page,
    Task,
    Version,
)
from registry.open import open_registry
from registry.upkeep import KeptRegistry, Step, TaskPast

__all__ = [
    "PRODUCTION",
    "START",
    "Added",
    "AliasConflict",
    "AliasMove",
    "AliasNotFound",
    "ApiKey",
    "BlobCorrupt",
    "BlobNotFound",
    "CursorInvalid",
    "EmbeddedRegistry",
    "Event",
    "EventKind",
    "InvalidName",
    "KeptRegistry",
    "KeyConflict",
    "KeyNotFound",
    "Page",
    "Registry",
    "RegistryError",
    "RegistryUnavailable",
    "RegistryUrlInvalid",
    "RestoreConflict",
    "Step",
    "Task",
    "TaskNotFound",
    "TaskPast",
    "Version",
    "VersionInUse",
    "VersionNotFound",
    "open_registry",
]
