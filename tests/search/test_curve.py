"""Curves rise, undo each other, and a bend of nothing is the sum itself to the last bit."""

import math

import pytest

from search.curve import Curve

BENDS = (-3.0, -0.2, -1e-12, 0.0, 1e-12, 0.05, 0.4, 2.0)
SUMS = (-80.0, -1e-3, 0.0, 1e-9, 0.7, 12.5, 90.0, 1e6)


@pytest.mark.parametrize("bend", BENDS)
def test_a_sum_comes_back_from_its_total(bend: float) -> None:
    curve = Curve(bend, 40.0)
    for summed in SUMS:
        assert curve.summed(curve.total(summed)) == pytest.approx(summed, rel=1e-12)
        assert Curve(-bend, 40.0).total(summed) == pytest.approx(curve.summed(summed), rel=1e-12)
    assert [curve.total(each) for each in SUMS] == sorted(curve.total(each) for each in SUMS)


@pytest.mark.parametrize("bend", BENDS)
def test_the_slope_is_that_of_the_sum_over_the_total(bend: float) -> None:
    curve = Curve(bend, 40.0)
    for total in (-9.0, 0.5, 30.0, 400.0):
        step = 1e-4 * abs(total)
        rise = (curve.summed(total + step) - curve.summed(total - step)) / (2 * step)
        assert curve.slope(total) == pytest.approx(rise, rel=1e-6)


def test_a_positive_bend_adds_its_part_where_the_sum_is_the_scale() -> None:
    assert Curve(0.1, 40.0).total(40.0) == pytest.approx(44.0)
    assert Curve(-0.1, 40.0).summed(40.0) == pytest.approx(44.0)


def test_without_a_bend_nothing_is_rounded_and_no_limit_stays_none() -> None:
    assert Curve().total(0.1 + 0.2) == 0.1 + 0.2
    assert all(Curve(bend).summed(math.inf) == math.inf for bend in BENDS)
