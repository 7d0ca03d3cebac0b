"""One image's way from seeds to a label mask: any number of smoothing steps, then one labelling step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from wsss.errors import ConfigError
from wsss.metrics.threshold import check_scores
from wsss.refine.step import Step
from wsss.types import BACKGROUND, IGNORE


class Extras:
    """What steps may use beside an image and its scores. As it stands, nothing is kept and nothing has been learnt."""

    def superpixels(self, image: np.ndarray, settings: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """The superpixels that ``make`` computes from ``image`` with ``settings``; from a store where there is one."""
        return make()

    def boundaries(self) -> np.ndarray:
        """Class boundaries as the affinity stage learnt them, ``(h, w)`` float32 in [0, 1] on a coarser grid.

        Raises:
            ValueError: there are none.
        """
        raise ValueError("a random walk needs the class boundaries of the affinity stage, and none are at hand")


class Smoothing(Protocol):
    """A step from scores to better scores."""

    def __call__(self, image: np.ndarray, class_ids: np.ndarray, scores: np.ndarray, extras: Extras, /) -> np.ndarray:
        """``(H, W, 3)`` uint8, ``(K,)`` and ``(K, H, W)`` float32 in [0, 1] to the same shape and range; ``K >= 1``."""


class Labelling(Protocol):
    """The step from scores to labels."""

    def __call__(self, image: np.ndarray, class_ids: np.ndarray, scores: np.ndarray, extras: Extras, /) -> np.ndarray:
        """The same arguments to ``(H, W)`` uint8 in {0}, ``class_ids`` and {255}; ``K >= 1``."""


class Refiner:
    """From the seeds of one image to its label mask: the smoothing steps in order, then the labelling step.

    Args:
        labelling: the step from scores to labels.
        smoothing: steps from scores to scores, none by default.
        max_side: longest side in pixels at which an image is refined. A larger one is refined smaller and its labels
            are brought back, so that memory stays bounded: a dense CRF of 3 labels takes 0.7 kB a pixel of a noisy
            image (in torch 1.4 kB), a graph cut 0.5 kB. None: no limit. (The grid that a random walk works on is
            bounded by that of ``affinity.labels``.)

    Raises:
        ConfigError: something among the steps cannot be called, or ``max_side`` is no size.
    """

    def __init__(
        self, *, labelling: Labelling, smoothing: Sequence[Smoothing] | None = (), max_side: int | None = None
    ) -> None:
        if smoothing is None:
            smoothing = ()
        if callable(smoothing) or isinstance(smoothing, str):
            raise ConfigError(f"refiner.smoothing: expected a list of steps, got {smoothing!r}. Write it as a list.")
        self.smoothing = tuple(smoothing)  # a config list would not survive pickling without its library
        self.labelling = labelling
        for where, step in [*((f"smoothing[{i}]", s) for i, s in enumerate(self.smoothing)), ("labelling", labelling)]:
            if not callable(step):
                raise ConfigError(f"refiner.{where}: expected a step, got {step!r}. Give it a _target_ of wsss.refine.")
            gives, wanted = getattr(step, "gives", None), "labels" if where == "labelling" else "scores"
            if gives is not None and gives != wanted:  # steps of one's own need not say
                raise ConfigError(f"refiner.{where}: expected a step that gives {wanted}, got {step!r}")
        self.max_side = max_side
        if max_side is not None and not (isinstance(max_side, int) and max_side >= 16):
            raise ConfigError(f"refiner.max_side: expected 16 or more pixels, or null, got {max_side!r}")

    @property
    def needs_boundaries(self) -> bool:
        """Whether a step asks for the boundaries that the affinity stage learns."""
        return any(getattr(step, "needs_boundaries", False) for step in (*self.smoothing, self.labelling))

    def to(self, device: str) -> bool:
        """Let the steps compute on a torch device, unless a step holds the interpreter; whether any of them can.

        They then share this process's device from threads. A step that holds the interpreter needs processes instead.
        """
        steps = [step for step in (*self.smoothing, self.labelling) if isinstance(step, Step)]
        if any(part.holds_the_interpreter for step in steps for part in step.parts()):
            return False
        can = [step.to(device) for step in steps]
        return any(can)

    @property
    def needs_threshold(self) -> bool:
        """Whether the labelling step waits for the background that the threshold stage chooses."""
        return getattr(self._background, "needs_threshold", False)

    def choose(self, threshold: float) -> None:
        """Hand over what the threshold stage has chosen."""
        self._background.choose(threshold)

    @property
    def _background(self) -> Any:
        return getattr(self.labelling, "background", None)

    def working_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """The size ``(H, W)`` at which an image of ``size`` is refined."""
        longest = max(size)
        if self.max_side is None or longest <= self.max_side:
            return size
        height, width = (max(1, round(side * self.max_side / longest)) for side in size)
        return height, width

    def __call__(
        self,
        image: np.ndarray,
        class_ids: Sequence[int] | np.ndarray,
        scores: np.ndarray,
        extras: Extras | None = None,
    ) -> np.ndarray:
        """Label one image, at the size it comes in: bringing it to ``working_size`` is the caller's.

        Args:
            image: ``(H, W, 3)`` uint8 RGB.
            class_ids: the ``K`` present classes, distinct, in 1..254.
            scores: ``(K, H, W)`` floats in [0, 1].
            extras: what the steps may use beside; by default nothing.

        Returns:
            ``(H, W)`` uint8 in {0}, ``class_ids`` and {255}; all 0 if ``K = 0``.

        Raises:
            ValueError: shapes, class ids or scores break this contract.
        """
        ids = _checked_ids(image, class_ids, scores)
        if not len(ids):
            return np.full(image.shape[:2], BACKGROUND, dtype=np.uint8)
        extras, scores = extras or Extras(), scores.astype(np.float32, copy=False)
        for step in self.smoothing:
            shape, scores = scores.shape, step(image, ids, scores, extras)
            if scores.shape != shape:
                raise ValueError(f"{step!r} made scores {scores.shape} of scores {shape}")
            check_scores(scores)
        return self.labelling(image, ids, scores, extras)

    def __repr__(self) -> str:
        limit = "" if self.max_side is None else f", max_side={self.max_side}"
        return f"Refiner(smoothing={list(self.smoothing)!r}, labelling={self.labelling!r}{limit})"


def _checked_ids(image: np.ndarray, class_ids: Sequence[int] | np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The class ids as ``(K,)`` int64, after a look at all three."""
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
    return ids
