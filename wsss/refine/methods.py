"""The objects that Hydra builds: steps that turn the seeds of one image into a label mask.

A refiner applies any number of smoothing steps (scores to scores) and then one labelling step (scores to labels). A new
method is a new class with one of the two call signatures below; nothing else has to know about it.

The defaults come from ground-truth masks degraded to CAM-like scores (block means on a coarse grid, blurred, multiplied
by a smooth random field) of 38 msrc15 training images; mIoU in %, background 0.3, in brackets at the best threshold:

    long side, grid           320 px, 32 px    128 px, 16 px
    Threshold                 66.4 (69.3)      60.2 (67.0)
    SLIC 400, compactness 20  66.4 (69.1)      60.2 (66.8)
    Felzenszwalb, scale 200   71.8 (75.6)      64.2 (73.3)
    DenseCrf, PSA             70.6             64.2
    DenseCrf, IRN             77.9             68.6
    DenseCrf, DEEPLAB         79.5             71.3
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from wsss.errors import ConfigError
from wsss.metrics.threshold import check_scores
from wsss.refine.crf import DEEPLAB, dense_crf, hard_probabilities, soft_probabilities
from wsss.refine.superpixel import felzenszwalb, slic, superpixel_smoothing
from wsss.refine.threshold import percentile_scale, power_background, threshold
from wsss.types import BACKGROUND, IGNORE


class Smoothing(Protocol):
    """A step from scores to better scores."""

    def __call__(self, image: np.ndarray, class_ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """``(H, W, 3)`` uint8, ``(K,)`` and ``(K, H, W)`` float32 in [0, 1] to the same shape and range; ``K >= 1``."""


class Labelling(Protocol):
    """The step from scores to labels."""

    def __call__(self, image: np.ndarray, class_ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """The same arguments to ``(H, W)`` uint8 in {0}, ``class_ids`` and {255}; ``K >= 1``."""


class _Step:
    """Compares and prints by its settings.

    Not a dataclass: Hydra puts the steps of a list into a config list, which would turn dataclasses into plain nodes.
    """

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), *vars(self).items()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"


class Superpixels(_Step):
    """Mean of each score over superpixels (LayerCAM, TIP 2021, Eq. 10).

    Args:
        algorithm: "felzenszwalb" or "slic". SLIC makes segments of nearly equal size: a vote over them moves a border
            by less than a segment, while Felzenszwalb's segments follow objects (numbers in the module's head).
        segments: SLIC's number of superpixels per image, default 400.
        compactness: SLIC's weight of position against colour, default 20.
        scale: Felzenszwalb's preference for large segments, default 200.
        min_size: Felzenszwalb's smallest segment in pixels, default 20.
        sigma: Gaussian smoothing of the image beforehand in pixels, default 0 (slic) or 0.8 (felzenszwalb).
    """

    def __init__(
        self,
        *,
        algorithm: str = "felzenszwalb",
        segments: int | None = None,
        compactness: float | None = None,
        scale: float | None = None,
        min_size: int | None = None,
        sigma: float | None = None,
    ) -> None:
        self.algorithm = algorithm
        self.segments = segments
        self.compactness = compactness
        self.scale = scale
        self.min_size = min_size
        self.sigma = sigma
        own = {"slic": ("segments", "compactness", "sigma"), "felzenszwalb": ("scale", "min_size", "sigma")}
        if self.algorithm not in own:
            raise _config_error(self, "algorithm", f"one of {', '.join(own)}")
        for name in ("segments", "compactness", "scale", "min_size", "sigma"):
            if getattr(self, name) is None:
                continue
            if name not in own[self.algorithm]:
                takes = ", ".join(own[self.algorithm])
                raise _config_error(self, name, f"null with {self.algorithm}, which takes {takes}")
            if name in ("segments", "min_size"):
                _check(self, name, lambda value: value >= 1 and value == int(value), "a whole number of 1 or more")
            elif name == "sigma":
                _check(self, name, lambda value: value >= 0, "a number of 0 or more")
            else:
                _check(self, name, lambda value: value > 0, "a positive number")

    def __call__(self, image: np.ndarray, class_ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Scores that are constant on each superpixel."""
        return superpixel_smoothing(self.segment(image), scores)

    def segment(self, image: np.ndarray) -> np.ndarray:
        """The superpixels of an image, ``(H, W)`` ids 0..S-1."""
        if self.algorithm == "slic":
            return slic(
                image,
                segments=int(_default(self.segments, 400)),
                compactness=_default(self.compactness, 20.0),
                sigma=_default(self.sigma, 0.0),
            )
        return felzenszwalb(
            image,
            scale=_default(self.scale, 200.0),
            sigma=_default(self.sigma, 0.8),
            min_size=int(_default(self.min_size, 20)),
        )


