"""Random numbers of a training: each epoch draws its own, so that a run can go on where another ended."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

STRIDE = 1_000_003  # a prime: seeds of neighbouring trainings meet in no epoch


def seed_epoch(generator: torch.Generator, seed: int, epoch: int) -> None:
    """Seed a generator, and the global ones that timm and PyTorch's layers draw from, for an epoch."""
    number = (seed * STRIDE + epoch) % 2**63
    generator.manual_seed(number)
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number % 2**32)  # timm's mixup draws from it


@contextmanager
def own_random_numbers(seed: int) -> Iterator[None]:
    """Seed the global generators for a training, and give them back as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            seed_epoch(torch.Generator(), seed, 0)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
