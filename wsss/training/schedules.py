"""Learning-rate schedules: pure functions of the step that give a factor on every group's learning rate."""

from __future__ import annotations

import math


def poly(step: int, steps: int, *, power: float = 0.9) -> float:
    """Polynomial decay, (1 - step / steps) ** power (DeepLab; IRN and LPCAM use it per step with power 0.9).

    >>> poly(0, 10), poly(10, 10)
    (1.0, 0.0)
    """
    return max(0.0, 1 - step / steps) ** power


def one_cycle(step: int, steps: int, *, warmup: float = 0.1) -> float:
    """Linear rise over the first ``warmup`` part of the steps, then a half cosine down to zero.

    >>> [round(one_cycle(step, 10, warmup=0.2), 2) for step in (0, 1, 2, 6, 10)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    rise = round(warmup * steps)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rise) / max(1, steps - rise))))
