"""A training that is stopped goes on bit for bit; what does not fit is refused."""

import mmap
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from timm.utils import ModelEmaV2
from torch import nn

from adapters.bookmark import Bookmark, bookmark_of
from adapters.comparison import train_comparison
from adapters.data import Dataset, load_dataset
from adapters.errors import AdapterFileInvalid, BookmarkInvalid
from adapters.feature_cache import FeatureCache
from adapters.file import Adapter, read_adapter
from adapters.fitting import Aids
from adapters.loop_state import LoopState
from adapters.recipe import Recipe
from adapters.score import Score
from adapters.training import train
from adapters.usage import PeakMemory
from backbone.load import Backbone
from tests.models import make_backbone
from tests.pictures import stripes, write_folder

RECIPE = Recipe(
    epochs=4, batch_size=8, lr=1e-2, head_lr=1e-2, augment="flip,shift", val_fraction=0.25, ema=0.9,
    mixup=0.5, drop_path=0.2, balance=True,
)  # fmt: skip


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


@pytest.fixture
def bookmark(tmp_path: Path, backbone: Backbone, dataset: Dataset) -> Bookmark:
    return bookmark_of(tmp_path / "tints.safetensors", backbone, dataset, RECIPE)


class Killed(Exception):
    pass


def killed_after(epoch: int, bookmark: Bookmark) -> Aids:
    def report(done: int, _seen: Score, _held: Score) -> None:
        if done > epoch:  # the epoch before has been saved, this one has not
            raise Killed

    return Aids(bookmark=bookmark, report=report)


def same(one: Adapter, other: Adapter) -> bool:
    a, b = one.tensors(), other.tensors()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("changes", [{}, {"policy": "rand", "augment": "none"}, {"ema": 0.0, "cutmix": 1.0}])
def test_a_training_that_was_killed_goes_on_bit_for_bit(
    changes: dict[str, object], tmp_path: Path, backbone: Backbone, dataset: Dataset
) -> None:
    recipe = Recipe.model_validate(RECIPE.model_dump() | changes)
    whole = train(backbone, dataset, recipe)
    bookmark = bookmark_of(tmp_path / "x", backbone, dataset, recipe)
    for epoch in (1, 2):
        with pytest.raises(Killed):
            train(backbone, dataset, recipe, aids=killed_after(epoch, bookmark))
    epochs: list[int] = []
    aids = Aids(bookmark=bookmark, report=lambda epoch, _seen, _held: epochs.append(epoch))
    resumed = train(backbone, dataset, recipe, aids=aids)
    assert epochs == [3, 4]
    assert same(resumed, whole)
    assert resumed.manifest.training is not None and whole.manifest.training is not None
    kept = ("best_epoch", "val_loss", "epochs")
    assert all(resumed.manifest.training.metrics[k] == whole.manifest.training.metrics[k] for k in kept)


def test_a_bookmark_of_other_data_or_options_is_refused(
    tmp_path: Path, backbone: Backbone, dataset: Dataset, bookmark: Bookmark
) -> None:
    with pytest.raises(Killed):
        train(backbone, dataset, RECIPE, aids=killed_after(1, bookmark))
    other = bookmark_of(
        tmp_path / "tints.safetensors", backbone, dataset, RECIPE.model_copy(update={"lr": 0.1})
    )
    with pytest.raises(BookmarkInvalid, match="belongs to other data, options, weights or packages"):
        train(backbone, dataset, RECIPE, aids=Aids(bookmark=other))


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04 cut short"])
def test_a_damaged_bookmark_is_refused(
    content: bytes, backbone: Backbone, dataset: Dataset, bookmark: Bookmark
) -> None:
    bookmark.path.write_bytes(content)
    with pytest.raises(BookmarkInvalid, match="cannot be read: give what the training was begun with"):
        train(backbone, dataset, RECIPE, aids=Aids(bookmark=bookmark))


