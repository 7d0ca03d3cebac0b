import math

import pytest

from wsss.training.schedules import one_cycle, poly, step


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


def test_step_by_hand() -> None:
    """DeepLab-LargeFOV: a tenth from step 12000 of 16000 on."""
    factors = [step(at, 16000, milestones=[0.75], gamma=0.1) for at in (0, 11999, 12000, 16000)]
    assert factors == [1, 1, 0.1, 0.1]
    assert [step(at, 4, milestones=[0.25, 0.75], gamma=0.5) for at in range(5)] == [1, 0.5, 0.5, 0.25, 0.25]


def test_a_milestone_falls_on_a_whole_step() -> None:
    """0.1 * 30 is a little more than 3, and 0.3 * 10 a little less."""
    assert [step(at, 30, milestones=[0.1], gamma=0.5) for at in (2, 3)] == [1, 0.5]
    assert [step(at, 10, milestones=[0.3], gamma=0.5) for at in (2, 3)] == [1, 0.5]


@pytest.mark.parametrize("milestones", [[0.75, 0.5], [0.0], [1.5], [12000]])
def test_milestones_that_make_no_sense(milestones: list[float]) -> None:
    with pytest.raises(ValueError, match="fractions of the training"):
        step(0, 10, milestones=milestones, gamma=0.1)


def test_without_milestones_nothing_changes() -> None:
    assert step(9, 10, milestones=[]) == 1
