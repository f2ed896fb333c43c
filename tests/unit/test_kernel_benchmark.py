"""The cases of the kernel benchmark are right before a GPU times them: here on the CPU, at a toy size."""

from dataclasses import replace

import pytest
import torch

from benchmarks.kernel_cases import Case, cases


def toy_cases() -> list[Case]:
    return list(cases(torch.device("cpu"), torch.float32, 2, tokens=3, width=16))


def test_every_case_agrees_with_its_reference_and_its_twin_runs() -> None:
    for case in toy_cases():
        case.check()
        case.plain()
        assert case.bytes > 0


def test_every_op_is_measured_with_both_mixes() -> None:
    mixes: dict[str, set[str]] = {}
    for case in toy_cases():
        mixes.setdefault(case.op.partition(",")[0], set()).add(case.mix)
    both = {"identical", "distinct"}
    assert mixes == {
        "affine + gelu": both,
        "add + norm_affine": both,
        "heads": both,
        "linear_affine": both,
        "normalize": {""},
    }


def test_wrong_answer_is_not_timed() -> None:
    case = toy_cases()[0]
    wrong = replace(case, run=lambda: case.run() * 1.001)
    with pytest.raises(ArithmeticError, match="affine"):
        wrong.check()


def test_bytes_of_the_affine_are_one_read_and_one_write() -> None:
    case = toy_cases()[0]
    assert case.bytes == 2 * case.run().nbytes
