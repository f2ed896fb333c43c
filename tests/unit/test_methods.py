"""Every method of tuning: what it trains, what it leaves alone, and whether it makes an adapter."""

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from torch import Tensor

from adapters.bottleneck import BottleneckModel, ends_of_parts
from adapters.data import Dataset, load_dataset, split
from adapters.fitting import Fitted, fit_method
from adapters.full_tuning import FullModel
from adapters.inputs import Standard, TunedInputs
from adapters.methods import build
from adapters.prompts import PromptedModel
from adapters.recipe import COMPARED, Recipe
from adapters.stochastic import set_drop_path
from adapters.training import train
from backbone.errors import UnsupportedModel
from backbone.fingerprint import fingerprint
from backbone.load import Backbone
from backbone.sites import Op
from backbone.tuned import TunedModel
from tests.models import make_backbone
from tests.pictures import write_folder

METHODS = ("ssf", "bias", "norm", "linear", "full", "vpt-deep", "adapter")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return make_backbone("vit")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, backbone: Backbone) -> Dataset:
    return load_dataset(write_folder(tmp_path_factory.mktemp("x") / "tints", each=12), backbone.spec)


def recipe_of(method: str, **changes: object) -> Recipe:
    values = {"epochs": 3, "batch_size": 8, "lr": 2e-3, "head_lr": 1e-2, "val_fraction": 0.25} | changes
    return Recipe.model_validate({"method": method, **values})


def fitted(backbone: Backbone, dataset: Dataset, recipe: Recipe) -> Fitted:
    return fit_method(backbone, dataset, split(dataset, recipe.val_fraction, recipe.seed), recipe)


