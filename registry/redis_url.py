"""Where a Redis registry is, from its URL.

redis://[user[:password]@]host[:port][/database][?options]          rediss:// for TLS
redis+unix:///path/of/the.sock[?options]
redis+sentinel://[user[:password]@]host[:port],…/service[/database]  rediss+sentinel:// for TLS
"""

import re
from pathlib import Path
from typing import Annotated, NamedTuple, Self
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from registry.errors import RegistryUrlInvalid

SCHEMES = ("redis", "rediss", "redis+unix", "redis+sentinel", "rediss+sentinel")
PORT, SENTINEL_PORT = 6379, 26379

_HOST = re.compile(r"(\[[0-9a-fA-F:.%]+\]|[^:,\s\[\]]+)(?::(\d{1,5}))?")
_DATABASE = re.compile(r"\d{1,5}")


class Address(NamedTuple):
    host: str
    port: int


class Options(BaseModel):
    """What stands behind the question mark.

    Attributes:
        prefix: Begins every key's name; several registries may share a database.
        blobs: Where adapter files are kept: a URL, or None for Redis itself.
        timeout: Longest time for an answer, in seconds.
        max_events: So many events are kept; a reader that is further behind has to list everything again.
        sentinel_username, sentinel_password: For the sentinels, if they want any.
        database: Only for `redis+unix`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,64}$")] = "ssfserve"
    blobs: Annotated[str, Field(pattern=r"^[a-z][a-z0-9+.-]*://.+")] | None = None
    timeout: Annotated[float, Field(gt=0, le=300, allow_inf_nan=False)] = 5.0
    max_events: Annotated[int, Field(ge=1, le=10_000_000)] = 100_000
    ssl_ca_certs: Path | None = None
    ssl_certfile: Path | None = None
    ssl_keyfile: Path | None = None
    sentinel_username: str | None = None
    sentinel_password: str | None = None
    database: Annotated[int, Field(ge=0, le=99_999)] = 0

    @model_validator(mode="after")
    def _files_exist(self) -> Self:
        for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"):
            path = getattr(self, name)
            if path is not None and not path.is_file():
                raise ValueError(f"{name} is no file: {path}")
        return self


class RedisTarget(NamedTuple):
    """One server, at `servers[0]` or at a socket's `path`; or the sentinels that know it as `service`."""

    servers: tuple[Address, ...]
    path: str | None
    service: str | None
    username: str | None
    password: str | None
    database: int
    tls: bool
    options: Options

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read a URL.

        Raises:
            RegistryUrlInvalid: It names the part that is wrong, and no value that may be secret.
        """
        scheme = url.partition(":")[0]
        try:
            parts = urlsplit(url)
        except ValueError:
            raise RegistryUrlInvalid(f"{scheme}:", "the host is not `host:port`") from None
        options = _options(parts)
        login, _, hosts = parts.netloc.rpartition("@")
        name, _, password = login.partition(":")
        service, database, path = None, options.database, None
        if scheme == "redis+unix":
            path = unquote(parts.path)
            if hosts or len(path) < 2:
                raise RegistryUrlInvalid(f"{scheme}:", "give the socket as redis+unix:///path/of/the.sock")
        elif scheme.endswith("+sentinel"):
            service, database = _service(parts)
        else:
            database = _database(parts, parts.path[1:])
        return cls(
            servers=() if path else _servers(parts, hosts, many=service is not None),
            path=path,
            service=service,
            username=unquote(name) or None,
            password=unquote(password) or None,
            database=database,
            tls=scheme.startswith("rediss"),
            options=options,
        )


def _options(parts: SplitResult) -> Options:
    try:
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise RegistryUrlInvalid(f"{parts.scheme}:", "options are `name=value`, joined by `&`") from None
    given = dict(pairs)
    if len(given) != len(pairs) or parts.fragment:
        raise RegistryUrlInvalid(f"{parts.scheme}:", "an option is given twice, or there is a `#`")
    if parts.scheme != "redis+unix" and "database" in given:
        raise RegistryUrlInvalid(f"{parts.scheme}:", "give the database as a number behind the slash")
    try:
        return Options.model_validate(given)
    except ValidationError as error:
        raise RegistryUrlInvalid(f"{parts.scheme}:", _explain(error)) from None


def _explain(error: ValidationError) -> str:
    first = error.errors(include_input=False, include_url=False)[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    reason = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        reason = f"no such option; there are {', '.join(Options.model_fields)}"
    return f"{name}: {reason}" if name else reason


def _servers(parts: SplitResult, hosts: str, *, many: bool) -> tuple[Address, ...]:
    found = []
    for text in hosts.split(",") if many else [hosts]:
        match = _HOST.fullmatch(text)
        if match is None or int(match[2] or 1) not in range(1, 65536):
            raise RegistryUrlInvalid(f"{parts.scheme}:", "the host is missing, or is not `host:port`")
        found.append(Address(match[1].strip("[]"), int(match[2] or (SENTINEL_PORT if many else PORT))))
    return tuple(found)


def _service(parts: SplitResult) -> tuple[str, int]:
    service, _, database = parts.path[1:].partition("/")
    if not service:
        raise RegistryUrlInvalid(f"{parts.scheme}:", "name the service behind the sentinels: host:26379/name")
    return unquote(service), _database(parts, database)


def _database(parts: SplitResult, text: str) -> int:
    if text and _DATABASE.fullmatch(text) is None:
        raise RegistryUrlInvalid(f"{parts.scheme}:", "the database is a number behind the slash")
    return int(text or 0)
