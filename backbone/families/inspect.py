"""Looking a timm model over: each look yields a site, or an error that names the module in the way."""

from collections.abc import Iterator
from dataclasses import dataclass

from timm.layers import Conv2dSame, GluMlp, LayerNorm, LayerNorm2d, LayerScale, Linear, Mlp, SwiGLU
from timm.layers.norm import LayerNorm2dFp32, LayerNormFp32
from torch import nn

from backbone.errors import UnsupportedModel
from backbone.sites import Op, Site

# exact types: a subclass may well compute something else
LINEARS = (nn.Linear, Linear)
CONVOLUTIONS = (nn.Conv2d, Conv2dSame)
LAYER_NORMS = {nn.LayerNorm: -1, LayerNorm: -1, LayerNormFp32: -1, LayerNorm2d: 1, LayerNorm2dFp32: 1}

MLPS = (Mlp, GluMlp, SwiGLU)


@dataclass(frozen=True, slots=True)
class Inspector:
    """A model under inspection, and the name it is called in errors."""

    model: nn.Module
    name: str

    def at(self, path: str) -> nn.Module:
        return self.model.get_submodule(path)

    def has(self, path: str) -> bool:
        """Whether there is a module at a path that does something."""
        parent, _, leaf = path.rpartition(".")
        found = getattr(self.at(parent), leaf, None)
        return found is not None and not isinstance(found, nn.Identity)

    def expect(self, path: str, *kinds: type[nn.Module]) -> nn.Module:
        """Return the module at a path, whose type is exactly one of these."""
        found = self.at(path)
        if type(found) not in kinds:
            wanted = " or ".join(dict.fromkeys(kind.__name__ for kind in kinds))
            raise UnsupportedModel(self.name, path, f"is a {type(found).__name__}, not a {wanted}")
        return found

    def linear(self, path: str, *, layer_scale: str | None = None) -> Site:
        found = self.expect(path, *LINEARS)
        return Site(path, int(found.out_features), Op.LINEAR, layer_scale=layer_scale)

    def conv(self, path: str, *, layer_scale: str | None = None, extra: bool = False) -> Site:
        found = self.expect(path, *CONVOLUTIONS)
        return Site(path, int(found.out_channels), Op.CONV, axis=1, layer_scale=layer_scale, extra=extra)

    def norm(self, path: str, *, extra: bool = False) -> Site:
        found = self.expect(path, *LAYER_NORMS)
        return Site(
            path, int(found.normalized_shape[-1]), Op.LAYER_NORM, LAYER_NORMS[type(found)], extra=extra
        )

    def mlp(self, path: str, *kinds: type[nn.Module], layer_scale: str | None = None) -> Iterator[Site]:
        """Yield the sites of one of `MLPS`; only the kinds given are taken."""
        self.expect(path, *kinds)
        for name in ("fc1", "fc1_g", "fc1_x"):
            if self.has(f"{path}.{name}"):
                yield self.linear(f"{path}.{name}")
        if self.has(f"{path}.norm"):
            yield self.norm(f"{path}.norm")
        yield self.linear(f"{path}.fc2", layer_scale=layer_scale)

    def layer_scale(self, path: str) -> str | None:
        """Return the path if there is a LayerScale, a module or a bare parameter."""
        parent, _, leaf = path.rpartition(".")
        found = getattr(self.at(parent), leaf, None)
        if isinstance(found, nn.Module) and self.has(path):
            self.expect(path, LayerScale)
        return None if found is None or isinstance(found, nn.Identity) else path