def images(backbone: Backbone, count: int = 3) -> Tensor:
    shape = (count, 3, backbone.spec.height, backbone.spec.width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("method", METHODS)
def test_a_method_learns_and_leaves_the_backbone_as_it_was(
    method: str, backbone: Backbone, dataset: Dataset
) -> None:
    result = fitted(backbone, dataset, recipe_of(method, epochs=30 if method == "linear" else 3))
    assert fingerprint(backbone.model.state_dict()) == backbone.fingerprint
    assert result.accuracy(dataset.pixels, dataset.targets) > 0.9
    moved = [t.parameter for t in result.inputs.tunables()]
    start = build(backbone, recipe_of(method), torch.Generator().manual_seed(0))
    before = [p for p in start.parameters() if p.requires_grad]
    assert len(moved) == len(before)
    assert all(not torch.equal(a, b) for a, b in zip(moved, before, strict=True)) or method == "linear"


@pytest.mark.parametrize("method", ["bias", "norm", "vpt-deep", "adapter", "full"])
def test_what_starts_at_the_identity_computes_what_the_backbone_does(method: str, backbone: Backbone) -> None:
    tuned = build(backbone, recipe_of(method, prompts=1), torch.Generator().manual_seed(0)).eval()
    x = images(backbone)
    with torch.inference_mode():
        near = torch.allclose(tuned(x), backbone.model(x), atol=1e-6)
    assert near == (method != "vpt-deep")  # its tokens are there from the first step


@pytest.mark.parametrize("kind", ["vit", "swin", "convnext", "mixer", "efficientnet", "resnet"])
def test_bias_tuning_trains_exactly_the_biases_that_are_there(kind: str) -> None:
    backbone = make_backbone(kind)
    tuned = build(backbone, recipe_of("bias"), torch.Generator())
    assert isinstance(tuned, TunedModel)
    assert tuned.scale() == {}
    for name in tuned.shift():
        module = backbone.model.get_submodule(name)
        assert (module.beta if hasattr(module, "beta") else module.bias) is not None, name
    assert 0 < len(tuned.shift()) <= len(backbone.sites)


def test_a_bias_that_moves_is_the_shift_that_moves(backbone: Backbone) -> None:
    tuned = build(backbone, recipe_of("bias"), torch.Generator())
    assert isinstance(tuned, TunedModel)
    plain = build(backbone, recipe_of("full"), torch.Generator()).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.inference_mode():
        for site, vectors in zip(tuned.sites, tuned.vectors, strict=True):
            move = 0.1 * torch.randn(site.width, generator=generator)
            vectors.shift.add_(move)
            plain.model.get_submodule(site.name).bias.add_(move)
        assert torch.allclose(tuned(images(backbone)), plain(images(backbone)), atol=1e-5)


def test_norm_tuning_is_at_the_norms_alone(backbone: Backbone) -> None:
    tuned = build(backbone, recipe_of("norm"), torch.Generator())
    assert isinstance(tuned, TunedModel)
    assert {site.name for site in tuned.sites} == {s.name for s in backbone.sites if s.op is Op.LAYER_NORM}
    assert tuned.scale().keys() == tuned.shift().keys()


@pytest.mark.parametrize(("method", "tensors"), [("bias", "shift/"), ("norm", "scale/ shift/")])
def test_a_small_method_makes_an_adapter_with_what_it_trains(
    method: str, tensors: str, backbone: Backbone, dataset: Dataset
) -> None:
    adapter = train(backbone, dataset, recipe_of(method, epochs=1))
    assert adapter.manifest.method == method
    kinds = {name.partition("/")[0] + "/" for name in adapter.tensors() if "/" in name}
    assert kinds == set(tensors.split())
    names = [site.name for site in adapter.manifest.sites]
    assert set(names) == {*adapter.scale, *adapter.shift}
    assert names == [site.name for site in backbone.sites if site.name in names]


@pytest.mark.parametrize("method", sorted(COMPARED))
def test_a_method_for_comparison_makes_no_adapter(method: str, backbone: Backbone, dataset: Dataset) -> None:
    with pytest.raises(ValueError, match=f"{method} makes no adapter"):
        train(backbone, dataset, recipe_of(method, epochs=1))


def test_prompts_stand_behind_the_class_token_in_every_block(backbone: Backbone) -> None:
    prompted = PromptedModel(backbone.model, "vit", prompts=3, generator=torch.Generator().manual_seed(0))
    seen: list[Tensor] = []
    for block in prompted.model.blocks:
        block.norm1.register_forward_pre_hook(lambda _module, args: seen.append(args[0].detach()))
    tokens: list[Tensor] = []
    prompted.model.norm.register_forward_pre_hook(lambda _module, args: tokens.append(args[0]))
    prompted(images(backbone))
    plain = 1 + prompted.model.patch_embed.num_patches
    assert tokens[0].shape[1] == plain
    for index, entering in enumerate(seen):
        assert entering.shape[1] == plain + 3
        expected = prompted.prompts[index].detach().expand(3, -1, -1)
        assert torch.equal(entering[:, 1:4], expected), f"block {index}"


@pytest.mark.parametrize("kind", ["efficientnet", "swin", "eva"])
def test_prompts_need_a_plain_sequence_of_tokens(kind: str) -> None:
    with pytest.raises(UnsupportedModel, match="takes prompts"):
        build(make_backbone(kind), recipe_of("vpt-deep"), torch.Generator())


@pytest.mark.parametrize("kind", ["vit", "swin", "convnext", "mixer", "efficientnet", "resnet"])
def test_bottlenecks_stand_at_the_ends_of_parts(kind: str) -> None:
    backbone = make_backbone(kind)
    ends = ends_of_parts(tuple(backbone.sites))
    assert len({site.name.rpartition(".")[0] for site in ends}) == len(ends) > 1
    model = build(backbone, recipe_of("adapter"), torch.Generator().manual_seed(0))
    assert isinstance(model, BottleneckModel)
    x = images(backbone)
    with torch.inference_mode():
        before = model(x)
        for bottleneck in model.bottlenecks:
            bottleneck.up_bias.normal_(generator=torch.Generator().manual_seed(2))
        assert not torch.allclose(model(x), before, atol=1e-3)
    if kind == "vit":
        assert [s.name for s in ends[:2]] == ["blocks.0.attn.proj", "blocks.0.mlp.fc2"]


def test_full_tuning_moves_weights_and_no_batch_statistics(dataset: Dataset) -> None:
    backbone = make_backbone("efficientnet")
    tuned = fitted(backbone, dataset, recipe_of("full", epochs=1)).inputs.tuned
    assert isinstance(tuned, FullModel)
    for own, other in zip(backbone.model.buffers(), tuned.model.buffers(), strict=True):
        assert torch.equal(own, other)
    for own, other in zip(backbone.model.parameters(), tuned.model.parameters(), strict=True):
        assert not torch.equal(own, other)


def test_a_channel_that_never_varied_does_not_explode_when_it_starts_to() -> None:
    """A ReLU's channel may be off on all training images until the model trains."""
    features = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    features[:, 3] = 0
    changed = features.clone()
    changed[0, 3] = 1.0
    assert Standard.of(features).apply(changed).abs().max() < 20


@pytest.mark.parametrize("kind", ["vit", "swin", "convnext", "mobilenet", "resnet"])
def test_drop_path_drops_in_training_alone(kind: str, dataset: Dataset) -> None:
    backbone = make_backbone(kind)
    recipe = recipe_of("ssf", drop_path=0.5)
    inputs = TunedInputs(backbone, dataset.pixels, recipe, torch.Generator().manual_seed(0))
    one, other = (next(inputs.seen([torch.arange(6)])) for _ in range(2))
    assert not torch.equal(one, other)
    assert torch.equal(inputs.eval(torch.arange(6)), inputs.eval(torch.arange(6)))


def test_drop_path_rises_over_the_blocks(backbone: Backbone) -> None:
    model = build(backbone, recipe_of("ssf"), torch.Generator()).model
    rates = [module.drop_prob for module in set_drop_path(model, 0.2)]
    assert rates == sorted(rates) and rates[-1] == pytest.approx(0.2)
    assert set_drop_path(model, 0.0) == []


def test_weight_decay_is_for_matrices_of_full_tuning_and_for_no_vector(backbone: Backbone) -> None:
    def decaying(method: str) -> set[int]:
        inputs = TunedInputs(
            backbone, torch.zeros(2, 3, 32, 32, dtype=torch.uint8), recipe_of(method), torch.Generator()
        )
        return {t.parameter.ndim for t in inputs.tunables() if t.decays}

    assert decaying("full") == {2, 4}
    assert decaying("adapter") == {2}
    assert decaying("ssf") == decaying("vpt-deep") == decaying("bias") == set()


def test_a_compiled_step_takes_the_same_course(
    backbone: Backbone, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced and differentiated ahead of time as always; only the minute of making machine code is spared."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    losses = {}
    for compiled in (False, True):
        recipe = recipe_of("ssf", epochs=2, compile=compiled, lr=1e-2, warm_start=False)
        losses[compiled] = fitted(backbone, dataset, recipe).outcome.train.loss
    assert losses[True] == pytest.approx(losses[False], rel=1e-3)
