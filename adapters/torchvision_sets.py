"""The data sets that torchvision reads and we know. Loads neither torch nor torchvision.

Of VTAB-1k torchvision lacks resisc45, diabetic_retinopathy, clevr_dist, dmlab, dsprites_loc, dsprites_ori,
smallnorb_azi, smallnorb_ele and kitti's distances; of FGVC CUB-200-2011, NABirds and Stanford Dogs. Class
folders or CSV files serve for those.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from adapters.division import Division

Arguments = Mapping[str, str | bool]

NATURAL, SPECIALISED, STRUCTURED, FGVC = (
    "VTAB-1k natural",
    "VTAB-1k specialised",
    "VTAB-1k structured",
    "FGVC",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchvisionSet:
    """A data set of torchvision.

    Attributes:
        kind: Class in `torchvision.datasets`.
        classes: How many there are.
        train: What the class takes for the part to train on.
        val, test: The same for parts that not every set has.
        division: How a set without a test part is divided.
        benchmarks: Where it belongs.
        first: Its smallest target.
        needs: Packages that the class imports.
        targets: Reads all targets of a class that opens its images itself; the others take a loader.
    """

    kind: str
    classes: int
    train: Arguments
    val: Arguments | None = None
    test: Arguments | None = None
    division: Division | None = None
    benchmarks: tuple[str, ...] = ()
    first: int = 0
    needs: tuple[str, ...] = ()
    targets: Callable[[Any], Iterable[int]] | None = None


def _pcam_targets(images: Any) -> list[int]:
    """Read at once what the class reads one by one, opening two files each time."""
    name = images._FILES[images._split]["targets"][0]
    with images.h5py.File(images._base_folder / name) as file:
        return [int(value) for value in file["y"][:, 0, 0, 0]]


def _gtsrb_targets(images: Any) -> list[int]:
    return [target for _, target in images._samples]


TRAIN, VAL, TEST = ({"split": name} for name in ("train", "val", "test"))
TRUE, FALSE = ({"train": flag} for flag in (True, False))

SETS: Mapping[str, TorchvisionSet] = {
    "caltech101": TorchvisionSet(
        kind="Caltech101",
        classes=101,
        train={},
        division=Division(train_images=30),
        benchmarks=(NATURAL,),
        needs=("scipy",),
        targets=attrgetter("y"),
    ),
    "cifar10": TorchvisionSet(
        kind="CIFAR10", classes=10, train=TRUE, test=FALSE, targets=attrgetter("targets")
    ),
    "cifar100": TorchvisionSet(
        kind="CIFAR100",
        classes=100,
        train=TRUE,
        test=FALSE,
        benchmarks=(NATURAL,),
        targets=attrgetter("targets"),
    ),
    "clevr_count": TorchvisionSet(
        # the labels of its test part were never published
        kind="CLEVRClassification",
        classes=8,
        train=TRAIN,
        test=VAL,
        benchmarks=(STRUCTURED,),
        first=3,
    ),
    "country211": TorchvisionSet(
        kind="Country211", classes=211, train=TRAIN, val={"split": "valid"}, test=TEST
    ),
    "dtd": TorchvisionSet(kind="DTD", classes=47, train=TRAIN, val=VAL, test=TEST, benchmarks=(NATURAL,)),
    "eurosat": TorchvisionSet(
        kind="EuroSAT",
        classes=10,
        train={},
        division=Division(test_share=0.2),
        benchmarks=(SPECIALISED,),
    ),
    "fashion_mnist": TorchvisionSet(
        kind="FashionMNIST", classes=10, train=TRUE, test=FALSE, targets=attrgetter("targets")
    ),
    "fgvc_aircraft": TorchvisionSet(kind="FGVCAircraft", classes=100, train=TRAIN, val=VAL, test=TEST),
    "flowers102": TorchvisionSet(
        kind="Flowers102",
        classes=102,
        train=TRAIN,
        val=VAL,
        test=TEST,
        benchmarks=(NATURAL, FGVC),
        needs=("scipy",),
    ),
    "food101": TorchvisionSet(kind="Food101", classes=101, train=TRAIN, test=TEST),
    "gtsrb": TorchvisionSet(kind="GTSRB", classes=43, train=TRAIN, test=TEST, targets=_gtsrb_targets),
    "imagenette": TorchvisionSet(kind="Imagenette", classes=10, train=TRAIN, test=VAL),
    "kmnist": TorchvisionSet(
        kind="KMNIST", classes=10, train=TRUE, test=FALSE, targets=attrgetter("targets")
    ),
    "mnist": TorchvisionSet(kind="MNIST", classes=10, train=TRUE, test=FALSE, targets=attrgetter("targets")),
    "oxford_iiit_pet": TorchvisionSet(
        kind="OxfordIIITPet",
        classes=37,
        train={"split": "trainval"},
        test=TEST,
        benchmarks=(NATURAL,),
        targets=attrgetter("_labels"),
    ),
    "patch_camelyon": TorchvisionSet(
        kind="PCAM",
        classes=2,
        train=TRAIN,
        val=VAL,
        test=TEST,
        benchmarks=(SPECIALISED,),
        needs=("h5py",),
        targets=_pcam_targets,
    ),
    "rendered_sst2": TorchvisionSet(kind="RenderedSST2", classes=2, train=TRAIN, val=VAL, test=TEST),
    "stanford_cars": TorchvisionSet(
        kind="StanfordCars",
        classes=196,
        train=TRAIN,
        test=TEST,
        benchmarks=(FGVC,),
        needs=("scipy",),
    ),
    "stl10": TorchvisionSet(kind="STL10", classes=10, train=TRAIN, test=TEST, targets=attrgetter("labels")),
    "sun397": TorchvisionSet(
        kind="SUN397",
        classes=397,
        train={},
        division=Division(test_share=0.2),
        benchmarks=(NATURAL,),
    ),
    "svhn": TorchvisionSet(
        kind="SVHN",
        classes=10,
        train=TRAIN,
        test=TEST,
        benchmarks=(NATURAL,),
        needs=("scipy",),
        targets=attrgetter("labels"),
    ),
    "usps": TorchvisionSet(kind="USPS", classes=10, train=TRUE, test=FALSE, targets=attrgetter("targets")),
}
