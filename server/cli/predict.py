"""The verb `predict`: classify image files with a running server."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from server.cli.options import AsJson, Key, TaskName, Url, connect
from server.cli.output import show_json, show_table, warn

CONCURRENT = 16  # enough to fill a batch
NOT_THE_IMAGE = frozenset({401, 403, 404})  # refusals that every other image would meet too

Answer = dict[str, Any]

app = typer.Typer()


@app.command()
def predict(
    *,
    task: TaskName,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Files.", show_default=False)],
    top_k: Annotated[int, typer.Option(min=1, help="Classes per image, most probable first.")] = 1,
    version: Annotated[int | None, typer.Option(min=1, help="A version; else what the alias names.")] = None,
    alias: Annotated[str | None, typer.Option(help="An alias other than production.")] = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Classify images.

    One that fails is reported and the others go on; the exit code is then 1.
    """
    if version is not None and alias is not None:
        raise typer.BadParameter("give a version or an alias, not both", param_hint="--version")
    with connect(url, key) as client:
        ask = partial(client.predict, task, top_k=top_k, version=version, alias=alias)
        with ThreadPoolExecutor(CONCURRENT) as threads:
            answers = list(threads.map(partial(_answer, ask), images))
    failed = [answer for answer in answers if "error" in answer]
    if as_json:
        show_json(answers)
    else:
        show_table(("IMAGE", "LABEL", "PROBABILITY", "VERSION"), _rows(answers))
        for answer in failed:
            warn(f"{answer['image']}: {answer['error']}")
    if failed:
        raise typer.Exit(1)


def _answer(ask: Callable[[bytes], Answer], path: Path) -> Answer:
    from server.http_client import ServerRefused

    try:
        return {"image": str(path), **ask(path.read_bytes())}
    except OSError as error:
        return {"image": str(path), "error": error.strerror or str(error)}
    except ServerRefused as error:
        if error.status in NOT_THE_IMAGE:
            raise
        return {"image": str(path), "error": str(error)}


def _rows(answers: Sequence[Answer]) -> Iterator[tuple[object, ...]]:
    for answer in answers:
        for prediction in answer.get("predictions", ()):
            probability = f"{prediction['probability']:.4f}"
            yield answer["image"], prediction["label"], probability, answer["version"]
