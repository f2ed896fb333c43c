from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from adapters.data import Dataset, load_dataset, split
from adapters.errors import ProbeMismatch
from adapters.evaluation import evaluate, reference
from adapters.file import Adapter, read_adapter, write_adapter
from adapters.fitting import Aids
from adapters.inputs import Standard, TunedInputs, compute_features
from adapters.loop import EpochReport, epoch_order
from adapters.optim import Course, Tunable, make_optimizer, share
from adapters.recipe import Recipe
from adapters.saving import check_as_served, save_checked
from adapters.score import Score
from adapters.training import train
from backbone.errors import UnsupportedModel
from backbone.fingerprint import fingerprint
from backbone.load import Backbone
from backbone.tuned import TunedModel
from tests.models import make_backbone
from tests.pictures import stripes, write_folder

SHORT = Recipe(epochs=2, batch_size=8, lr=1e-2, head_lr=1e-2, augment="flip", val_fraction=0.25)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return make_backbone("vit")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, backbone: Backbone) -> Dataset:
    return load_dataset(write_folder(tmp_path_factory.mktemp("x") / "tints", each=12), backbone.spec)


@pytest.fixture(scope="module")
def faint(tmp_path_factory: pytest.TempPathFactory, backbone: Backbone) -> Dataset:
    folder = tmp_path_factory.mktemp("x") / "stripes"
    return load_dataset(
        write_folder(folder, labels=("across", "down"), each=300, draw=stripes), backbone.spec
    )


@pytest.fixture(scope="module")
def trained(backbone: Backbone, dataset: Dataset) -> Adapter:
    return train(backbone, dataset, SHORT, command="ssfserve train tints")


def same_numbers(one: Adapter, other: Adapter) -> bool:
    a, b = one.tensors(), other.tensors()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_seed_gives_the_same_bits(backbone: Backbone, dataset: Dataset, trained: Adapter) -> None:
    torch.manual_seed(99)
    assert same_numbers(train(backbone, dataset, SHORT), trained)
    assert not same_numbers(train(backbone, dataset, SHORT.model_copy(update={"seed": 1})), trained)


def test_patch_dropout_follows_the_seed_and_leaves_the_global_generator(
    backbone: Backbone, dataset: Dataset, trained: Adapter
) -> None:
    recipe = SHORT.model_copy(update={"patch_drop": 0.5})
    torch.manual_seed(99)
    expected = torch.rand(1, generator=torch.Generator().manual_seed(99))
    dropped = train(backbone, dataset, recipe)
    assert torch.equal(torch.rand(1), expected)
    assert same_numbers(train(backbone, dataset, recipe), dropped)
    assert not same_numbers(dropped, trained)


@pytest.mark.parametrize("kind", ["vit_registers", "efficientnet"])
def test_the_frozen_backbone_does_not_move(kind: str, dataset: Dataset) -> None:
    backbone = make_backbone(kind)
    before = backbone.model.state_dict()
    adapter = train(backbone, dataset, SHORT.model_copy(update={"epochs": 1}))
    assert fingerprint(backbone.model.state_dict()) == fingerprint(before) == backbone.fingerprint
    assert adapter.manifest.backbone.fingerprint == backbone.fingerprint
    assert any(not torch.equal(v, torch.ones_like(v)) for v in adapter.scale.values())


def test_batch_statistics_do_not_move_while_training(dataset: Dataset) -> None:
    backbone = make_backbone("efficientnet")
    inputs = TunedInputs(backbone, dataset.pixels, SHORT, torch.Generator().manual_seed(0))
    before = {name: tensor.clone() for name, tensor in inputs.tuned.model.state_dict().items()}
    next(inputs.seen([torch.arange(8)])).sum().backward()
    after = inputs.tuned.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(p.grad is not None for p in (t.parameter for t in inputs.tunables()))
    assert all(not p.requires_grad for p in inputs.tuned.model.parameters())


def test_every_vector_gets_a_gradient(backbone: Backbone, dataset: Dataset) -> None:
    inputs = TunedInputs(backbone, dataset.pixels, SHORT, torch.Generator().manual_seed(0))
    next(inputs.seen([torch.arange(6)])).square().sum().backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for p in (t.parameter for t in inputs.tunables())
    )


def into(held: list[Score]) -> EpochReport:
    return lambda _epoch, _seen, score: held.append(score)


def train_past_the_best(backbone: Backbone, data: Dataset) -> tuple[Recipe, Adapter, list[Score], int]:
    """Train, so wildly that later need not be better, until the best of 5 epochs is not the last."""
    for seed in range(8):
        held: list[Score] = []
        recipe = SHORT.model_copy(update={"epochs": 5, "lr": 0.3, "batch_size": 64, "seed": seed})
        adapter = train(backbone, data, recipe, aids=Aids(report=into(held)))
        best = max(range(5), key=lambda i: (held[i].accuracy, -held[i].loss))
        if best != 4:
            return recipe, adapter, held, best
    raise AssertionError("the last epoch was the best for every seed: this data cannot show the choice")