def test_a_full_disk_ends_no_training(
    monkeypatch: pytest.MonkeyPatch, backbone: Backbone, dataset: Dataset, bookmark: Bookmark
) -> None:
    def full(_path: Path, _data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("adapters.bookmark.replace_file", full)
    told: list[str] = []
    recipe = RECIPE.model_copy(update={"epochs": 2})
    train(backbone, dataset, recipe, aids=Aids(bookmark=bookmark, warn=told.append))
    assert len(told) == 1 and "No space left" in told[0] and "cannot be resumed" in told[0]


def test_patience_ends_a_training_that_gets_no_better(backbone: Backbone, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "s", labels=("across", "down"), each=20, draw=stripes)
    data = load_dataset(folder, backbone.spec)
    recipe = Recipe(epochs=40, lr=1e-6, head_lr=1e-6, patience=3, val_fraction=0.25, warm_start=False)
    record = train(backbone, data, recipe).manifest.training
    assert record is not None
    assert record.metrics["epochs"] == record.metrics["best_epoch"] + 3 < 40


def test_averaged_weights_are_those_of_timm() -> None:
    model = nn.Linear(4, 3)
    theirs = ModelEmaV2(model, decay=0.7)
    ours = LoopState.start(list(model.parameters()), ema=True)
    for _ in range(5):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        theirs.update(model)
        ours.average(list(model.parameters()), 0.7)
    for a, b in zip(ours.averages, theirs.module.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    before = [p.detach().clone() for p in model.parameters()]
    with ours.averaged_in(list(model.parameters())):
        assert torch.equal(model.weight, ours.averages[0])
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_frozen_features_are_computed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backbone: Backbone, dataset: Dataset
) -> None:
    cache, recipe = FeatureCache(tmp_path / "f"), Recipe(method="linear", epochs=20, val_fraction=0.25)
    plain = train(backbone, dataset, recipe)
    first = train(backbone, dataset, recipe, aids=Aids(features=cache))
    (table,) = (tmp_path / "f").iterdir()
    assert same(first, plain)

    def no_forward(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("the features are there")

    monkeypatch.setattr("adapters.fitting.compute_features", no_forward)
    assert same(train(backbone, dataset, recipe, aids=Aids(features=cache)), plain)
    assert not same(
        train(backbone, dataset, recipe.model_copy(update={"seed": 1}), aids=Aids(features=cache)), plain
    )
    monkeypatch.undo()
    table.write_bytes(b"junk")
    assert same(train(backbone, dataset, recipe, aids=Aids(features=cache)), plain)


def test_features_of_other_images_are_not_taken(tmp_path: Path, backbone: Backbone, dataset: Dataset) -> None:
    cache, recipe = FeatureCache(tmp_path), Recipe(method="linear", epochs=1)
    other = load_dataset(write_folder(tmp_path / "t", each=12, seed=5), backbone.spec)
    paths = {
        cache.path(backbone, dataset, recipe),
        cache.path(backbone, other, recipe),
        cache.path(make_backbone("vit_registers"), dataset, recipe),
        cache.path(backbone, dataset, recipe.model_copy(update={"dtype": "bfloat16"})),
    }
    assert len(paths) == 4


@pytest.mark.parametrize("method", ["full", "vpt-deep", "adapter"])
def test_a_model_for_comparison_is_written_and_no_server_takes_it(
    method: str, backbone: Backbone, dataset: Dataset
) -> None:
    recipe = Recipe.model_validate({"method": method, "epochs": 1, "val_fraction": 0.25})
    comparison = train_comparison(backbone, dataset, recipe)
    expected = comparison.fitted.logits(dataset.pixels)
    with pytest.raises(AdapterFileInvalid, match="trained for comparison, not scales and shifts"):
        read_adapter(comparison.to_bytes())
    assert comparison.training.recipe["method"] == method
    if method == "full":
        fresh = make_backbone("vit").model
        fresh.reset_classifier(3)
        fresh.load_state_dict(dict(comparison.tensors), strict=True)
        images = dataset.pixels[:4]
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (backbone.spec.mean, backbone.spec.std))
        with torch.inference_mode():
            logits = fresh((images / 255 - mean) / std)
        torch.testing.assert_close(logits, expected[:4], atol=1e-4, rtol=1e-4)


def test_the_peak_of_memory_is_what_was_needed_in_between() -> None:
    memory = PeakMemory("cpu")
    before = memory.peak()
    with mmap.mmap(-1, 64 * 2**20) as pages:  # never what an allocator had kept
        pages.write(b"x" * len(pages))
    peak = memory.peak()
    assert before is not None and peak is not None
    assert peak - before > 60 * 2**20
