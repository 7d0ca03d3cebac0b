"""mIoU of seeds as a function of the background threshold, for many thresholds in one pass over the data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wsss.metrics.confusion import as_uint8, check_truth_counts, miou
from wsss.types import BACKGROUND, IGNORE

TOLERANCE = 1e-5
"""How far a score may lie outside of [0, 1]; interpolation in float32 rounds."""


def strongest(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The class with the largest score at each pixel; the first one where several are equal.

    Args:
        scores: ``(K, H, W)`` with ``K >= 1``.

    Returns:
        Its index, ``(H, W)`` uint8 in 0..K-1, and its score, ``(H, W)``.
    """
    index, best = np.zeros(scores.shape[1:], dtype=np.uint8), scores[0]
    for k in range(1, len(scores)):  # K is small; np.argmax over the first axis takes more than twice as long
        np.putmask(index, scores[k] > best, k)
        best = np.maximum(best, scores[k])
    return index, best


def check_scores(scores: np.ndarray) -> None:
    """Raise ValueError unless every score is finite and in [0, 1]."""
    if scores.size:
        low, high = scores.min(), scores.max()
        if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):  # a NaN makes both comparisons false
            raise ValueError(f"scores must be finite and in [0, 1], got values from {low} to {high}")


class ThresholdCurve:
    """Data-set confusion of thresholded seeds at many thresholds ``t``, from one pass.

    At ``t`` a pixel takes the class with the largest score (the first of equals) if that score is **greater than**
    ``t``, else background: the argmax over {background with the constant score ``t``, present classes}, and the rule of
    :func:`wsss.refine.threshold.threshold`. Thresholds are rounded to float32, the type of the scores. For every pixel
    only its winner and the number of thresholds below the winning score are counted, so that the confusion matrix at
    any threshold is a partial sum, and exact.

    Args:
        num_classes: number of classes with background, ``C + 1``.
        thresholds: distinct values in [0, 1], in any order.

    Attributes:
        thresholds: the thresholds in increasing order.
        counts: ``(T + 1, n, n)`` int64: thresholds below the winning score, truth, winner. It is the whole state:
            counts of several processes add up.
    """

    def __init__(self, num_classes: int, thresholds: Sequence[float]) -> None:
        if not 1 <= num_classes <= IGNORE:
            raise ValueError(f"num_classes counts background too and lies in 1..{IGNORE}, got {num_classes}")
        self.num_classes = num_classes
        self.thresholds = sorted(float(t) for t in thresholds)
        self._float32 = np.array(self.thresholds, dtype=np.float32)
        if not self.thresholds or np.unique(self._float32).size < len(self.thresholds):
            raise ValueError(f"expected one or more distinct thresholds, got {list(thresholds)}")
        if not (self.thresholds[0] >= 0 and self.thresholds[-1] <= 1):
            raise ValueError(f"thresholds lie in [0, 1], got {list(thresholds)}")
        self.counts = np.zeros((len(self.thresholds) + 1, num_classes, num_classes), dtype=np.int64)

    def update(self, truth: np.ndarray, class_ids: Sequence[int] | np.ndarray, scores: np.ndarray) -> None:
        """Add one image.

        Args:
            truth: ``(H, W)`` uint8: 0..n-1, or 255 for a pixel that does not count.
            class_ids: the ``K`` present classes, distinct, in 1..n-1. With ``K = 0`` all pixels are background.
            scores: ``(K, H, W)`` float32 in [0, 1].

        Raises:
            DataError: the truth holds a label beyond the classes.
            ValueError: shapes or class ids do not fit, or a score is not in [0, 1].
        """
        ids, n, bins = np.asarray(class_ids, dtype=np.intp), self.num_classes, len(self.thresholds) + 1
        if truth.ndim != 2 or scores.shape != (len(ids), *truth.shape):
            raise ValueError(f"truth {truth.shape}, {len(ids)} class ids and scores {scores.shape} do not fit together")
        if len(ids) and (ids.min() < 1 or ids.max() >= n or np.unique(ids).size < len(ids)):
            raise ValueError(f"class ids must be distinct and in 1..{n - 1}, got {ids.tolist()}")
        check_scores(scores)
        truth = as_uint8(truth, "truth")
        if not len(ids):
            per_value = np.bincount(truth.reshape(-1), minlength=IGNORE + 1)
            check_truth_counts(per_value, n)
            self.counts[0, :, BACKGROUND] += per_value[:n]
            return
        index, best = strongest(np.asarray(scores, dtype=np.float32))
        below = np.zeros(best.shape, dtype=np.min_scalar_type(bins))
        for t in self._float32:  # one vectorised comparison each: nine times faster than np.searchsorted for 19
            below += best > t
        shape = (IGNORE + 1, len(ids), bins)
        size = int(np.prod(shape))
        key = truth.astype(np.min_scalar_type(size - 1))
        key *= len(ids)
        key += index
        key *= bins
        key += below
        table = np.bincount(key.reshape(-1), minlength=size).reshape(shape)
        check_truth_counts(table.sum(axis=(1, 2)), n)
        self.counts[:, :, ids] += table[:n].transpose(2, 0, 1)

    def merge(self, other: ThresholdCurve) -> None:
        """Add the counts of another curve of the same classes and thresholds."""
        if other.num_classes != self.num_classes or other.thresholds != self.thresholds:
            raise ValueError(
                f"cannot merge curves of {self.num_classes} classes at {self.thresholds} "
                f"and of {other.num_classes} at {other.thresholds}"
            )
        self.counts += other.counts

    def __iadd__(self, other: ThresholdCurve) -> ThresholdCurve:
        self.merge(other)
        return self

    def confusion(self, t: float) -> np.ndarray:
        """The ``(n, n)`` int64 confusion matrix at ``t``, one of the thresholds; rows are the truth."""
        (position,) = np.nonzero(self._float32 == np.float32(t))
        if not position.size:
            raise ValueError(f"{t} is not one of the thresholds {self.thresholds}")
        return self._confusion(int(position[0]))

    def curve(self) -> list[list[float]]:
        """``[t, mIoU]`` for each threshold in increasing order; NaN without pixels."""
        return [[t, miou(self._confusion(i))] for i, t in enumerate(self.thresholds)]

    def best(self) -> tuple[float, float]:
        """The threshold of the largest mIoU (the smallest one of equals) and that mIoU.

        It is chosen with masks: say so where the number is reported.
        """
        t, value = max(self.curve(), key=lambda point: (point[1], -point[0]))
        return t, value

    def _confusion(self, position: int) -> np.ndarray:
        matrix = self.counts[position + 1 :].sum(axis=0)
        matrix[:, BACKGROUND] += self.counts[: position + 1].sum(axis=(0, 2))
        return matrix
