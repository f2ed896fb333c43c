import hashlib
from collections import Counter

import pytest

from adapters.division import Division, divide, draw, shuffled

TARGETS = [min(n % 40, 11) for n in range(3000)]  # class 11 has 70 % of the images


def of_class(places: list[int], target: int) -> int:
    return sum(TARGETS[place] == target for place in places)


def test_a_draw_is_the_same_on_every_machine() -> None:
    drawn = draw(TARGETS, 1000)
    assert hashlib.sha256(str(drawn).encode()).hexdigest()[:16] == "3a7b134d4545ebb1"


def test_a_draw_takes_no_image_twice_and_one_of_each_class_first() -> None:
    targets = [n % 397 for n in range(2000)]
    drawn = draw(targets, 1000)
    assert len(set(drawn)) == 1000
    assert {targets[place] for place in drawn[:397]} == set(range(397))
    assert len({targets[place] for place in draw(targets, 300)}) == 300


def test_beyond_one_of_each_class_a_draw_is_in_proportion() -> None:
    drawn = draw(TARGETS, 1000)
    assert of_class(drawn, 11) == pytest.approx(725, abs=50)
    assert of_class(drawn[800:], 11) == pytest.approx(145, abs=25)


def test_orders_differ_by_purpose() -> None:
    one, other = shuffled(100, "draw"), shuffled(100, "division")
    assert sorted(one) == sorted(other) == list(range(100))
    assert one != other


@pytest.mark.parametrize(
    ("division", "expected"),
    [(Division(test_share=0.2), {0: (60, 15), 11: (1740, 435)}), (Division(train_images=70), {0: (70, 5)})],
)
def test_a_division_parts_every_class(division: Division, expected: dict[int, tuple[int, int]]) -> None:
    train, test = divide(TARGETS, division)
    assert sorted(train + test) == list(range(3000))
    assert (train, test) == (sorted(train), sorted(test))
    for target, counts in expected.items():
        assert (of_class(train, target), of_class(test, target)) == counts


def test_a_class_smaller_than_its_share_trains_whole() -> None:
    train, test = divide([0] * 4 + [1] * 9, Division(train_images=5))
    assert Counter(place >= 4 for place in train) == {False: 4, True: 5}
    assert len(test) == 4
