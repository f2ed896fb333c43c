"""Names of the random changes to training images; none leaves uint8. Loads no torch.

    flip        left and right, half of the time
    rotate180   upside down, half of the time: keeps the direction of a texture
    dihedral    one of the eight flips and quarter turns, for square images
    shift       by up to a fourteenth of the size each way, the border mirrored
    crop        a part of 60 to 100 % of the area, resized to the whole

Which of them keep a label is for who knows the data to say: a flipped `2` is no digit.
"""

NAMES = ("flip", "rotate180", "dihedral", "shift", "crop")


def parse_augment(text: str) -> tuple[str, ...]:
    """Return the names in a comma-separated list; `none` is the empty one.

    Raises:
        ValueError: If one is unknown.
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip() and name.strip() != "none")
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise ValueError(f"no augmentation {', '.join(unknown)}; there are none, {', '.join(NAMES)}")
    return names
