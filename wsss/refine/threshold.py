"""Scores to labels by comparison with a background score."""

from __future__ import annotations

import numpy as np

from wsss.metrics.threshold import strongest
from wsss.types import BACKGROUND


def threshold(scores: np.ndarray, class_ids: np.ndarray, *, background: float | np.ndarray) -> np.ndarray:
    """Argmax over {background, present classes}.

    A pixel takes the class with the largest score (the first of equals) if that score is **greater than** the
    background score, else background. The same rule as :class:`wsss.metrics.ThresholdCurve`, to the last bit: the
    background score is rounded to float32, the type of the scores.

    Args:
        scores: ``(K, H, W)`` float32 in [0, 1].
        class_ids: ``(K,)`` the label of each map, 1..254.
        background: one score for all pixels, or ``(H, W)``.

    Returns:
        ``(H, W)`` uint8 in {0} and ``class_ids``; all 0 without classes.
    """
    if not len(scores):
        return np.full(scores.shape[1:], BACKGROUND, dtype=np.uint8)
    index, best = strongest(scores)
    foreground = best > np.asarray(background, dtype=np.float32)
    return np.where(foreground, np.asarray(class_ids).astype(np.uint8)[index], np.uint8(BACKGROUND))


def power_background(scores: np.ndarray, *, alpha: float) -> np.ndarray:
    """Background score ``(1 - max_c scores)^alpha`` of each pixel (PSA, CVPR 2018); a larger alpha means less of it.

    Args:
        scores: ``(K, H, W)`` in [0, 1].
        alpha: positive.

    Returns:
        ``(H, W)`` float32 in [0, 1]; all 1 without classes.
    """
    best = scores.max(axis=0, initial=0)
    return ((1 - np.minimum(best, 1)) ** alpha).astype(np.float32)


def percentile_scale(scores: np.ndarray, *, percentile: float | None) -> np.ndarray:
    """Divide each map by its own percentile instead of its maximum (PaS; Bae et al., 2020, Eq. 6).

    A threshold t on the result is the threshold t * percentile(map) on the map. Where a class lies above its
    percentile, all classes of the pixel are divided by the largest quotient there: the result stays in [0, 1], and
    the winner the winner. (The paper has one class per image and needs no such rule.) A map of a small object may be 0
    on so many pixels that its percentile is 0, which says nothing; that map stays relative to its maximum.

    Args:
        scores: ``(K, H, W)`` in [0, 1].
        percentile: above 0, up to 100 (the maximum); 98 in the paper, 90 in the authors' earlier release. None
            leaves the scores as they are.

    Returns:
        ``(K, H, W)`` float32 in [0, 1].
    """
    if percentile is None or not scores.size:
        return scores.astype(np.float32, copy=False)
    reference = np.percentile(scores, percentile, axis=(1, 2), keepdims=True)
    reference = np.where(reference > 0, reference, scores.max(axis=(1, 2), keepdims=True))
    quotients = scores / np.where(reference > 0, reference, 1)
    return (quotients / np.maximum(quotients.max(axis=0), 1)).astype(np.float32)
