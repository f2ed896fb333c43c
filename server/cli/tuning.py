"""What the verb `train` does: data, one training a seed, and the files it leaves."""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import typer

from server.cli.frozen import refuse_existing
from server.cli.output import warn

if TYPE_CHECKING:
    from adapters.comparison import Comparison
    from adapters.data import Dataset
    from adapters.file import Adapter
    from adapters.fitting import Aids
    from adapters.manifest import Training
    from adapters.recipe import Recipe
    from adapters.score import Score
    from backbone.load import Backbone


NOTABLE_BYTES = 10**7  # a later seed finds the memory that the first one needed


@dataclass(frozen=True)
class Job:
    """A training that the options describe.

    Attributes:
        backbone: What is tuned.
        dataset: What to train on.
        recipe: Of the first seed.
        target: File to write.
        store: Name of the dtype of the adapter's numbers.
        seeds: How many trainings.
        resume: Whether to go on from what an earlier run left.
        force: Whether files of seeds may be overwritten.
        features: Folder of frozen features.
        test: Images to measure on in the end.
    """

    backbone: "Backbone"
    dataset: "Dataset"
    recipe: "Recipe"
    target: Path
    store: str
    seeds: int
    resume: bool
    force: bool
    features: Path
    test: "Dataset | None"

    def of_seed(self, number: int) -> "Recipe":
        """Return the recipe of the n-th training: all share one split, so that their scores compare."""
        first = self.recipe.seed if self.recipe.split_seed is None else self.recipe.split_seed
        return self.recipe.model_copy(update={"seed": self.recipe.seed + number, "split_seed": first})


def run(job: Job) -> None:
    """Train, write the file of every seed, and of the best one the target."""
    if job.seeds == 1:
        _report(_train(job, job.recipe, job.target), job)
        typer.echo(_described(job.target))
        return
    records: list[tuple[Path, Training]] = []
    seeds = [job.of_seed(number) for number in range(job.seeds)]
    for recipe in seeds:
        refuse_existing(_path(job, recipe), force=job.force or job.resume)
    for recipe in seeds:
        path = _path(job, recipe)
        record = _finished(job, recipe, path) or _train(job, recipe, path)
        _report(record, job, f"seed {recipe.seed}: ")
        records.append((path, record))
    _choose(job, records)


def _path(job: Job, recipe: "Recipe") -> Path:
    """Return the file of one seed."""
    return job.target.with_name(f"{job.target.stem}-seed{recipe.seed}{job.target.suffix}")


def _choose(job: Job, records: "list[tuple[Path, Training]]") -> None:
    """Tell mean and deviation over the seeds; copy the best seed's file to the target."""
    from adapters.saving import replace_file

    key = "test_accuracy" if job.test is not None else "val_accuracy"
    scores = [record.metrics[key] for _, record in records]
    best, _ = max(records, key=lambda pair: (pair[1].metrics["val_accuracy"], -pair[1].metrics["val_loss"]))
    replace_file(job.target, best.read_bytes())
    what = key.replace("_", " ").replace("val", "validation")
    typer.echo(f"{len(scores)} seeds: {what} {fmean(scores):.4f} ± {stdev(scores):.4f}")
    typer.echo(f"{_described(job.target)}, as {best.name}")


def _train(job: Job, recipe: "Recipe", path: Path) -> "Training":
    """Run one training and write its file."""
    from adapters.comparison import train_comparison
    from adapters.saving import replace_file, save_checked
    from adapters.training import train
    from backbone.executors.torch_executor import DTYPES

    aids = _aids(job, recipe, path)
    common: dict[str, Any] = {"command": command_line(), "aids": aids}
    if recipe.is_servable:
        adapter = train(job.backbone, job.dataset, recipe, store=DTYPES[job.store], **common)
        adapter, record = _measured(job, adapter, recipe)
        save_checked(adapter, job.backbone, path, device=recipe.device, dtype=recipe.dtype)
    else:
        comparison = train_comparison(job.backbone, job.dataset, recipe, **common)
        record = _tested(job, comparison)
        replace_file(path, comparison.to_bytes(record))
        warn(f"{recipe.method} makes no adapter: {path} is there to compare with, no server takes it")
    if aids.bookmark is not None:
        aids.bookmark.remove()
    return record


