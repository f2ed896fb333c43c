"""The Prometheus text format: of one replica, and of several in one."""

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


class _Plain:
    """What a registry collects, without the creation times, which would double the series."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for family in self._registry.collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family


def exposition(registry: CollectorRegistry) -> str:
    """Return a registry's metrics as text."""
    return generate_latest(_Plain(registry)).decode()


def merge(texts: Mapping[str, str]) -> str:
    """Join the expositions of several replicas, by name, telling their series apart by a label `replica`.

    Takes what `exposition` returns. Each family appears once, its series together, as the format demands.
    """
    heads: dict[str, list[str]] = {}
    series: dict[str, list[str]] = {}
    for replica, text in texts.items():
        label = f'replica="{replica.translate(ESCAPES)}"'
        for family, comments, samples in _families(text.split("\n")):
            heads.setdefault(family, comments)
            series.setdefault(family, []).extend(_labelled(sample, label) for sample in samples)
    lines = (line for family, comments in heads.items() for line in (*comments, *series[family]))
    return "".join(f"{line}\n" for line in lines)


def _families(lines: Iterable[str]) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield name, comments and samples of each family; it begins with its HELP."""
    name = ""
    comments: list[str] = []
    samples: list[str] = []
    for line in lines:
        if line.startswith("# HELP "):
            if comments:
                yield name, comments, samples
            name, comments, samples = line.split(" ", 3)[2], [line], []
        elif line.startswith("#"):
            comments.append(line)
        elif line:
            samples.append(line)
    if comments:
        yield name, comments, samples


def _labelled(sample: str, label: str) -> str:
    """Put a label in front of a sample's own; the first brace or space ends its name."""
    end = min(at for at in (sample.find("{"), sample.find(" ")) if at >= 0)
    if sample[end] == "{":
        return f"{sample[: end + 1]}{label},{sample[end + 1 :]}"
    return f"{sample[:end]}{{{label}}}{sample[end:]}"
