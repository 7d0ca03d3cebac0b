import math

import pytest

from wsss.training.schedules import one_cycle, poly


def test_poly_by_hand() -> None:
    assert [poly(step, 4, power=1.0) for step in range(5)] == [1, 0.75, 0.5, 0.25, 0]
    assert poly(3, 4, power=2.0) == 0.0625
    assert poly(5, 10) == 0.5**0.9


def test_poly_stays_at_zero_after_the_end() -> None:
    """Lightning asks for one step more than there are."""
    assert poly(11, 10) == 0


def test_one_cycle_by_hand() -> None:
    """Two steps up, then a half cosine over eight: a quarter of it is (1 + cos 45 deg) / 2."""
    factors = [one_cycle(step, 10, warmup=0.2) for step in range(11)]
    assert factors[:3] == [0.5, 1, 1]
    assert factors[4] == pytest.approx(0.5 * (1 + math.sqrt(0.5)))
    assert factors[6] == pytest.approx(0.5)
    assert factors[10] == 0
    assert factors[2:] == sorted(factors[2:], reverse=True)


def test_one_cycle_at_the_edges() -> None:
    assert one_cycle(0, 10, warmup=0.0) == 1
    assert one_cycle(12, 10) == 0
    assert [one_cycle(step, 1) for step in (0, 1)] == [1, 0]
    assert [one_cycle(step, 2, warmup=1.0) for step in (0, 1, 2)] == [0.5, 1, 1]
    assert one_cycle(0, 10, warmup=0.1) == 1  # the first step is never lost to a factor of zero
