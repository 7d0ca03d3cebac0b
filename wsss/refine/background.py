"""The background that scores compete with: a constant, relative to a percentile, or a function of the scores."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from wsss.errors import ConfigError
from wsss.refine.step import Step
from wsss.refine.threshold import percentile_scale, power_background


class Background(Protocol):
    """What a labelling step compares scores with."""

    def __call__(self, scores: np.ndarray) -> tuple[np.ndarray, float | np.ndarray]:
        """``(K, H, W)`` in [0, 1] to the scores to compare and a background score, one number or ``(H, W)``."""


class ConstantBackground(Step):
    """The same score everywhere: relative to the maximum of each map, since maps are divided by theirs.

    Args:
        background: the score, in [0, 1].
    """

    def __init__(self, background: float = 0.3) -> None:
        self.background = background
        self.check_score("background")

    def __call__(self, scores: np.ndarray) -> tuple[np.ndarray, float]:
        """The scores as they are, and the constant."""
        return scores, self.background


class PercentileBackground(Step):
    """A constant relative to a percentile of each map instead of its maximum (PaS; Bae et al., 2020, Eq. 6).

    Args:
        background: the constant, in [0, 1].
        percentile: above 0, up to 100; 98 in the paper, 90 in the authors' earlier release.
    """

    def __init__(self, *, background: float = 0.3, percentile: float = 98) -> None:
        self.background, self.percentile = background, percentile
        self.check_score("background")
        self.check("percentile", lambda value: 0 < value <= 100, "above 0 to 100")

    def __call__(self, scores: np.ndarray) -> tuple[np.ndarray, float]:
        """Scores by :func:`wsss.refine.threshold.percentile_scale`, and the constant."""
        return percentile_scale(scores, percentile=self.percentile), self.background


class PowerBackground(Step):
    """(1 - max)^alpha: less of it where some class is strong (PSA, CVPR 2018).

    Args:
        alpha: positive; a larger one means less background.
    """

    def __init__(self, *, alpha: float = 4.0) -> None:
        self.alpha = alpha
        self.check_positive("alpha")

    def __call__(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The scores as they are, and :func:`wsss.refine.threshold.power_background`."""
        return scores, power_background(scores, alpha=self.alpha)


def as_background(value: Background | float | None) -> Background:
    """A number stands for a constant; None for the default one.

    Raises:
        ConfigError: it is neither a number in [0, 1] nor a background.
    """
    if value is None:
        return ConstantBackground()
    if callable(value):
        return value
    if isinstance(value, (int, float)):
        return ConstantBackground(value)
    raise ConfigError(f"background: expected a number from 0 to 1 or an option of conf/threshold/, got {value!r}")