class Threshold(_Step):
    """The strongest class where its score is greater than a constant, else background.

    Args:
        background: the constant, in [0, 1].
        percentile: the constant is relative to this percentile of each map (PaS) instead of its maximum.
    """

    def __init__(self, *, background: float = 0.3, percentile: float | None = None) -> None:
        self.background = background
        self.percentile = percentile
        _check(self, "background", lambda value: 0 <= value <= 1, "a number from 0 to 1")
        _check_percentile(self)

    def __call__(self, image: np.ndarray, class_ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Labels by :func:`wsss.refine.threshold.threshold`."""
        return threshold(percentile_scale(scores, percentile=self.percentile), class_ids, background=self.background)


class DenseCrf(_Step):
    """Labels from a fully connected CRF over background and the classes present.

    Args:
        background: constant score of the background, in [0, 1]; not read if ``power`` is set.
        percentile: scores are relative to this percentile of each map (PaS) instead of its maximum.
        power: alpha of a background score (1 - max)^alpha instead of the constant.
        unary: "soft", from the scores, or "hard", from the thresholded labels.
        gt_prob: with "hard", how far such a label is trusted, in (0, 1).
        iterations: of mean field.
        gaussian_sxy: and the rest: see :func:`wsss.refine.crf.dense_crf`; the default is the preset DEEPLAB.
            ``DenseCrf(**IRN)`` takes another.
    """

    def __init__(
        self,
        *,
        background: float = 0.3,
        percentile: float | None = None,
        power: float | None = None,
        unary: str = "soft",
        gt_prob: float = 0.7,
        iterations: int = 10,
        gaussian_sxy: float = DEEPLAB["gaussian_sxy"],
        gaussian_compat: float = DEEPLAB["gaussian_compat"],
        bilateral_sxy: float = DEEPLAB["bilateral_sxy"],
        bilateral_srgb: float = DEEPLAB["bilateral_srgb"],
        bilateral_compat: float = DEEPLAB["bilateral_compat"],
    ) -> None:
        self.background = background
        self.percentile = percentile
        self.power = power
        self.unary = unary
        self.gt_prob = gt_prob
        self.iterations = iterations
        self.gaussian_sxy = gaussian_sxy
        self.gaussian_compat = gaussian_compat
        self.bilateral_sxy = bilateral_sxy
        self.bilateral_srgb = bilateral_srgb
        self.bilateral_compat = bilateral_compat
        _check(self, "background", lambda value: 0 <= value <= 1, "a number from 0 to 1")
        if self.unary not in ("soft", "hard"):
            raise _config_error(self, "unary", "soft or hard")
        _check(self, "gt_prob", lambda value: 0 < value < 1, "a number between 0 and 1")
        _check(self, "iterations", lambda value: value >= 1 and value == int(value), "a whole number of 1 or more")
        _check_percentile(self)
        if self.power is not None:
            _check(self, "power", lambda value: value > 0, "a positive number, or null for a constant background")
        for name in ("gaussian_sxy", "bilateral_sxy", "bilateral_srgb"):
            _check(self, name, lambda value: value > 0, "a positive number")
        for name in ("gaussian_compat", "bilateral_compat"):
            _check(self, name, lambda value: value >= 0, "a number of 0 or more")

    def __call__(self, image: np.ndarray, class_ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """The label of the largest posterior (the first of equals, background before the classes)."""
        posterior = self.posterior(image, class_ids, scores)
        values = np.concatenate([[BACKGROUND], class_ids]).astype(np.uint8)
        return values[posterior.argmax(axis=0)]

    def posterior(self, image: np.ndarray, class_ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """``(K + 1, H, W)`` float32, background first."""
        scores = percentile_scale(scores, percentile=self.percentile)
        background = self.background if self.power is None else power_background(scores, alpha=self.power)
        if self.unary == "hard" and len(class_ids):
            labels = threshold(scores, class_ids, background=background)
            probabilities = hard_probabilities(labels, class_ids, gt_prob=self.gt_prob)
        else:
            probabilities = soft_probabilities(scores, background=background)
        return dense_crf(
            image,
            probabilities,
            iterations=int(self.iterations),
            gaussian_sxy=self.gaussian_sxy,
            gaussian_compat=self.gaussian_compat,
            bilateral_sxy=self.bilateral_sxy,
            bilateral_srgb=self.bilateral_srgb,
            bilateral_compat=self.bilateral_compat,
        )


class Refiner:
    """From the seeds of one image to its label mask: the smoothing steps in order, then the labelling step.

    Args:
        smoothing: steps from scores to scores, none by default.
        labelling: the step from scores to labels, ``Threshold()`` by default.

    Raises:
        ConfigError: something among the steps cannot be called.
    """

    def __init__(self, *, smoothing: Sequence[Smoothing] | None = (), labelling: Labelling | None = None) -> None:
        if smoothing is None:
            smoothing = ()
        if callable(smoothing) or isinstance(smoothing, str):
            raise ConfigError(f"refiner.smoothing: expected a list of steps, got {smoothing!r}. Write it as a list.")
        self.smoothing = tuple(smoothing)  # a config list would not survive pickling without its library
        self.labelling: Labelling = Threshold() if labelling is None else labelling
        for where, step in [*((f"smoothing[{i}]", s) for i, s in enumerate(self.smoothing)), ("labelling", labelling)]:
            if step is not None and not callable(step):
                raise ConfigError(f"refiner.{where}: expected a step, got {step!r}. Give it a _target_ of wsss.refine.")

    def __call__(self, image: np.ndarray, class_ids: Sequence[int] | np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Label one image.

        Args:
            image: ``(H, W, 3)`` uint8 RGB.
            class_ids: the ``K`` present classes, distinct, in 1..254.
            scores: ``(K, H, W)`` floats in [0, 1].

        Returns:
            ``(H, W)`` uint8 in {0}, ``class_ids`` and {255}; all 0 if ``K = 0``.

        Raises:
            ValueError: shapes, class ids or scores break this contract.
        """
        ids = np.asarray(class_ids, dtype=np.int64)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"expected an image (H, W, 3) of uint8, got {image.shape} of {image.dtype}")
        if ids.ndim != 1 or scores.shape != (len(ids), *image.shape[:2]):
            raise ValueError(
                f"image {image.shape}, class ids {ids.shape} and scores {scores.shape} do not fit together; "
                f"expected (H, W, 3), (K,) and (K, H, W)"
            )
        if len(ids) and (ids.min() < 1 or ids.max() >= IGNORE or np.unique(ids).size < len(ids)):
            raise ValueError(f"class ids must be distinct and in 1..{IGNORE - 1}, got {ids.tolist()}")
        check_scores(scores)
        if not len(ids):
            return np.full(image.shape[:2], BACKGROUND, dtype=np.uint8)
        scores = scores.astype(np.float32, copy=False)
        for step in self.smoothing:
            scores = step(image, ids, scores)
        return self.labelling(image, ids, scores)

    def __repr__(self) -> str:
        return f"Refiner(smoothing={list(self.smoothing)!r}, labelling={self.labelling!r})"


def _default(value: Any, default: Any) -> Any:
    return default if value is None else value


def _check_percentile(step: Any) -> None:
    if step.percentile is not None:
        _check(step, "percentile", lambda value: 0 < value <= 100, "above 0 to 100, or null")


def _check(step: Any, name: str, holds: Callable[[float], bool], expected: str) -> None:
    value = getattr(step, name)
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not (number and holds(value)):
        raise _config_error(step, name, expected)


def _config_error(step: Any, name: str, expected: str) -> ConfigError:
    return ConfigError(
        f"{type(step).__name__}.{name}: expected {expected}, got {getattr(step, name)!r}. "
        f"Set it in the configuration of the refiner."
    )
