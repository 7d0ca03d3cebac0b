"""The boundary F-score: how near the borders of predicted regions lie to the true ones."""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from wsss.metrics.confusion import as_uint8, check_truth_counts
from wsss.types import BACKGROUND, IGNORE


class BoundaryFScore:
    """Boundary F-score of a data set (Csurka, Larlus and Perronnin, BMVC 2013).

    A boundary pixel of class c has label c and one of its four neighbours has another; the edge of the image is no
    boundary. In one image, the precision of a class is the fraction of its predicted boundary pixels that lie less than
    the tolerance (Euclidean) from a true one, its recall the fraction of true ones that lie less than that from a
    predicted one, and F their harmonic mean, 0 where only one side has a boundary. F is averaged over the images in
    which the class has a boundary, true or predicted, and then over classes, background included.

    Pixels whose truth is 255: a ring of them around each object (VOC) would leave no true boundary at all. Those nearer
    than the tolerance to a labelled pixel take the label of the nearest one, so that the boundary runs along the middle
    of a thin ring. Those farther off count neither as class nor as neighbour, in truth and prediction: what borders on
    them is no boundary.

    Args:
        num_classes: number of classes with background, ``C + 1``, in 1..255.
        tolerance: as a fraction of the image's diagonal; the paper's is 0.75 %.

    Attributes:
        totals: ``(2, n)`` float64, for each class the sum of F and the number of images it is summed over. It is the
            whole state: totals of several processes add up.

    Example:
        >>> score = BoundaryFScore(2)
        >>> score.update(np.array([[0, 0, 1, 1]], np.uint8), np.array([[0, 1, 1, 1]], np.uint8))
        >>> score.per_class.tolist()  # less than a pixel of tolerance, and both borders are one off
        [0.0, 0.0]
    """

    def __init__(self, num_classes: int, tolerance: float = 0.0075) -> None:
        if not 1 <= num_classes <= IGNORE:
            raise ValueError(f"num_classes counts background too and lies in 1..{IGNORE}, got {num_classes}")
        if not 0 < tolerance < 1:
            raise ValueError(f"the tolerance is a fraction of the diagonal above 0 and below 1, got {tolerance}")
        self.num_classes, self.tolerance = num_classes, tolerance
        self.totals = np.zeros((2, num_classes))

    @property
    def per_class(self) -> np.ndarray:
        """``(n,)`` in [0, 1]; NaN for a class without a boundary in any image."""
        total, images = self.totals
        return np.divide(total, images, out=np.full_like(total, np.nan), where=images > 0)

    @property
    def mean(self) -> float:
        """Mean over the classes that have a boundary in some image; NaN if none has."""
        found = self.per_class[self.totals[1] > 0]
        return found.mean().item() if found.size else float("nan")

    def update(self, truth: np.ndarray, prediction: np.ndarray) -> None:
        """Add one image.

        Args:
            truth: ``(H, W)`` integers: 0..n-1, or 255 for a pixel that does not count.
            prediction: the same shape: 0..n-1; 255 is taken as background.

        Raises:
            DataError: the truth holds another value; a mask that does not belong to these classes.
            ValueError: the prediction holds another value, or the shapes differ.
        """
        if truth.ndim != 2 or truth.shape != prediction.shape:
            raise ValueError(f"truth {truth.shape} and prediction {prediction.shape} are not of one shape (H, W)")
        truth, prediction = as_uint8(truth, "truth"), as_uint8(prediction, "prediction")
        check_truth_counts(np.bincount(truth.reshape(-1), minlength=IGNORE + 1), self.num_classes)
        foreign = prediction[(prediction >= self.num_classes) & (prediction != IGNORE)]
        if foreign.size:
            raise ValueError(f"the prediction holds label {foreign[0]}, expected 0..{self.num_classes - 1} or {IGNORE}")
        reach = self.tolerance * math.hypot(*truth.shape)
        truth = fill_ignored(truth, reach=reach)
        prediction = np.where(prediction == IGNORE, BACKGROUND, prediction)
        prediction[truth == IGNORE] = IGNORE
        true, predicted = boundary_pixels(truth), boundary_pixels(prediction)
        for label in true.keys() | predicted.keys():
            self.totals[:, label] += (f_score(true.get(label), predicted.get(label), reach=reach), 1)

    def merge(self, other: BoundaryFScore) -> None:
        """Add the totals of another score of the same classes and tolerance."""
        if (other.num_classes, other.tolerance) != (self.num_classes, self.tolerance):
            raise ValueError(
                f"cannot merge scores of {self.num_classes} classes at {self.tolerance} "
                f"and of {other.num_classes} at {other.tolerance}"
            )
        self.totals += other.totals

    def __iadd__(self, other: BoundaryFScore) -> BoundaryFScore:
        self.merge(other)
        return self


def fill_ignored(labels: np.ndarray, *, reach: float) -> np.ndarray:
    """Give the pixels of 255 that lie less than ``reach`` pixels from a labelled one the label of the nearest.

    Args:
        labels: ``(H, W)`` uint8.
        reach: in pixels, Euclidean.

    Returns:
        ``(H, W)`` uint8, a new array where it differs.

    >>> fill_ignored(np.array([[1, 255, 255, 255, 255, 0]], np.uint8), reach=1.5).tolist()
    [[1, 1, 255, 255, 0, 0]]
    """
    ignored = labels == IGNORE
    if not ignored.any() or ignored.all():
        return labels
    distance, (rows, columns) = ndimage.distance_transform_edt(ignored, return_indices=True)
    return np.where(distance < reach, labels[rows, columns], np.uint8(IGNORE))


def boundary_pixels(labels: np.ndarray) -> dict[int, np.ndarray]:
    """The boundary pixels of each label that has any: those with one of four neighbours of another label.

    Args:
        labels: ``(H, W)`` uint8; 255 has no boundary and makes none.

    Returns:
        Label -> ``(P, 2)`` rows and columns.
    """
    known, border = labels != IGNORE, np.zeros(labels.shape, dtype=bool)
    for one, other in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differ = (labels[one] != labels[other]) & known[one] & known[other]
        border[one] |= differ
        border[other] |= differ
    places, found = np.argwhere(border), labels[border]
    return {int(label): places[found == label] for label in np.unique(found)}


def f_score(true: np.ndarray | None, predicted: np.ndarray | None, *, reach: float) -> float:
    """F of the boundary of one class in one image; 0 where either has none.

    Args:
        true: ``(P, 2)`` rows and columns, or None.
        predicted: ``(Q, 2)`` likewise.
        reach: pixels: nearer than this is a match.
    """
    if true is None or predicted is None:
        return 0.0
    precision, recall = _near(predicted, true, reach=reach), _near(true, predicted, reach=reach)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _near(points: np.ndarray, others: np.ndarray, *, reach: float) -> float:
    """Fraction of ``points`` that lie less than ``reach`` from one of the ``others``."""
    distance, _ = cKDTree(others).query(points, distance_upper_bound=reach + 1)  # farther ones come out as infinite
    return (distance < reach).mean().item()
