"""Loading a frozen backbone: timm's hub, a local checkpoint, or an offline package.

A source is one of
    auto          the offline package if the model has one that is installed, else the hub
    hub           timm's pretrained weights, downloaded once and cached by huggingface_hub
    offline       an installable package, see backbone/offline.py
    random[:N]    random weights from seed N, for tests and benchmarks
    PATH          a local checkpoint, .safetensors or .pth (read with weights_only)
"""

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from backbone.checkpoint import fitted
from backbone.errors import UnsupportedModel, WeightsInvalid, WeightsUnavailable
from backbone.families import Family, find_sites
from backbone.fingerprint import fingerprint
from backbone.fold import Fold
from backbone.offline import PACKAGES, read_offline
from backbone.preprocess import ImageSpec
from backbone.sites import SiteList
from backbone.unfilled import Unfilled

logger = logging.getLogger(__name__)

WAYS_OUT = (
    "install its offline package (`ssfserve backbones` lists them), give a local checkpoint as the source, "
    "or let this host reach the hub (HF_ENDPOINT, HF_HOME and proxies are honoured)"
)


@dataclass(frozen=True)
class Backbone:
    """A frozen timm model without a head, in eval mode, fp32, and what follows from its weights."""

    name: str
    source: str
    family: Family
    model: nn.Module
    sites: SiteList
    fold: Fold
    spec: ImageSpec
    fingerprint: str

    @property
    def head_width(self) -> int:
        """D: width of the pooled features that a head sees."""
        return int(self.model.head_hidden_size)

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())


def load_backbone(name: str, *, source: str = "auto", input_size: int | None = None) -> Backbone:
    """Load and freeze a backbone.

    Args:
        name: timm model name.
        source: See the module docstring.
        input_size: Height and width in pixels; the model's own if None. Position tables are resampled.

    Raises:
        UnsupportedModel: If timm has no such model, or no family takes it.
        WeightsUnavailable, WeightsInvalid: If the weights cannot be had or do not fit.
    """
    filled = nullcontext() if source.startswith("random") else Unfilled()
    with filled:
        model = create(name, input_size)
    family, sites = find_sites(model, name)
    title = _load_weights(model, name, source)
    model.eval().requires_grad_(False)
    return Backbone(
        name=name,
        source=title,
        family=family,
        model=model,
        sites=sites,
        fold=Fold.of(model, sites),
        spec=_image_spec(model, input_size),
        fingerprint=fingerprint(model.state_dict()),
    )


def create(name: str, input_size: int | None = None) -> nn.Module:
    """Build a timm model without a head, its weights as they come.

    Raises:
        UnsupportedModel: If timm has no such model, or not at this size.
    """
    if not timm.is_model(name.split(".", maxsplit=1)[0]):
        raise UnsupportedModel(name, name, "is not a timm model")
    sized = {} if input_size is None else {"img_size": input_size}
    try:
        return timm.create_model(name, num_classes=0, **sized)
    except TypeError:  # convolutional models take any size and no such argument
        return timm.create_model(name, num_classes=0)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UnsupportedModel(name, name, f"cannot be built: {error}") from error


def _load_weights(model: nn.Module, name: str, source: str) -> str:
    """Fill the model in place; return what the weights are called."""
    if source == "auto":
        return _load_auto(model, name)
    if source == "hub":
        return _load_hub(model, name)
    if source == "offline":
        state, title = read_offline(name, model.state_dict())
        _load_state(model, state, title)
        return title
    if source == "random" or source.startswith("random:"):
        return _load_random(model, source)
    return _load_file(model, Path(source))


def _load_auto(model: nn.Module, name: str) -> str:
    if name in PACKAGES:
        try:
            return _load_weights(model, name, "offline")
        except WeightsUnavailable as error:
            logger.info("%s; trying the hub", error)
    return _load_hub(model, name)


def _load_hub(model: nn.Module, name: str) -> str:
    """Take the weights from timm's own model at its own size: timm knows every format its hub has."""
    try:
        state = timm.create_model(name, pretrained=True, num_classes=0).state_dict()
    except Exception as error:  # hub, network and file errors share no base class
        raise WeightsUnavailable(name, f"the hub gave none ({type(error).__name__}); {WAYS_OUT}") from error
    title = "timm hub: " + str(
        model.pretrained_cfg.get("hf_hub_id") or model.pretrained_cfg.get("url") or name
    )
    _load_state(model, state, title)
    return title


def _load_random(model: nn.Module, source: str) -> str:
    seed = source.partition(":")[2] or "0"
    if not seed.isdigit():
        raise WeightsInvalid(source, "the seed must be a whole number")
    generator = torch.Generator().manual_seed(int(seed))
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(_plausible(tensor, noise))
    return f"random weights, seed {seed}"


def _plausible(tensor: Tensor, noise: Tensor) -> Tensor:
    """Keep activations of order one: scale matrices by fan-in, move vectors a little."""
    if tensor.numel() == tensor.shape[-1:].numel():
        # to the 0 or 1 it was made as: some modules draw their biases from the global generator
        return tensor.round() + 0.02 * noise
    fan_in = tensor[0].numel()
    return noise / fan_in**0.5 if tensor.shape[0] > 1 else 0.02 * noise


def _load_file(model: nn.Module, path: Path) -> str:
    if not path.is_file():
        raise WeightsUnavailable(str(path), f"there is no such file; {WAYS_OUT}")
    try:
        state = timm.models.load_state_dict(str(path), weights_only=True)
    except Exception as error:
        raise WeightsInvalid(str(path), f"it cannot be read as a checkpoint ({error})") from error
    _load_state(model, state, str(path))
    return str(path)


def _load_state(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    try:
        model.load_state_dict(fitted(state, model), strict=True)
    except RuntimeError as error:
        raise WeightsInvalid(source, str(error).replace("\n\t", " ")) from error


def _image_spec(model: nn.Module, input_size: int | None) -> ImageSpec:
    config = timm.data.resolve_model_data_config(model)
    height, width = config["input_size"][1:] if input_size is None else (input_size, input_size)
    return ImageSpec(
        height=height,
        width=width,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
    )