def test_the_best_epoch_is_the_one_that_is_kept(backbone: Backbone, faint: Dataset) -> None:
    recipe, adapter, held, best = train_past_the_best(backbone, faint)
    assert adapter.manifest.training is not None
    metrics = adapter.manifest.training.metrics
    assert metrics["best_epoch"] == best + 1
    assert metrics["val_loss"] == held[best].loss
    val = split(faint, recipe.val_fraction, recipe.seed).val
    again = evaluate(
        reference(backbone, adapter), faint.pixels[val], faint.targets[val], adapter.manifest.labels
    )
    assert again.accuracy == pytest.approx(held[best].accuracy)
    assert again.loss == pytest.approx(held[best].loss, rel=1e-3)


def test_the_record_says_how(trained: Adapter, dataset: Dataset) -> None:
    manifest, record = trained.manifest, trained.manifest.training
    assert record is not None
    assert manifest.method == "ssf" and manifest.labels == ("blue", "green", "red")
    assert (record.dataset, record.dataset_digest) == ("tints", dataset.digest)
    assert (record.train_images, record.val_images) == (27, 9)
    assert (record.seed, record.command) == (0, "ssfserve train tints")
    assert Recipe(**record.recipe, seed=record.seed) == SHORT
    assert record.packages["torch"] == torch.__version__.partition("+")[0]
    assert record.metrics["val_accuracy_served"] == record.metrics["val_accuracy"]


def test_a_subset_of_sites_trains(backbone: Backbone, dataset: Dataset) -> None:
    recipe = SHORT.model_copy(update={"sites": "blocks.1.mlp.*, norm", "epochs": 1})
    adapter = train(backbone, dataset, recipe)
    assert [site.name for site in adapter.manifest.sites] == ["blocks.1.mlp.fc1", "blocks.1.mlp.fc2", "norm"]
    with pytest.raises(ValueError, match=r"no site matches blocks\.9\.\*"):
        train(backbone, dataset, recipe.model_copy(update={"sites": "norm,blocks.9.*"}))


def test_linear_has_no_sites_and_its_head_fits_plain_features(backbone: Backbone, dataset: Dataset) -> None:
    adapter = train(backbone, dataset, Recipe(method="linear", epochs=30, batch_size=8, head_lr=0.05))
    assert adapter.manifest.sites == () and not adapter.scale and not adapter.shift
    record = adapter.manifest.training
    assert record is not None
    assert record.metrics["val_loss_served"] == pytest.approx(record.metrics["val_loss"], rel=1e-3)
    assert record.metrics["val_accuracy"] == 1.0


def test_an_absorbed_standard_changes_no_logit() -> None:
    features = 5 + 3 * torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    standard, head = Standard.of(features), nn.Linear(4, 3)
    applied = standard.apply(features)
    torch.testing.assert_close(applied.mean(0), torch.zeros(4), atol=1e-6, rtol=0)
    torch.testing.assert_close(applied.std(0, correction=0), torch.ones(4))
    before = head(applied)
    standard.absorb(head)
    torch.testing.assert_close(head(features), before)


def test_a_head_is_fitted_to_the_images_that_training_sees(backbone: Backbone, dataset: Dataset) -> None:
    """Upside-down halves of the images are features of their own: both must be in the table."""
    recipe = SHORT.model_copy(update={"augment": "rotate180"})
    inputs = TunedInputs(backbone, dataset.pixels, recipe, torch.Generator().manual_seed(0))
    parted = split(dataset, 0.25, 0)
    table = compute_features(inputs, parted)
    with torch.no_grad():
        upright = inputs.eval(parted.train)
        turned = inputs.features(dataset.pixels[parted.train].flip(2, 3))
    near = torch.stack([(table[parted.train] - seen).abs().amax(1) for seen in (upright, turned)])
    assert near.amin(0).max() < 1e-5
    assert 0.2 < (near[0] < near[1]).float().mean() < 0.8
    assert torch.allclose(table[parted.val], inputs.eval(parted.val), atol=1e-5)


def test_weight_decay_acts_on_the_heads_weight_alone(backbone: Backbone) -> None:
    tuned, head = TunedModel(backbone.model, backbone.sites), nn.Linear(32, 3)
    groups = make_optimizer([Tunable(p) for p in tuned.vectors.parameters()], head, SHORT).param_groups
    decayed = [p for group in groups if group["weight_decay"] for p in group["params"]]
    assert decayed == [head.weight]
    everything = {id(p) for group in groups for p in group["params"]}
    assert everything == {id(p) for p in (*tuned.vectors.parameters(), *head.parameters())}
    assert {group["lr"] for group in groups if group["params"][0] is not head.bias} == {
        SHORT.lr,
        SHORT.head_lr,
    }


