"""SplitMix64, against the numbers that its authors' program gives for the seed 0."""

import numpy as np

from towers.features.hashing import mixed


def test_the_first_numbers_are_those_of_the_reference() -> None:
    first, second, third = 0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F
    zero = np.zeros(1, np.uint64)
    assert [int(mixed(zero, seed)[0]) for seed in range(3)] == [first, second, third]


def test_a_number_mixes_alike_in_any_company() -> None:
    x = np.array([0, 1, 2**64 - 1], np.uint64)
    assert mixed(x, 7).tolist() == [int(mixed(x[i : i + 1], 7)[0]) for i in range(3)]
