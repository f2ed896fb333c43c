"""A registry that reports how long its operations take and how they fail."""

import time
from collections.abc import Callable
from functools import wraps
from typing import Any

from registry.base import Registry

Observe = Callable[[str, float, str | None], None]  # operation, seconds, name of the error


def _observed(name: str) -> Any:
    """Return a method that calls the wrapped registry's method of a name."""

    @wraps(getattr(Registry, name), updated=())  # `updated` would make it abstract
    async def call(self: "ObservedRegistry", *args: Any, **kwargs: Any) -> Any:
        started, failure = time.perf_counter(), None
        try:
            return await getattr(self.inner, name)(*args, **kwargs)
        except Exception as error:
            failure = type(error).__name__
            raise
        finally:
            self.observe(name, time.perf_counter() - started, failure)

    return call


class ObservedRegistry(Registry):
    """Passes everything on to `inner`. An answer such as TaskNotFound counts as an error of that name."""

    def __init__(self, inner: Registry, observe: Observe) -> None:
        self.inner = inner
        self.observe = observe

    add_version = _observed("add_version")
    get_version = _observed("get_version")
    get_task = _observed("get_task")
    list_tasks = _observed("list_tasks")
    list_versions = _observed("list_versions")
    delete_version = _observed("delete_version")
    delete_task = _observed("delete_task")
    set_alias = _observed("set_alias")
    rollback_alias = _observed("rollback_alias")
    alias_history = _observed("alias_history")
    fetch = _observed("fetch")
    cursor = _observed("cursor")
    events = _observed("events")
    put_lease = _observed("put_lease")
    leases = _observed("leases")
    drop_lease = _observed("drop_lease")
    add_key = _observed("add_key")
    list_keys = _observed("list_keys")
    delete_key = _observed("delete_key")
    audit = _observed("audit")
    close = _observed("close")