def test_learning_rate_rises_then_falls_as_a_cosine() -> None:
    shares = [share(step, 100, 10) for step in range(100)]
    assert shares[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert shares[10] == 1.0
    assert shares[55] == pytest.approx(0.5, abs=1e-3)
    assert shares[10:] == sorted(shares[10:], reverse=True)
    assert 0 < shares[-1] < 0.01
    assert share(0, 5, 0) == 1.0


def test_schedule_scales_every_group() -> None:
    head = nn.Linear(2, 2)
    optimizer = make_optimizer(
        [Tunable(nn.Parameter(torch.zeros(1)), 0.5)], head, SHORT.model_copy(update={"lr": 0.3})
    )
    course = Course(SHORT.model_copy(update={"epochs": 1, "warmup": 0.1}), per_epoch=10)
    course.set(optimizer, 0)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.005, 0.005, 0.075])
    course.set(optimizer, 1)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 0.01, 0.15])


def test_balanced_epochs_draw_every_class_equally() -> None:
    targets = torch.tensor([0] * 50 + [1] * 8 + [2] * 2)
    order = epoch_order(targets, torch.arange(60), torch.Generator().manual_seed(0), balance=True)
    assert torch.bincount(targets[order]).tolist() == [20, 20, 20]
    assert len(set(order[targets[order] == 0].tolist())) == 20
    plain = epoch_order(targets, torch.arange(60), torch.Generator().manual_seed(0), balance=False)
    assert sorted(plain.tolist()) == list(range(60)) != plain.tolist()


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"epochs": 1, "lr": 0},
        {"epochs": 1, "augment": "mirror"},
        {"epochs": 1, "val_fraction": 1},
        {"method": "linear", "epochs": 1, "sites": "norm"},
        {"method": "full", "epochs": 1, "sites": "norm"},
        {"epochs": 1, "augment": "flip", "policy": "simple"},
        {"epochs": 1, "mixup": 0.8, "batch_size": 15},
        {"epochs": 1, "lr": float("nan")},
    ],
)
def test_a_recipe_is_checked_at_the_door(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Recipe.model_validate(wrong)


def test_patch_dropout_needs_patches(dataset: Dataset) -> None:
    with pytest.raises(UnsupportedModel, match="patch_drop"):
        train(make_backbone("efficientnet"), dataset, SHORT.model_copy(update={"patch_drop": 0.5}))


@pytest.mark.parametrize("store", [torch.float32, torch.float16])
def test_a_saved_file_is_whole_and_read_back(
    tmp_path: Path, backbone: Backbone, dataset: Dataset, store: torch.dtype
) -> None:
    adapter = train(backbone, dataset, SHORT.model_copy(update={"epochs": 1}), store=store)
    path = tmp_path / "new/tints.safetensors"
    save_checked(adapter, backbone, path, device="cpu", dtype="float32")
    assert [entry.name for entry in path.parent.iterdir()] == ["tints.safetensors"]
    found = read_adapter(path.read_bytes())
    assert same_numbers(found, adapter) and found.manifest == adapter.manifest
    assert {tensor.dtype for tensor in found.tensors().values()} == {store}
    check_as_served(found, backbone, device="cpu", dtype="bfloat16")


def test_a_bad_adapter_leaves_the_old_file(tmp_path: Path, backbone: Backbone, trained: Adapter) -> None:
    path = tmp_path / "tints.safetensors"
    path.write_bytes(b"old")
    probe = trained.manifest.probe
    wrong = probe.model_copy(update={"logits": tuple(x + 1 for x in probe.logits)})
    lying = Adapter(
        trained.manifest.model_copy(update={"probe": wrong}),
        trained.scale,
        trained.shift,
        trained.head_weight,
        trained.head_bias,
    )
    with pytest.raises(ProbeMismatch):
        save_checked(lying, backbone, path, device="cpu", dtype="float32")
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_an_interrupt_while_writing_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backbone: Backbone, trained: Adapter
) -> None:
    def interrupted(_handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("adapters.saving.os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checked(trained, backbone, tmp_path / "x.safetensors", device="cpu", dtype="float32")
    assert list(tmp_path.iterdir()) == []


def test_the_file_of_a_training_is_the_same_bytes(trained: Adapter) -> None:
    assert write_adapter(read_adapter(write_adapter(trained))) == write_adapter(trained)


def test_ssf_learns_what_a_linear_probe_cannot(faint: Dataset, backbone: Backbone) -> None:
    ssf = Recipe(epochs=15, lr=2e-2, head_lr=1e-2, augment="flip,shift", val_fraction=0.3)
    linear = Recipe(method="linear", epochs=200, batch_size=256, head_lr=2e-3, val_fraction=0.3)
    tuned, probe = (train(backbone, faint, recipe).manifest.training for recipe in (ssf, linear))
    assert tuned is not None and probe is not None
    assert tuned.metrics["val_accuracy"] >= probe.metrics["val_accuracy"] + 0.15
