import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adapters.data import Dataset, load_dataset
from adapters.errors import AdapterIncompatible, DataInvalid
from adapters.evaluation import BATCH, Evaluation, align_targets, evaluate, reference, served
from adapters.report import as_dict, as_text, draw
from backbone.executors.torch_executor import TorchExecutor
from backbone.load import Backbone
from tests.models import make_adapter, make_backbone
from tests.pictures import write_folder

CONFUSION = np.array([[3, 1, 0], [0, 2, 0], [0, 0, 0]])
RESULT = Evaluation(("cat", "dog", "newt"), CONFUSION, 0.5)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def executor_of(backbone: Backbone) -> TorchExecutor:
    return TorchExecutor(backbone, device="cpu", dtype="float32", slots=1)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return load_dataset(write_folder(tmp_path / "x", each=BATCH), make_backbone("vit").spec)


@pytest.mark.parametrize("kind", ["vit_layer_scale", "efficientnet"])
def test_served_and_reference_arithmetic_agree(kind: str, dataset: Dataset) -> None:
    backbone = make_backbone(kind)
    adapter = make_adapter(backbone, classes=3)
    pixels = dataset.pixels[:9]
    folded = served(executor_of(backbone), adapter)(pixels)
    plain = reference(backbone, adapter)(pixels)
    spread = float(np.abs(plain - plain.mean(0)).max())
    np.testing.assert_allclose(folded, plain, atol=1e-3 * spread)
    assert spread > 1e-3


def test_counts_are_of_true_by_predicted_class(dataset: Dataset) -> None:
    def classify(pixels: torch.Tensor) -> np.ndarray:
        """Tell the strongest colour channel, and take red for green."""
        strongest = pixels.float().mean((2, 3)).argmax(1)
        return torch.eye(3)[torch.where(strongest == 2, 1, strongest)].numpy()

    result = evaluate(classify, dataset.pixels, dataset.targets, dataset.labels)
    assert result.confusion.tolist() == [[BATCH, 0, 0], [0, BATCH, 0], [0, BATCH, 0]]
    assert result.accuracy == pytest.approx(2 / 3)
    assert result.recall == {"blue": 1.0, "green": 1.0, "red": 0.0}
    assert result.precision == {"blue": 1.0, "green": 0.5, "red": None}
    right = float(torch.nn.functional.cross_entropy(torch.eye(3)[:1], torch.tensor([0])))
    assert result.loss == pytest.approx((2 * right + right + 1) / 3)


def test_the_last_batch_counts_too(dataset: Dataset) -> None:
    backbone = make_backbone("vit")
    classify = served(executor_of(backbone), make_adapter(backbone, classes=3))
    result = evaluate(classify, dataset.pixels[: BATCH + 1], dataset.targets[: BATCH + 1], dataset.labels)
    assert result.images == BATCH + 1


def test_classes_are_matched_by_name(dataset: Dataset) -> None:
    targets = align_targets(dataset, ("red", "white", "green", "blue"))
    assert torch.equal(targets, torch.tensor([3, 2, 0])[dataset.targets])
    with pytest.raises(DataInvalid, match=r"does not know: green, red \(known: blue, white\)"):
        align_targets(dataset, ("blue", "white"))


@pytest.mark.parametrize("how", [reference, lambda b, a: served(executor_of(b), a)])
def test_an_adapter_of_another_backbone_is_refused(how: object) -> None:
    adapter = make_adapter(make_backbone("vit", seed=1), classes=3)
    with pytest.raises(AdapterIncompatible, match="fingerprint"):
        how(make_backbone("vit", seed=2), adapter)  # type: ignore[operator]


def test_text_shows_accuracy_classes_and_matrix() -> None:
    assert as_text(RESULT).split("\n") == [
        "accuracy 0.8333 on 6 images, loss 0.5000",
        "",
        "class  images  recall  precision",
        "cat         4   0.750      1.000",
        "dog         2   1.000      0.667",
        "newt        0       -          -",
        "",
        "true \\ predicted  cat  dog  newt",
        "cat                 3    1     0",
        "dog                 0    2     0",
        "newt                0    0     0",
    ]


def test_dict_is_json() -> None:
    found = json.loads(json.dumps(as_dict(RESULT)))
    assert found["confusion"] == CONFUSION.tolist()
    assert found["recall"]["newt"] is None
    assert found["accuracy"] == pytest.approx(5 / 6)


def test_png_shows_the_matrix(tmp_path: Path) -> None:
    draw(RESULT, tmp_path / "m.png", title="pets")
    draw(Evaluation(RESULT.labels, CONFUSION.T.copy(), 0.5), tmp_path / "other.png", title="pets")
    first, other = (np.asarray(Image.open(tmp_path / name).convert("L")) for name in ("m.png", "other.png"))
    assert min(first.shape) > 300
    assert (first != other).sum() > 1000