def _measured(job: Job, adapter: "Adapter", recipe: "Recipe") -> "tuple[Adapter, Training]":
    """Return the adapter with its accuracy on the test images, as served, in its record."""
    from dataclasses import replace

    from adapters.evaluation import align_targets, evaluate, served
    from backbone.executors.torch_executor import TorchExecutor

    record = adapter.manifest.training
    assert record is not None  # a training leaves one
    if job.test is None:
        return adapter, record
    executor = TorchExecutor(job.backbone, device=recipe.device, dtype=recipe.dtype, slots=1)
    labels = adapter.manifest.labels
    found = evaluate(served(executor, adapter), job.test.pixels, align_targets(job.test, labels), labels)
    record = _with_test(record, found.accuracy)
    return replace(adapter, manifest=adapter.manifest.model_copy(update={"training": record})), record


def _tested(job: Job, comparison: "Comparison") -> "Training":
    from adapters.evaluation import align_targets

    if job.test is None:
        return comparison.training
    targets = align_targets(job.test, job.dataset.labels)
    return _with_test(comparison.training, comparison.fitted.accuracy(job.test.pixels, targets))


def _with_test(record: "Training", accuracy: float) -> "Training":
    return record.model_copy(update={"metrics": {**record.metrics, "test_accuracy": accuracy}})


def _aids(job: Job, recipe: "Recipe", path: Path) -> "Aids":
    """Return what the training may use: bars or lines, a bookmark beside the file, and kept features."""
    from adapters.fitting import Aids

    interactive = sys.stderr.isatty()
    quiet = interactive or recipe.method == "linear"
    return Aids(
        progress=interactive,
        report=None if quiet else _print_epoch,
        bookmark=_bookmark(job, recipe, path),
        features=_feature_cache(job),
        warn=warn,
    )


def _bookmark(job: Job, recipe: "Recipe", path: Path) -> Any:
    from adapters.bookmark import bookmark_of

    found = bookmark_of(path, job.backbone, job.dataset, recipe)
    if found.path.exists() and not job.resume:
        found.remove()
    return found


def _feature_cache(job: Job) -> Any:
    from adapters.feature_cache import FeatureCache

    return FeatureCache(job.features)


def _finished(job: Job, recipe: "Recipe", path: Path) -> "Training | None":
    """Return the record of a seed that an earlier run had finished with the same recipe and data."""
    from adapters.errors import AdapterError
    from adapters.file import read_adapter

    if not (job.resume and recipe.is_servable and path.exists()):
        return None
    try:
        record = read_adapter(path.read_bytes()).manifest.training
    except AdapterError:
        return None
    same = record is not None and record.dataset_digest == job.dataset.digest
    if record is None or not same or record.recipe != recipe.model_dump(exclude={"seed"}):
        return None
    return record if job.test is None or "test_accuracy" in record.metrics else None


def _report(record: "Training", job: Job, prefix: str = "") -> None:
    metrics = record.metrics
    served = metrics.get("val_accuracy_served")
    parts = [f"best epoch {metrics['best_epoch']:.0f}: validation accuracy {metrics['val_accuracy']:.4f}"]
    parts += [f"as served {served:.4f}"] if served is not None else []
    parts += [f"test {metrics['test_accuracy']:.4f}"] if job.test is not None else []
    rate, peak = metrics.get("images_per_s"), metrics.get("peak_memory_bytes")
    cost = [f"{record.seconds:.0f} s"]
    cost += [f"{rate:.1f} images/s in training"] if rate is not None else []
    cost += [f"{peak / 1e9:.2f} GB at the peak"] if peak is not None and peak > NOTABLE_BYTES else []
    typer.echo(prefix + ", ".join(parts))
    typer.echo(", ".join(cost))


def _described(path: Path) -> str:
    from adapters.file import digest

    return f"{path} ({path.stat().st_size / 1000:.0f} kB, {digest(path.read_bytes())[:12]})"


def _print_epoch(epoch: int, seen: "Score", held: "Score") -> None:
    typer.echo(
        f"epoch {epoch}: train loss {seen.loss:.3f}, accuracy {seen.accuracy:.3f}; "
        f"validation loss {held.loss:.3f}, accuracy {held.accuracy:.3f}"
    )


def command_line() -> str:
    return shlex.join(["ssfserve", *sys.argv[1:]])
