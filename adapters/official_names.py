"""What the method's reference code calls things, and what timm calls them.

It numbers the vectors within the module above the op they act on (`blocks.3.attn.ssf_scale_1` follows
`blocks.3.attn.qkv`), and a few modules of its models are not where timm has them.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

VECTOR = re.compile(r"(?:(?P<module>.+)\.)?ssf_(?P<kind>scale|shift)_(?P<number>\d+)")
BLOCK, TOP = "block", ""  # a module whose name is a number, and the model itself

_OPS = {
    TOP: ("norm",),
    BLOCK: ("norm1", "norm2"),
    "attn": ("qkv", "proj"),
    "mlp": ("fc1", "fc2"),
    "axial_shift": ("conv1", "conv2_1", "conv2_2", "conv3"),
    "patch_embed": ("proj", "norm"),
    "stem": ("proj", "norm"),
    "downsample": ("norm", "proj"),
}


@dataclass(frozen=True, slots=True)
class Names:
    """One family of the reference code.

    Attributes:
        family: Its name here.
        mark: Part of a key that no family before it in `FAMILIES` has.
        head: The linear classifier, in timm.
        renames: Patterns in keys, and what becomes of them in timm.
        ops: Where it differs from the others: the ops that a module's numbered vectors follow.
    """

    family: str
    mark: str
    head: str
    renames: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = ()
    ops: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def in_timm(self, key: str) -> str:
        for pattern, new in self.renames:
            key = re.sub(pattern, new, key)
        return key

    def site(self, module: str, number: int) -> str | None:
        """Return the timm module that a vector follows; None if the reference code has no such vector."""
        last = module.rpartition(".")[2]
        ops = (_OPS | self.ops).get(BLOCK if last.isdigit() else last, ())
        if not 1 <= number <= len(ops):
            return None
        op = f"{ops[number - 1]}."
        return self.in_timm(f"{module}.{op}" if module else op).removesuffix(".")


def _to_next_stage(found: re.Match[str]) -> str:
    return f"layers.{int(found[1]) + 1}.downsample."


FAMILIES = (
    Names("as_mlp", ".axial_shift.", "head"),
    Names(
        "convnext",
        ".conv_dw.",
        "head.fc",
        renames=(
            (r"^stem\.proj\.", "stem.0."),
            (r"^stem\.norm\.", "stem.1."),
            (r"\.downsample\.norm\.", ".downsample.0."),
            (r"\.downsample\.proj\.", ".downsample.1."),
        ),
        ops={TOP: ("norm_pre",), BLOCK: ("conv_dw", "norm")},
    ),
    Names(
        "swin",
        ".relative_position_bias_table",
        "head.fc",
        # patch merging ends a stage there and begins the next one in timm
        renames=((r"^layers\.(\d+)\.downsample\.", _to_next_stage), (r"^head\.", "head.fc.")),
    ),
    Names("vit", ".attn.qkv.", "head"),
)
