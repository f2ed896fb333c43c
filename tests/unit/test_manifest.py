"""Manifests: rules of their fields, strict parsing, canonical text."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from adapters import strict_json
from adapters.errors import ManifestInvalid
from adapters.manifest import Manifest, Training
from tests.builders import make_manifest

TRAINING = Training(
    dataset="pets",
    train_images=10,
    val_images=2,
    seed=1,
    recipe={"epochs": 3, "weight_decay": None, "schedule": {"warmup": [1, 2.5]}},
    metrics={"top1": 0.5},
    packages={"torch": "2.15"},
)


def edited(edit: Callable[[Any], object]) -> str:
    value = json.loads(make_manifest().to_json())
    edit(value)
    return json.dumps(value)


def test_manifest_survives_its_own_text() -> None:
    manifest = make_manifest().model_copy(update={"training": TRAINING})
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_equal_manifests_have_equal_text() -> None:
    backwards = Training(**dict(reversed(TRAINING.model_dump().items())))
    backwards = backwards.model_copy(update={"recipe": dict(reversed(TRAINING.recipe.items()))})
    texts = {make_manifest().model_copy(update={"training": t}).to_json() for t in (TRAINING, backwards)}
    assert len(texts) == 1


REFUSED: dict[str, tuple[Callable[[Any], object], str]] = {
    "no labels": (lambda m: m.update(labels=[]), "labels: "),
    "empty label": (lambda m: m.update(labels=["cat", ""]), "labels.1: "),
    "label twice": (lambda m: m.update(labels=["cat", "cat"]), "a label is named twice"),
    "site twice": (lambda m: m.update(sites=m["sites"] * 2), "a site is named twice"),
    "probe of another head": (lambda m: m["probe"].update(logits=[1.0]), "1 probe logits for 2 labels"),
    "negative spread": (lambda m: m["probe"].update(spread=-1.0), "probe.spread: "),
    "unknown field": (lambda m: m.update(extra=1), "extra: "),
    "unknown nested field": (lambda m: m["backbone"].update(extra=1), "backbone.extra: "),
    "missing field": (lambda m: m.pop("backbone"), "backbone: "),
    "other format": (lambda m: m.update(format_version=2), "format_version: "),
    "number as text": (lambda m: m.update(head_width="32"), "head_width: "),
    "fraction of a channel": (lambda m: m.update(head_width=32.5), "head_width: "),
    "no channels": (lambda m: m["sites"][0].update(width=0), "sites.0.width: "),
    "short fingerprint": (lambda m: m["backbone"].update(fingerprint="ab"), "backbone.fingerprint: "),
    "two means": (lambda m: m["preprocessing"].update(mean=[0.5, 0.5]), "preprocessing.mean"),
    "std of zero": (lambda m: m["preprocessing"].update(std=[1.0, 0.0, 1.0]), "std must be positive"),
    "crop beyond the image": (lambda m: m["preprocessing"].update(crop_pct=1.5), "preprocessing.crop_pct: "),
    "method with a slash": (lambda m: m.update(method="../ssf"), "method: "),
}


@pytest.mark.parametrize("case", REFUSED)
def test_broken_rule_is_named(case: str) -> None:
    edit, message = REFUSED[case]
    with pytest.raises(ManifestInvalid) as caught:
        Manifest.from_json(edited(edit))
    assert message in str(caught.value)


UNREADABLE = {
    "nothing": b"",
    "not JSON": b"manifest",
    "not UTF-8": b'{"method": "\xff"}',
    "lone surrogate": "{\ud800}",
    "nested too deeply": b"[" * 100_000,
    "a list": b"[]",
    "huge integer": edited(lambda m: m.update(head_width=0)).replace(
        '"head_width": 0', f'"head_width": {"9" * 5000}'
    ),
    "infinity": edited(lambda m: m["probe"].update(spread=float("inf"))),
    "overflow to infinity": edited(lambda m: m["probe"].update(spread=7.25)).replace("7.25", "1e999"),
    "key twice": edited(lambda m: m.update(method="ssf")).replace("{", '{"method": "ssf", ', 1),
    "nested key twice": edited(lambda m: None).replace('"backbone": {', '"backbone": {"name": "other", '),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_unreadable_text_is_refused(case: str) -> None:
    with pytest.raises(ManifestInvalid):
        Manifest.from_json(UNREADABLE[case])


@pytest.mark.parametrize(
    "text", [b"[NaN]", b"[-Infinity]", b'{"a": [{"b": 1, "b": 1}]}', b"[1] 2"], ids=bytes.decode
)
def test_what_python_lets_pass_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"NaN|Infinity|'b' is named twice|Extra data"):
        strict_json.loads(text)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_recipe_holds_only_what_json_can_say(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        Training(**{**TRAINING.model_dump(), "recipe": {"lr": [value]}})


def test_message_is_short_whatever_was_sent() -> None:
    with pytest.raises(ManifestInvalid) as caught:
        Manifest.from_json(edited(lambda m: m.update({"x" * 10**6: 1})))
    assert len(str(caught.value)) < 500
