"""The recipes of the method's official scripts, with the settings that those really have in effect.

    vtab/TASK   19 tasks, ViT                  fgvc/SET   5 sets, ViT
    cifar100    by family and method           imagenet   by family and method

Batches are 32 images a GPU times the script's GPUs, and the learning rate is not scaled by them. It changes
between epochs, warms up within the cosine, and stays at its lowest for ten epochs more. Head and vectors
share it; only the head's weight decays; gradients are not clipped. Of two things the scripts do nothing is
here: images resized without keeping their aspect in vtab (adapters are fed as the server feeds), and the
best epoch chosen on test images (it is chosen on validation images).
"""

from collections.abc import Mapping

Values = dict[str, float | str | bool]

OFFICIAL: Values = {
    "epochs": 100, "cooldown": 10, "by_epoch": True, "warmup": 10.0, "warmup_lr": 1e-7, "min_lr": 1e-8,
    "weight_decay": 0.05, "clip": 0.0, "scale_steps": False, "standardise": False, "warm_start": False,
    "head_std": 0.02, "init_std": 0.02, "augment": "none",
}  # fmt: skip
AUGMENTED: Values = {
    "policy": "rand", "erase": 0.25, "mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1,
}  # fmt: skip

# learning rate, weight decay, drop path
VTAB: Mapping[str, tuple[float, float, float]] = {
    "cifar100": (5e-3, 5e-5, 0.0),
    "caltech101": (1e-3, 5e-2, 0.1),
    "dtd": (5e-3, 5e-5, 0.0),
    "flowers102": (5e-3, 5e-5, 0.0),
    "pets": (5e-3, 5e-5, 0.0),
    "svhn": (1e-2, 5e-5, 0.0),
    "sun397": (5e-3, 5e-5, 0.0),
    "patch_camelyon": (5e-3, 5e-5, 0.0),
    "eurosat": (3e-3, 5e-2, 0.2),
    "resisc45": (2e-3, 5e-5, 0.1),
    "diabetic_retinopathy": (5e-3, 5e-5, 0.2),
    "clevr_count": (2e-3, 5e-2, 0.1),
    "clevr_dist": (5e-2, 5e-2, 0.1),
    "dmlab": (5e-3, 5e-5, 0.1),
    "kitti": (1e-2, 5e-5, 0.0),
    "dsprites_loc": (1e-2, 5e-5, 0.0),
    "dsprites_ori": (5e-3, 5e-5, 0.2),
    "smallnorb_azi": (2e-2, 5e-5, 0.1),
    "smallnorb_ele": (5e-3, 5e-2, 0.2),
}
# learning rate, drop path, decay of the averaged weights
FGVC: Mapping[str, tuple[float, float, float]] = {
    "cub": (1e-2, 0.0, 0.9998),
    "nabirds": (2e-4, 0.1, 0.9998),
    "oxford_flowers": (1e-2, 0.1, 0.999),
    "stanford_cars": (2e-2, 0.0, 0.9998),
    "stanford_dogs": (2.5e-4, 0.0, 0.9998),
}
EMA, SLOW, SLOWER = 0.99992, (1e-7, 1e-8), (5e-7, 5e-8)
# by family and method: learning rate, drop path, (warm-up's and lowest learning rate); by family: averaging
Table = Mapping[str, tuple[float, Mapping[str, tuple[float, float, tuple[float, float]]]]]
CIFAR100: Table = {
    "vit": (EMA, {"ssf": (1e-3, 0.0, SLOW), "linear": (1e-3, 0.0, SLOW), "full": (5e-5, 0.0, SLOW)}),
    "swin": (0.0, {"ssf": (5e-3, 0.0, SLOWER), "linear": (1e-3, 0.0, SLOWER), "full": (5e-5, 0.1, SLOWER)}),
    "convnext": (EMA, {"ssf": (1e-3, 0.0, SLOW), "linear": (1e-3, 0.0, SLOWER), "full": (5e-5, 0.2, SLOWER)}),
    "as_mlp": (0.0, {"ssf": (1e-3, 0.0, SLOW), "linear": (1e-3, 0.0, SLOWER), "full": (5e-5, 0.0, SLOWER)}),
}
IMAGENET: Table = {
    "vit": (EMA, {"ssf": (1e-3, 0.1, SLOW), "linear": (1e-4, 0.1, SLOW), "full": (1e-4, 0.2, SLOW)}),
    "swin": (0.0, {"ssf": (5e-3, 0.1, SLOWER), "linear": (5e-3, 0.1, SLOWER), "full": (5e-5, 0.2, SLOWER)}),
    "convnext": (EMA, {"ssf": (1e-3, 0.1, SLOW), "linear": (1e-3, 0.1, SLOWER), "full": (5e-5, 0.2, SLOWER)}),
}
LIKE_SSF = frozenset({"ssf", "bias", "norm"})


def names() -> tuple[str, ...]:
    """Return the names of all recipes."""
    return (*(f"vtab/{name}" for name in VTAB), *(f"fgvc/{name}" for name in FGVC), "cifar100", "imagenet")


def preset(name: str, *, family: str, method: str) -> Values:
    """Return the values of a recipe, for `Recipe`. `bias` and `norm` take those of `ssf`.

    Raises:
        ValueError: If there is no such recipe, or it was never run with this family or method.
    """
    if name not in names():
        raise ValueError(f"no recipe {name}; there are {', '.join(names())}")
    group, _, task = name.partition("/")
    if group in {"vtab", "fgvc"}:
        if method not in LIKE_SSF:
            raise ValueError(f"{name} has no recipe for {method}: the official scripts tune by ssf alone")
        return OFFICIAL | {"preset": name} | (_vtab(task) if group == "vtab" else _fgvc(task))
    table = CIFAR100 if name == "cifar100" else IMAGENET
    return OFFICIAL | {"preset": name} | _by_family(name, table, family, method)


def _vtab(task: str) -> Values:
    lr, weight_decay, drop_path = VTAB[task]
    return {**_rate(lr), "weight_decay": weight_decay, "drop_path": drop_path, "batch_size": 64}


def _fgvc(task: str) -> Values:
    lr, drop_path, ema = FGVC[task]
    simple: Values = {**AUGMENTED, "policy": "simple", "batch_size": 64}
    return {**_rate(lr), **simple, "drop_path": drop_path, "ema": ema}


def _by_family(name: str, table: Table, family: str, method: str) -> Values:
    if family not in table:
        raise ValueError(f"{name} has no recipe for {family} models; it has for {', '.join(table)}")
    ema, methods = table[family]
    known = "ssf" if method in LIKE_SSF else method
    if known not in methods:
        raise ValueError(f"{name} has no recipe for {method}; it has for {', '.join(methods)}")
    lr, drop_path, (warmup_lr, min_lr) = methods[known]
    size: Values = (
        {"batch_size": 256, "epochs": 30, "warmup": 5.0} if name == "imagenet" else {"batch_size": 128}
    )
    course: Values = {"warmup_lr": warmup_lr, "min_lr": min_lr}
    return {**_rate(lr), **AUGMENTED, **size, **course, "drop_path": drop_path, "ema": ema}


def _rate(lr: float) -> Values:
    return {"lr": lr, "head_lr": lr}
