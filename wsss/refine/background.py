"""The background that scores compete with: a constant, relative to a percentile, or a function of the scores."""

from __future__ import annotations

import math
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


class AutoBackground(Step):
    """The background that :mod:`wsss.refine.auto_threshold` chooses without a mask, from the seeds of a data set.

    The threshold stage of the pipeline chooses it, and the stages that label hand it over with :meth:`choose`.

    Args:
        form: "constant", or "power": (1 - max)^alpha with the alpha that leaves the labels of a plain threshold as they
            are, so that only a CRF sees the difference.
        stage: of the classifier, whose features judge the candidates.
        side: long side in pixels at which the classifier sees the images.
        images: how many images with a class are looked at, evenly spread over the training split; None: all.
    """

    needs_threshold = True

    def __init__(self, *, form: str = "constant", stage: int = 4, side: int = 480, images: int | None = 1000) -> None:
        self.form = form
        self.stage = stage
        self.side = side
        self.images = images
        self._chosen: Background | None = None
        self.check_choice("form", "constant", "power")
        self.check_count("stage")
        self.check("side", lambda value: value >= 64 and value == int(value), "64 or more pixels")
        if images is not None:
            self.check(
                "images", lambda value: value >= 2 and value == int(value), "a whole number of 2 or more, or null"
            )

    def choose(self, threshold: float) -> None:
        """Use ``threshold``, in (0, 1), from now on."""
        # a score is greater than (1 - score)^alpha exactly where it is greater than the t for which t = (1 - t)^alpha
        alpha = math.log(threshold) / math.log(1 - threshold)
        self._chosen = ConstantBackground(threshold) if self.form == "constant" else PowerBackground(alpha=alpha)

    def __call__(self, scores: np.ndarray) -> tuple[np.ndarray, float | np.ndarray]:
        """As the chosen background.

        Raises:
            ValueError: none has been chosen.
        """
        if self._chosen is None:
            raise ValueError("threshold=auto: no threshold has been chosen yet; the pipeline's threshold stage does it")
        return self._chosen(scores)


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
