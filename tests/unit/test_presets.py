"""The official recipes: what they set, and that the learning rate takes the official course."""

import pytest
import torch
from timm.scheduler import CosineLRScheduler
from torch import nn

from adapters.optim import Course, make_optimizer
from adapters.presets import CIFAR100, FGVC, IMAGENET, VTAB, names, preset
from adapters.recipe import Recipe


def recipe_of(name: str, family: str = "vit", method: str = "ssf") -> Recipe:
    values = Recipe.defaults(method) | preset(name, family=family, method=method)
    return Recipe.model_validate({"method": method, **values})


@pytest.mark.parametrize("name", names())
def test_every_recipe_is_valid_and_says_its_name(name: str) -> None:
    recipe = recipe_of(name)
    assert recipe.preset == name
    assert recipe.lr == recipe.head_lr
    assert not (recipe.scale_steps or recipe.standardise or recipe.warm_start or recipe.clip)
    assert recipe.by_epoch and recipe.cooldown == 10 and recipe.augmentations == ()


def test_there_is_one_for_each_script() -> None:
    assert (len(VTAB), len(FGVC)) == (19, 5)
    scripts = sum(len(methods) for table in (CIFAR100, IMAGENET) for _, methods in table.values())
    assert scripts == 12 + 9


def test_vtab_changes_no_image_and_fgvc_changes_all() -> None:
    vtab, fgvc = recipe_of("vtab/dtd"), recipe_of("fgvc/cub")
    assert vtab.is_still and vtab.label_smoothing == 0 and vtab.ema == 0
    assert (vtab.lr, vtab.weight_decay, vtab.drop_path, vtab.batch_size) == (5e-3, 5e-5, 0.0, 64)
    assert (fgvc.policy, fgvc.erase, fgvc.mixup, fgvc.cutmix) == ("simple", 0.25, 0.8, 1.0)
    assert (fgvc.lr, fgvc.ema, fgvc.label_smoothing, fgvc.epochs) == (1e-2, 0.9998, 0.1, 100)


def test_large_sets_have_recipes_by_family_and_method() -> None:
    cifar, full = recipe_of("cifar100", "swin"), recipe_of("imagenet", "convnext", "full")
    assert (cifar.lr, cifar.batch_size, cifar.warmup_lr, cifar.min_lr, cifar.ema) == (
        5e-3,
        128,
        5e-7,
        5e-8,
        0,
    )
    assert (full.lr, full.batch_size, full.epochs, full.warmup, full.ema) == (5e-5, 256, 30, 5, 0.99992)
    assert (full.drop_path, full.policy) == (0.2, "rand")
    assert recipe_of("cifar100", method="norm").lr == recipe_of("cifar100").lr


@pytest.mark.parametrize(
    ("name", "family", "method", "message"),
    [
        ("vtab/pigs", "vit", "ssf", "no recipe vtab/pigs; there are vtab/cifar100"),
        ("vtab/dtd", "vit", "full", "tune by ssf alone"),
        ("cifar100", "mlp", "ssf", "no recipe for mlp models; it has for vit, swin, convnext, as_mlp"),
        ("imagenet", "as_mlp", "ssf", "no recipe for as_mlp"),
        ("imagenet", "vit", "vpt-deep", "no recipe for vpt-deep"),
    ],
)
def test_what_was_never_run_is_refused(name: str, family: str, method: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        preset(name, family=family, method=method)


def test_the_learning_rate_takes_the_course_of_the_official_trainer() -> None:
    recipe, per_epoch = recipe_of("cifar100"), 3
    head = nn.Linear(2, 2)
    ours = make_optimizer([], head, recipe)
    theirs = torch.optim.AdamW(head.parameters(), lr=recipe.head_lr)
    scheduler = CosineLRScheduler(
        theirs, t_initial=recipe.epochs, lr_min=recipe.min_lr, warmup_t=10, warmup_lr_init=recipe.warmup_lr
    )
    course = Course(recipe, per_epoch)
    for epoch in range(recipe.epochs + recipe.cooldown):
        scheduler.step(epoch)
        for step in range(per_epoch):
            course.set(ours, epoch * per_epoch + step)
            got, expected = ours.param_groups[0]["lr"], theirs.param_groups[0]["lr"]
            assert got == pytest.approx(expected, rel=1e-9), f"epoch {epoch}"
    rates = [course.rate(1.0, epoch * per_epoch) for epoch in (9, 10)]
    assert rates == pytest.approx([0.9, 0.9755], abs=1e-4)
