"""Orders and divisions that are the same everywhere: hashes draw them, which no seed or library changes."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256


@dataclass(frozen=True, slots=True)
class Division:
    """How a set without a test part is divided: so many of each class train, or a share of it tests."""

    train_images: int | None = None
    test_share: float = 0.0

    def train_count(self, members: int) -> int:
        if self.train_images is not None:
            return min(self.train_images, members)
        return members - round(self.test_share * members)


def divide(targets: Sequence[int], division: Division) -> tuple[list[int], list[int]]:
    """Return the places to train and to test on, each in order."""
    members = defaultdict(list)
    for place in shuffled(len(targets), "division"):
        members[targets[place]].append(place)
    train, test = [], []
    for places in members.values():
        count = division.train_count(len(places))
        train += places[:count]
        test += places[count:]
    return sorted(train), sorted(test)


def draw(targets: Sequence[int], count: int) -> list[int]:
    """Return places: one of each class, as long as the count suffices, then others at random."""
    order = shuffled(len(targets), "draw")
    firsts: dict[int, int] = {}
    for place in order:
        firsts.setdefault(targets[place], place)
    chosen = set(firsts.values())
    others = [place for place in order if place not in chosen]
    return [*firsts.values(), *others][:count]


def shuffled(count: int, purpose: str) -> list[int]:
    """Return 0 to count - 1 in an order of its own for each purpose."""
    return sorted(range(count), key=lambda place: sha256(f"{purpose} {place}".encode()).digest())
