"""The invariants of the mixed-task forward, for small models of every family."""

import pytest
import torch
from torch import Tensor

from adapters.merge import merge_sites
from backbone.bank import IDENTITY, Bank
from backbone.fingerprint import fingerprint
from backbone.load import Backbone, load_backbone
from backbone.mixed import MixedModel
from backbone.tuned import TunedModel
from tests.models import KINDS, make_backbone, unmergeable

REAL = {"efficientnet_lite0": ("tf_efficientnet_lite0", 64)}
N_TASKS = 5
MIXES = {
    "identical": [1] * 6,
    "distinct": [1, 2, 3, 4, 5, 0],
    "uniform": [3, 1, 3, 2, 5, 1],
    "skewed": [2, 4, 4, 4, 4, 4],
}
# fp32 arithmetic in another order, over up to 50 layers; logits and features are of order one to ten
FP32_TOLERANCE = 2e-5


class World:
    """A random backbone, adapters whose vectors lie far from the identity, and a bank that holds them."""

    def __init__(self, kind: str) -> None:
        self.kind, self.backbone = kind, make(kind)
        size = self.backbone.spec.height
        generator = torch.Generator().manual_seed(1)
        sites = self.backbone.sites
        self.scale = [vectors(sites.widths, 1.0, generator) for _ in range(N_TASKS)]
        self.shift = [vectors(sites.widths, 0.0, generator) for _ in range(N_TASKS)]
        self.images = torch.randn(6, 3, size, size, generator=generator)
        self.mixed = MixedModel(self.backbone.model, sites)
        self.bank = Bank(self.backbone.fold, N_TASKS)
        for slot in range(1, N_TASKS + 1):
            self.bank.write(slot, self.row(slot))

    def row(self, slot: int) -> Tensor:
        return self.backbone.fold.row(self.scale[slot - 1], self.shift[slot - 1])

    def mergeable(self, slot: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the vectors of a slot's adapter at the sites that plain weights can take up."""
        kept = self.scale[slot - 1].keys() - set(unmergeable(self.kind, self.backbone))
        return (
            {name: self.scale[slot - 1][name] for name in kept},
            {name: self.shift[slot - 1][name] for name in kept},
        )

    @torch.no_grad()
    def run(self, images: Tensor, slots: list[int]) -> Tensor:
        return self.mixed(images, self.bank.gather(torch.tensor(slots)))

    @torch.no_grad()
    def reference(self, image: Tensor, slot: int) -> Tensor:
        if slot == IDENTITY:
            return self.backbone.model(image)
        tuned = TunedModel(self.backbone.model, self.backbone.sites)
        tuned.set_vectors(self.scale[slot - 1], self.shift[slot - 1])
        return tuned(image)


def make(kind: str) -> Backbone:
    if kind in REAL:
        name, size = REAL[kind]
        return load_backbone(name, source="random:0", input_size=size)
    return make_backbone(kind)


def vectors(widths: dict[str, int], centre: float, generator: torch.Generator) -> dict[str, Tensor]:
    return {name: centre + 0.1 * torch.randn(width, generator=generator) for name, width in widths.items()}


@pytest.fixture(scope="module", params=[*(kind for kind in KINDS if kind != "efficientnet"), *REAL])
def world(request: pytest.FixtureRequest, one_thread: None) -> World:
    return World(request.param)


@pytest.mark.parametrize("mix", MIXES)
def test_mixed_batch_equals_one_task_at_a_time(world: World, mix: str) -> None:
    together = world.run(world.images, MIXES[mix])
    alone = [world.reference(world.images[i : i + 1], slot) for i, slot in enumerate(MIXES[mix])]
    torch.testing.assert_close(together, torch.cat(alone), rtol=FP32_TOLERANCE, atol=FP32_TOLERANCE)


def test_mixed_batch_equals_merged_models(world: World) -> None:
    adapters = [world.mergeable(slot) for slot in range(1, N_TASKS + 1)]
    rows = torch.stack([world.backbone.fold.row(scale, shift) for scale, shift in adapters])
    with torch.no_grad():
        together = world.mixed(world.images[:N_TASKS], rows)
        for index, (scale, shift) in enumerate(adapters):
            alone = merge_sites(world.backbone, scale, shift)(world.images[index : index + 1])
            torch.testing.assert_close(
                together[index : index + 1], alone, rtol=FP32_TOLERANCE, atol=FP32_TOLERANCE
            )


def test_tasks_of_a_batch_really_differ(world: World) -> None:
    same_image = world.images[:1].expand(N_TASKS + 1, -1, -1, -1)
    out = world.run(same_image, [0, 1, 2, 3, 4, 5])
    distances = torch.cdist(out, out) + 1e9 * torch.eye(N_TASKS + 1)
    assert distances.min() > 100 * FP32_TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_result_depends_on_neither_neighbours_nor_place(world: World, dtype: torch.dtype) -> None:
    mixed = MixedModel(world.backbone.model, world.backbone.sites).to(dtype)
    bank = Bank(world.backbone.fold, N_TASKS, dtype=dtype)
    for slot in range(1, N_TASKS + 1):
        bank.write(slot, world.row(slot))
    images, order = world.images.to(dtype), [4, 2, 5, 0, 3, 1]
    slots = torch.tensor(MIXES["distinct"])
    with torch.no_grad():
        first = mixed(images, bank.gather(slots))
        moved = mixed(images[order], bank.gather(slots[order]))
        others = images.clone()
        others[1:] = torch.randn(others[1:].shape, generator=torch.Generator().manual_seed(9)).to(dtype)
        beside_others = mixed(others, bank.gather(torch.tensor([1, 5, 5, 0, 2, 2])))
    assert torch.equal(moved, first[order])
    assert torch.equal(beside_others[0], first[0])


@pytest.mark.parametrize("poison", [1e30, 0.0, float("nan"), float("inf")], ids=str)
def test_poisoned_adapter_changes_no_other_row(world: World, poison: float) -> None:
    clean = world.run(world.images, MIXES["distinct"])
    kept = world.bank.rows[3].clone()
    world.bank.rows[3] = poison
    poisoned = world.run(world.images, MIXES["distinct"])
    world.bank.rows[3] = kept
    others = [i for i, slot in enumerate(MIXES["distinct"]) if slot != 3]
    assert torch.equal(poisoned[others], clean[others])
    assert not torch.equal(poisoned[2], clean[2])


def test_identity_slot_is_the_plain_model(world: World) -> None:
    with torch.no_grad():
        plain = world.backbone.model(world.images)
    torch.testing.assert_close(
        world.run(world.images, [IDENTITY] * 6), plain, rtol=FP32_TOLERANCE, atol=FP32_TOLERANCE
    )


def test_every_site_acts(world: World) -> None:
    plain = world.run(world.images[:1], [IDENTITY])
    for name in world.backbone.sites.slices:
        # not the same for all channels: a LayerNorm behind would take that out again
        world.bank.rows[1].copy_(world.backbone.fold.row({}, {name: 5 * world.shift[0][name]}))
        moved = world.run(world.images[:1], [1])
        assert not torch.equal(moved, plain), name
    world.bank.write(1, world.row(1))


def test_forward_leaves_its_inputs_alone(world: World) -> None:
    images, rows = world.images.clone(), world.bank.rows.clone()
    world.run(images, MIXES["uniform"])
    assert torch.equal(images, world.images)
    assert torch.equal(rows, world.bank.rows)


def test_backbone_itself_is_untouched(world: World) -> None:
    world.run(world.images, MIXES["uniform"])
    assert fingerprint(world.backbone.model.state_dict()) == world.backbone.fingerprint
