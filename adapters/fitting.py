"""Fitting a tuned model and its head to a data set, by any method."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from adapters.bookmark import Bookmark, Prepared
from adapters.data import Dataset, Split
from adapters.feature_cache import FeatureCache
from adapters.inputs import FrozenInputs, Standard, TunedInputs, compute_features
from adapters.loop import EpochReport, Outcome, fit
from adapters.loop_state import LoopState
from adapters.recipe import Recipe
from adapters.views import OriginalViews, Views
from backbone.load import Backbone

SPREAD_IMAGES = 32
EVAL_BATCH = 32


@dataclass(frozen=True, slots=True)
class Aids:
    """What a training may use and tell, none of which changes its result.

    Attributes:
        progress: Whether to draw bars.
        report: Called after each epoch.
        bookmark: Where to write what another process could go on from, and to go on from what is there.
        features: Tables of frozen features that are kept between trainings.
        warn: Called with what went wrong without ending the training.
    """

    progress: bool = False
    report: EpochReport | None = None
    bookmark: Bookmark | None = None
    features: FeatureCache | None = None
    warn: Callable[[str], None] = lambda _message: None


NO_AIDS = Aids()


@dataclass(frozen=True)
class Fitted:
    """A trained model: what gives features, the head for them as they come, and how it went."""

    inputs: TunedInputs
    head: nn.Linear
    outcome: Outcome

    @torch.inference_mode()
    def logits(self, pixels: Tensor) -> Tensor:
        """Return the logits [n, K], on the CPU, of images, uint8 [n, 3, H, W], in the training's dtype."""
        parts = [self.head(self.inputs.features(part)).cpu() for part in pixels.split(EVAL_BATCH)]
        return torch.cat(parts)

    def accuracy(self, pixels: Tensor, targets: Tensor) -> float:
        """Return top-1 on images."""
        return float((self.logits(pixels).argmax(1) == targets).float().mean())


def fit_method(
    backbone: Backbone, dataset: Dataset, parted: Split, recipe: Recipe, aids: Aids = NO_AIDS
) -> Fitted:
    """Train a head, and what the recipe's method trains beside it. The backbone is not changed.

    Raises:
        UnsupportedModel: If the recipe does not take this backbone.
        ValueError: If the recipe names sites the backbone has not.
        BookmarkInvalid: If the bookmark is damaged, or another training's.
    """
    training = _Training(backbone, dataset, parted, recipe, aids)
    outcome = training.probe() if recipe.method == "linear" and recipe.is_still else training.tune()
    training.absorb_standard()
    return Fitted(training.tuned, training.head, outcome)


def make_head(width: int, classes: int, recipe: Recipe, generator: torch.Generator) -> nn.Linear:
    """Return a head as training starts it, on the recipe's device."""
    head = nn.Linear(width, classes)
    nn.init.trunc_normal_(head.weight, std=recipe.head_std, generator=generator)
    nn.init.zeros_(head.bias)
    return head.to(recipe.device)


class _Training:
    """The parts of one training, and its two courses: over a table of features, or over images."""

    def __init__(
        self, backbone: Backbone, dataset: Dataset, parted: Split, recipe: Recipe, aids: Aids
    ) -> None:
        self._backbone, self._dataset, self._parted = backbone, dataset, parted
        self._recipe, self._aids, self._warned = recipe, aids, False
        generator, classes = torch.Generator().manual_seed(recipe.seed), len(dataset.labels)
        self.tuned = TunedInputs(
            backbone,
            dataset.pixels,
            recipe,
            generator,
            classes=classes,
            views=_views(backbone, dataset, recipe),
        )
        self.head = make_head(backbone.head_width, classes, recipe, generator)
        self._fit = partial(
            fit,
            head=self.head,
            targets=dataset.targets,
            parted=parted,
            generator=generator,
            progress=aids.progress,
        )

    def probe(self) -> Outcome:
        """Train the head alone, on features that are computed once."""
        table = FrozenInputs(self._standardised(self._frozen_features()))
        return self._fit(table, recipe=self._recipe, report=self._aids.report)

    def tune(self) -> Outcome:
        """Train the head and what the method trains, image by image."""
        bookmark, report = self._aids.bookmark, self._aids.report
        if bookmark is None:
            self._prepare()
            return self._fit(self.tuned, recipe=self._recipe, report=report)
        found = bookmark.read()
        if found is None:
            prepared, state = self._prepare(), None
        else:
            prepared, state = found
            self._take(prepared)
        save = partial(self._save, bookmark, prepared)
        return self._fit(self.tuned, recipe=self._recipe, report=report, state=state, save=save)

    def absorb_standard(self) -> None:
        """Let the head take plain features."""
        if self.tuned.standard is not None:
            self.tuned.standard.absorb(self.head)
            self.tuned.standard = None

    def _prepare(self) -> Prepared:
        """Standardise features, fit the head first and scale the steps, as far as the recipe says so."""
        recipe, train = self._recipe, self._parted.train
        if recipe.standardise or recipe.warm_start:
            features = self._standardised(self._features())
            if recipe.warm_start and recipe.method != "linear":
                self._fit(FrozenInputs(features), recipe=recipe.for_head())
        if recipe.scale_steps:
            self.tuned.scale_steps(train[:: max(1, len(train) // SPREAD_IMAGES)][:SPREAD_IMAGES])
        standard = self.tuned.standard
        return Prepared(
            (standard.mean, standard.deviation) if standard is not None else None,
            tuple(tunable.share for tunable in self.tuned.tunables()),
        )

    def _take(self, prepared: Prepared) -> None:
        """Do as an earlier process had prepared."""
        if prepared.standard is not None:
            self.tuned.standard = Standard(*(part.to(self._recipe.device) for part in prepared.standard))
        if prepared.shares is not None:
            self.tuned.set_shares(prepared.shares)

    def _save(self, bookmark: Bookmark, prepared: Prepared, state: LoopState) -> None:
        try:
            bookmark.write(prepared, state)
        except OSError as error:
            if not self._warned:
                told = f"the training goes on, but cannot be resumed: {bookmark.path}: {error.strerror}"
                self._aids.warn(told)
            self._warned = True

    def _standardised(self, features: Tensor) -> Tensor:
        if not self._recipe.standardise:
            return features
        self.tuned.standard = Standard.of(features[self._parted.train])
        return self.tuned.standard.apply(features)

    def _features(self) -> Tensor:
        return compute_features(self.tuned, self._parted, progress=self._aids.progress)

    def _frozen_features(self) -> Tensor:
        """Return the features of all images, kept from an earlier training where there is a cache."""
        cache = self._aids.features
        if cache is None:
            return self._features()
        path = cache.path(self._backbone, self._dataset, self._recipe)
        found = cache.read(path)
        if found is not None:
            return found.to(self._recipe.device)
        everything = torch.arange(len(self._dataset.targets))
        whole = Split(everything, everything[:0])
        features = compute_features(self.tuned, whole, progress=self._aids.progress)
        try:
            cache.write(path, features)
        except OSError as error:
            self._aids.warn(f"the features are not kept: {path}: {error.strerror}")
        return features


def _views(backbone: Backbone, dataset: Dataset, recipe: Recipe) -> Views | None:
    if recipe.policy == "none":
        return None
    workers = recipe.threads if recipe.threads > 1 else 0
    return OriginalViews(dataset.originals, backbone.spec, recipe.policy, workers=workers)
