"""Learning-rate schedules: pure functions of the step that give a factor on every group's learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence


def poly(step: int, steps: int, *, power: float = 0.9) -> float:
    """Polynomial decay, (1 - step / steps) ** power (DeepLab; IRN and LPCAM use it per step with power 0.9).

    >>> poly(0, 10), poly(10, 10)
    (1.0, 0.0)
    """
    return max(0.0, 1 - step / steps) ** power


def step(step: int, steps: int, *, milestones: Sequence[float], gamma: float = 0.1) -> float:
    """``gamma`` to the power of the milestones passed (DeepLab-LargeFOV: a tenth from 12k of 16k steps on).

    Args:
        step: from 0.
        steps: of the whole training.
        milestones: fractions of ``steps``, rounded to whole steps, in ascending order.
        gamma: factor at each milestone.

    Raises:
        ValueError: milestones that are no fractions or do not ascend.

    >>> [step(at, 16, milestones=(0.75,)) for at in (0, 11, 12, 15)]
    [1.0, 1.0, 0.1, 0.1]
    """
    if list(milestones) != sorted(milestones) or not all(0 < part <= 1 for part in milestones):
        raise ValueError(f"milestones={list(milestones)} must be fractions of the training in (0, 1], ascending")
    return float(gamma) ** sum(step >= round(part * steps) for part in milestones)


def one_cycle(step: int, steps: int, *, warmup: float = 0.1) -> float:
    """Linear rise over the first ``warmup`` part of the steps, then a half cosine down to zero.

    >>> [round(one_cycle(step, 10, warmup=0.2), 2) for step in (0, 1, 2, 6, 10)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    rise = round(warmup * steps)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rise) / max(1, steps - rise))))
