"""Every setting of the server: read once, at start, from the environment and an optional file.

This is the only module that reads the environment. `docs/configuration.md` is made from it.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import ByteSize, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from server.errors import SettingsInvalid

PREFIX = "SSFSERVE_"
CONFIG_VARIABLE = f"{PREFIX}CONFIG"
NOT_SETTINGS = frozenset({"config", "url", "key"})  # the last two are options of the command line's client
SECRET = frozenset({"registry"})  # a URL may hold a password: never repeat its value

KIB, MIB, GIB = 2**10, 2**20, 2**30

RANDOM = re.compile(r"random(:\d+)?")  # weights for tests and benchmarks

Bytes = Annotated[ByteSize, Field(ge=KIB)]
Milliseconds = Annotated[int, Field(ge=1, le=3_600_000)]
Threads = Annotated[int, Field(ge=0, le=1024)]


def is_local(host: str | None) -> bool:
    """Tell whether a host's name or address is this machine's own."""
    try:
        return ip_address((host or "").strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="forbid", validate_default=True
    )

    host: Annotated[str, Field(min_length=1, description="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535, description="Port to listen on.")] = 8000
    tls_cert: Annotated[
        Path | None,
        Field(description="The server's certificate with its chain, in PEM; clients then speak HTTPS only."),
    ] = None
    tls_key: Annotated[
        Path | None, Field(description="The certificate's private key, in PEM without a password.")
    ] = None
    allow_unauthenticated: Annotated[
        bool, Field(description="Listen beyond loopback although no API key exists.")
    ] = False
    replicas: Annotated[int, Field(ge=1, le=256, description="Engines, each in its own process.")] = 1

    max_replicas: Annotated[
        int | None,
        Field(
            ge=1,
            le=256,
            description="Most engines; if more than `SSFSERVE_REPLICAS`, load decides how many run.",
        ),
    ] = None
    target_ongoing: Annotated[
        int | None,
        Field(
            ge=1,
            description="Requests under way, waiting ones included, that load is to bring to each engine; "
            "by default twice `SSFSERVE_MAX_BATCH`.",
        ),
    ] = None
    scale_up_delay_ms: Annotated[
        Milliseconds, Field(description="For how long more engines must be wanted before one starts.")
    ] = 10_000
    scale_down_delay_ms: Annotated[
        Milliseconds, Field(description="For how long fewer must be wanted before one stops.")
    ] = 300_000

    backbone: Annotated[str, Field(min_length=1, description="timm model name.")] = "vit_small_patch14_dinov2"
    backbone_source: Annotated[
        str,
        Field(
            description="Where its weights come from: `hub`, `offline` (installed packages), `auto` (offline "
            "where a package has them, else the hub), or the path of a checkpoint."
        ),
    ] = "auto"
    input_size: Annotated[
        int, Field(ge=32, le=4096, description="Height and width in pixels of what the backbone sees.")
    ] = 224
    dtype: Annotated[
        Literal["auto", "bfloat16", "float16", "float32", "float8", "int8"],
        Field(
            description="Arithmetic of the backbone; `auto`: bfloat16 where the device has it, else float32. "
            "`float8` and `int8` multiply linear layers in it, on a GPU and on a CPU without bfloat16."
        ),
    ] = "auto"
    executor: Annotated[
        Literal["auto", "torch", "openvino", "cuda"],
        Field(
            description="What runs the backbone; `auto`: the kernels (`cuda`) on a GPU, OpenVINO on a CPU "
            "where it is installed, else torch."
        ),
    ] = "auto"
    device: Annotated[
        Literal["auto", "cpu", "cuda"], Field(description="`auto`: the GPU if there is one.")
    ] = "auto"
    threads: Annotated[Threads, Field(description="Threads of one forward on the CPU; 0: one per core.")] = 0
    decode_threads: Annotated[Threads, Field(description="Threads that decode images; 0: one per core.")] = 0

    decoding: Annotated[
        Literal["fast", "pillow", "scaled"],
        Field(
            description="How images are read. `fast`: as training reads them, within one grey level but for "
            "a few values in a million; `pillow`: bit for bit as training, slower; `scaled`: large JPEGs are "
            "decoded at 1/2, 1/4 or 1/8 of their size, faster still; fine detail differs by some grey levels."
        ),
    ] = "fast"

    data_dir: Annotated[
        Path, Field(description="The embedded registry, disk cache, graphs, and features of linear probes.")
    ] = Path("data")
    registry: Annotated[
        str,
        Field(
            pattern=r"^(embedded:|rediss?(\+sentinel)?://|redis\+unix://)",
            description="`embedded:` (SQLite in the data directory), or `redis://…` and its relatives, for "
            "several hosts; see [registry.md](registry.md).",
        ),
    ] = "embedded:"
    registry_poll_ms: Annotated[Milliseconds, Field(description="How often changes are looked for.")] = 200
    lease_ms: Annotated[
        Milliseconds,
        Field(
            description="How long a silent replica is waited for when an alias moves; never less than "
            "five times `SSFSERVE_REGISTRY_POLL_MS`."
        ),
    ] = 10_000
    when_cut_off: Annotated[
        Literal["serve", "refuse"],
        Field(
            description="What a replica does with requests for an alias once it has not reached the registry "
            "for its lease: go on with what it knows, or answer 503; see [operations.md](operations.md)."
        ),
    ] = "serve"
    seed_dir: Annotated[
        Path | None,
        Field(
            description="Adapters `<task>.safetensors` to register at start where the task does not exist."
        ),
    ] = None

    slots: Annotated[int, Field(ge=1, le=65536, description="Adapters on the device at a time.")] = 64
    max_pinned: Annotated[
        int | None, Field(ge=0, description="Adapters that may be pinned; by default half of the slots.")
    ] = None
    host_cache_bytes: Annotated[Bytes, Field(description="Host memory for folded adapters.")] = ByteSize(GIB)
    disk_cache_bytes: Annotated[
        Bytes, Field(description="Disk space for adapter files fetched from the registry.")
    ] = ByteSize(8 * GIB)

    max_classes: Annotated[
        int,
        Field(
            ge=1,
            le=8192,
            description="Classes of an adapter that each slot of a GPU has room for; wider ones are refused.",
        ),
    ] = 1024
    gpu_memory_fraction: Annotated[
        float,
        Field(
            gt=0,
            le=1,
            description="Share of a GPU's memory that a replica may take; what does not fit stops the start.",
        ),
    ] = 0.9

    max_batch: Annotated[int, Field(ge=1, le=1024, description="Images in one forward.")] = 16
    max_queue: Annotated[
        int,
        Field(ge=1, description="Images that may wait for the device, and for decoding; the next gets 429."),
    ] = 1024
    max_queue_per_task: Annotated[
        int, Field(ge=1, description="Images of one task that may wait; the next gets 429.")
    ] = 256
    key_images_per_second: Annotated[
        float,
        Field(
            ge=0,
            allow_inf_nan=False,
            description="Images per second that each replica answers to one key, unless the key has a rate "
            "of its own; 0: no limit. See [access.md](access.md).",
        ),
    ] = 0
    key_max_concurrent: Annotated[
        int,
        Field(ge=0, description="Images of one key that may be under way in each replica; 0: no limit."),
    ] = 0
    task_images_per_second: Annotated[
        float,
        Field(
            ge=0,
            allow_inf_nan=False,
            description="Images per second that each replica answers for one task; 0: no limit.",
        ),
    ] = 0
    task_max_concurrent: Annotated[
        int,
        Field(ge=0, description="Images of one task that may be under way in each replica; 0: no limit."),
    ] = 0
    rate_burst_ms: Annotated[Milliseconds, Field(description="How much of a rate may come at once.")] = 1000
    request_timeout_ms: Annotated[
        Milliseconds, Field(description="Longest time for an answer; a client may ask for less.")
    ] = 30_000
    body_timeout_ms: Annotated[
        Milliseconds, Field(description="Longest time for a client to send its body.")
    ] = 30_000
    drain_timeout_ms: Annotated[
        Milliseconds, Field(description="Longest time to finish accepted requests at shutdown.")
    ] = 30_000

    max_body_bytes: Annotated[Bytes, Field(description="Largest body of a prediction.")] = ByteSize(32 * MIB)
    max_adapter_bytes: Annotated[Bytes, Field(description="Largest adapter file.")] = ByteSize(64 * MIB)
    max_pixels: Annotated[
        int,
        Field(
            ge=1,
            description="Largest image in pixels, checked before decoding, and what one replica decodes at a "
            "time: up to 20 bytes of memory each.",
        ),
    ] = 64_000_000
    max_images_per_request: Annotated[int, Field(ge=1, le=4096, description="Images in `/v1/predict`.")] = 64
    max_rows_per_request: Annotated[
        int, Field(ge=1, le=65536, description="Pairs of image and task in `/v1/predict`.")
    ] = 256

    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Field(description="Least level that is logged.")
    ] = "info"
    log_format: Annotated[Literal["json", "text"], Field(description="One line per record, either way.")] = (
        "json"
    )
    access_log: Annotated[bool, Field(description="Log one line per request.")] = True
    metrics_tasks: Annotated[
        int, Field(ge=0, le=10_000, description="Tasks that metrics name; the rest count as `other`.")
    ] = 100

    @property
    def graph_cache(self) -> Path:
        """Where converted graphs are kept; they hold the backbone and nothing of any adapter."""
        return self.data_dir / "graphs"

    @property
    def pin_limit(self) -> int:
        return self.slots // 2 if self.max_pinned is None else self.max_pinned

    @property
    def most_replicas(self) -> int:
        return self.replicas if self.max_replicas is None else self.max_replicas

    @property
    def lease_seconds(self) -> float:
        return max(self.lease_ms, 5 * self.registry_poll_ms) / 1000

    @property
    def is_loopback(self) -> bool:
        """True where only this machine can connect. Names other than `localhost` are not looked up."""
        return is_local(self.host)

    @field_validator("backbone_source")
    @classmethod
    def _source_is_known(cls, value: str) -> str:
        named = {"auto", "hub", "offline"}
        if value not in named and not RANDOM.fullmatch(value) and not Path(value).is_file():
            raise ValueError("is neither auto, hub, offline nor a file that exists")
        return value

    @field_validator("seed_dir")
    @classmethod
    def _seed_dir_exists(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_dir():
            raise ValueError("is not a directory")
        return value

    @model_validator(mode="after")
    def _pins_leave_a_slot(self) -> Self:
        if self.pin_limit >= max(self.slots, 2):
            raise ValueError(
                f"{PREFIX}MAX_PINNED must be less than {PREFIX}SLOTS, or nothing else can be loaded"
            )
        return self

    @model_validator(mode="after")
    def _most_are_not_fewer(self) -> Self:
        if self.most_replicas < self.replicas:
            raise ValueError(f"{PREFIX}MAX_REPLICAS must not be less than {PREFIX}REPLICAS")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)  # `load` alone reads the environment, so an object never changes on its way

    @classmethod
    def load(cls, overrides: Mapping[str, Any] | None = None) -> Self:
        """Read the settings: `overrides` win over the environment, which wins over the file.

        Raises:
            SettingsInvalid: Naming each unknown or invalid setting and the reason.
        """
        named = {name.upper().removeprefix(PREFIX).lower() for name in os.environ if _is_ours(name)}
        _refuse_unknown("environment", named - NOT_SETTINGS, cls.model_fields)
        from_file = _read_file(os.environ.get(CONFIG_VARIABLE) or None)
        _refuse_unknown(os.environ.get(CONFIG_VARIABLE, "file"), from_file, cls.model_fields)
        try:
            return cls(**{**from_file, **EnvSettingsSource(cls)(), **(overrides or {})})
        except ValidationError as error:
            raise SettingsInvalid(_explain(error)) from None


def check_exposure(settings: Settings, *, has_keys: bool) -> None:
    """Refuse to offer the server to a network without keys, unless told so.

    Raises:
        SettingsInvalid: With the three ways out.
    """
    if settings.is_loopback or has_keys or settings.allow_unauthenticated:
        return
    raise SettingsInvalid(
        f"{PREFIX}HOST: {settings.host} can be reached from other machines and no API key exists; make one "
        f"with `ssfserve keys add`, listen on 127.0.0.1, or set {PREFIX}ALLOW_UNAUTHENTICATED=true"
    )


def _is_ours(name: str) -> bool:
    return name.upper().startswith(PREFIX) and bool(os.environ[name])


def _read_file(name: str | None) -> dict[str, Any]:
    if name is None:
        return {}
    path = Path(name)
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        raise SettingsInvalid(f"{CONFIG_VARIABLE}: {path} cannot be read: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise SettingsInvalid(f"{CONFIG_VARIABLE}: {path} must hold names and values")
    return content


def _refuse_unknown(where: str, names: set[str] | dict[str, Any], known: Mapping[str, Any]) -> None:
    unknown = sorted(name for name in names if name not in known)
    if unknown:
        listed = ", ".join(f"{PREFIX}{name.upper()}" if where == "environment" else name for name in unknown)
        raise SettingsInvalid(f"unknown settings in {where}: {listed}")


def _explain(error: ValidationError) -> str:
    return "; ".join(
        _explain_one(str(item["loc"][0]) if item["loc"] else "", item) for item in error.errors()
    )


def _explain_one(name: str, item: Mapping[str, Any]) -> str:
    reason = str(item["msg"]).removeprefix("Value error, ")
    if not name:
        return reason
    got = "" if name in SECRET else f" (got {str(item['input'])[:80]!r})"
    return f"{PREFIX}{name.upper()}: {reason}{got}"
