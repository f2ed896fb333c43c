"""Reading the folder that PEFT writes: `adapter_config.json`, and the tensors that were trained.

    <module>.ia3_l                      a vector of (IA)³: [out, 1], or [1, in] if it scales the input
    <module>.ln_tuning_layers.weight    a norm of LN tuning, whole; `.bias` likewise
    <module>.<parameter>                a module of `modules_to_save`, whole

each with `base_model.model.` in front.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from adapters import strict_json
from adapters.checkpoint_file import load_checkpoint, tensors_of, without_prefixes
from adapters.errors import CheckpointInvalid
from adapters.strict_json import shown

CONFIG = "adapter_config.json"
FILES = ("adapter_model.safetensors", "adapter_model.bin")
WRAPPED = "base_model.model."
IA3, LN_TUNING = "IA3", "LN_TUNING"
VECTOR, NORM = ".ia3_l", ".ln_tuning_layers"
MARKS = {IA3: VECTOR, LN_TUNING: NORM}
CHANGE_WEIGHTS = ("LORA", "LOHA", "LOKR", "OFT", "VERA", "HRA", "BONE", "MISS", "FT", "SHIRA", "C3A")
ADD_TOKENS = ("PROMPT", "PREFIX", "P_TUNING", "CPT")
ALL_LINEAR = "all-linear"

State = dict[str, Tensor]
Modules = list[str] | str | None


class PeftConfig(BaseModel):
    """What of `adapter_config.json` matters here."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    peft_type: Literal["IA3", "LN_TUNING"]
    target_modules: Modules = None
    exclude_modules: Modules = None
    feedforward_modules: Modules = None
    modules_to_save: Modules = None
    base_model_name_or_path: str | None = None
    peft_version: str | None = None

    @property
    def saved(self) -> tuple[str, ...]:
        listed = self.modules_to_save or ()
        return (listed,) if isinstance(listed, str) else tuple(listed)

    def targets(self, module: str) -> bool:
        """Whether PEFT trains a module, by its name in the wrapped model; it may, if none is listed."""
        if self.exclude_modules and _is_listed(module, self.exclude_modules):
            return False
        return self.target_modules in (None, ALL_LINEAR) or _is_listed(module, self.target_modules)

    def is_feedforward(self, module: str) -> bool:
        """Whether a vector scales the input. PEFT compares the ends of names, even within a word."""
        listed = self.feedforward_modules or ()
        if isinstance(listed, str):
            return re.fullmatch(listed, module) is not None
        return any(module.endswith(name) for name in listed)

    def saves(self, module: str) -> bool:
        """Whether a module, or one it is within, is trained and saved whole."""
        return any(f".{name}." in f".{module}." for name in self.saved)


@dataclass(frozen=True)
class PeftAdapter:
    """An adapter of PEFT.

    Attributes:
        source: The folder's name.
        config: How it was trained.
        vectors: (IA)³ vectors by module.
        norms: Parameters of tuned norms, by module and parameter.
        saved: Parameters of modules that were saved whole, by module and parameter.
    """

    source: str
    config: PeftConfig
    vectors: State
    norms: State
    saved: State


def read_peft(folder: Path) -> PeftAdapter:
    """Read a folder.

    Raises:
        CheckpointInvalid: If there is no such adapter in it, it is of another kind, or its parts contradict
            each other.
    """
    source = folder.resolve().name
    config = _config(source, folder / CONFIG)
    file = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if file is None:
        raise CheckpointInvalid(source, f"has no {' and no '.join(FILES)}")
    read = PeftAdapter(source, config, *_sorted(tensors_of(source, load_checkpoint(file))))
    _check_kind(read)
    _check_named(read)
    return read


def _config(source: str, path: Path) -> PeftConfig:
    if not path.is_file():
        raise CheckpointInvalid(source, f"has no {CONFIG}")
    try:
        content = strict_json.loads(path.read_bytes())
    except ValueError as error:
        raise CheckpointInvalid(source, f"has an {CONFIG} that cannot be read: {error}") from error
    kind = content.get("peft_type") if isinstance(content, dict) else None
    if not isinstance(kind, str) or kind not in MARKS:
        raise CheckpointInvalid(source, _why_not(kind))
    try:
        config = PeftConfig.model_validate(content)
        for listed in (config.target_modules, config.exclude_modules, config.feedforward_modules):
            re.compile(listed if isinstance(listed, str) else "")
    except ValidationError as error:
        field = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise CheckpointInvalid(source, f"has an {CONFIG} with a wrong {field}") from error
    except re.error as error:
        raise CheckpointInvalid(source, f"names modules by a pattern that is none: {error}") from error
    return config


def _why_not(kind: object) -> str:
    if not isinstance(kind, str):
        return f"has an {CONFIG} without a peft_type"
    why = "is unknown here"
    if kind.startswith(ADD_TOKENS) or kind.endswith("PROMPT"):
        why = "adds tokens, which no scale and shift can"
    elif any(name in kind for name in CHANGE_WEIGHTS):
        why = "changes weights, which no scale and shift can hold"
    return f"is of type {shown(kind)}, which {why}; {IA3} and {LN_TUNING} convert"


def _sorted(tensors: Mapping[str, Tensor]) -> tuple[State, State, State]:
    """Return vectors, norms and modules saved whole, as the wrapped model calls them."""
    vectors, norms, saved = {}, {}, {}
    for key, tensor in tensors.items():
        name = without_prefixes(key.removeprefix(WRAPPED))
        if name.endswith(VECTOR):
            vectors[name.removesuffix(VECTOR)] = tensor
        elif f"{NORM}." in name:
            norms[name.replace(NORM, "", 1)] = tensor
        else:
            saved[name] = tensor
    return vectors, norms, saved


def _check_kind(read: PeftAdapter) -> None:
    found = {IA3: read.vectors, LN_TUNING: read.norms}
    own = found.pop(read.config.peft_type)
    for kind, tensors in found.items():
        if tensors:
            raise CheckpointInvalid(
                read.source,
                f"is of type {read.config.peft_type} and holds what only {kind} has: {min(tensors)}",
            )
    if not own:
        raise CheckpointInvalid(
            read.source, f"is of type {read.config.peft_type} and holds no {MARKS[read.config.peft_type]}"
        )


def _check_named(read: PeftAdapter) -> None:
    """Compare the tensors with the modules that the config names."""
    config = read.config
    for module in (*read.vectors, *(name.rpartition(".")[0] for name in read.norms)):
        if not config.targets(module):
            raise CheckpointInvalid(
                read.source, f"has trained {module}, which its target_modules do not name"
            )
    for name in read.saved:
        if not config.saves(name.rpartition(".")[0]):
            raise CheckpointInvalid(read.source, f"holds {name}, which its modules_to_save do not name")
    if config.saved and not read.saved:
        raise CheckpointInvalid(read.source, f"lacks {' and '.join(config.saved)}, named in modules_to_save")


def _is_listed(module: str, listed: Modules) -> bool:
    if isinstance(listed, str):
        return re.fullmatch(listed, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in listed or ())
