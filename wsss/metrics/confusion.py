"""The confusion matrix of a data set, and the segmentation metrics that are functions of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from wsss.errors import DataError
from wsss.types import BACKGROUND, IGNORE

_VALUES = 256  # a uint8 label has this many values; counting all of them makes checking and ignoring free


class ConfusionMatrix:
    """Counts of (true label, predicted label) over any number of images.

    Pixels whose *truth* is 255 are never counted. Pixels whose *prediction* is 255 (a pseudo-label that abstains) are
    counted apart, so that one pass gives both readings: :attr:`matrix` takes them as background,
    :attr:`matrix_ignored` drops them. Dropping inflates every number, since a method may abstain where it is hard.

    Args:
        num_classes: number of classes with background, ``C + 1``, in 1..255.

    Attributes:
        counts: ``(n, n + 1)`` int64, rows are the truth, columns the prediction; the last column counts predictions of
            255. It is the whole state: counts of several processes add up.

    Example:
        >>> confusion = ConfusionMatrix(2)
        >>> confusion.update(np.array([[0, 1, 1, 255]], np.uint8), np.array([[0, 1, 255, 1]], np.uint8))
        >>> confusion.matrix.tolist(), confusion.matrix_ignored.tolist()
        ([[1, 0], [1, 1]], [[1, 0], [0, 1]])
    """

    def __init__(self, num_classes: int) -> None:
        if not 1 <= num_classes <= IGNORE:
            raise ValueError(f"num_classes counts background too and lies in 1..{IGNORE}, got {num_classes}")
        self.num_classes = num_classes
        self.counts = np.zeros((num_classes, num_classes + 1), dtype=np.int64)

    @property
    def matrix(self) -> np.ndarray:
        """``(n, n)`` int64 with predictions of 255 counted as background (a new array)."""
        matrix = self.matrix_ignored
        matrix[:, BACKGROUND] += self.counts[:, -1]
        return matrix

    @property
    def matrix_ignored(self) -> np.ndarray:
        """``(n, n)`` int64 without the pixels whose prediction is 255 (a new array)."""
        return self.counts[:, :-1].copy()

    @property
    def ignored(self) -> float:
        """Fraction of the counted pixels whose prediction is 255; NaN before the first pixel."""
        return _ratio(self.counts[:, -1].sum(), self.counts.sum()).item()

    def update(self, truth: np.ndarray, prediction: np.ndarray) -> None:
        """Add one image, or a batch of them.

        Args:
            truth: integers of any shape, usually ``(H, W)`` uint8: 0..n-1, or 255 for a pixel that does not count.
            prediction: the same shape: 0..n-1, or 255 for a pixel without a label.

        Raises:
            DataError: the truth holds another value; a mask that does not belong to these classes.
            ValueError: the prediction holds another value, or the shapes differ.
        """
        if truth.shape != prediction.shape:
            raise ValueError(f"truth {truth.shape} and prediction {prediction.shape} differ in shape")
        pairs = as_uint8(truth, "truth").astype(np.uint16)
        pairs *= _VALUES
        pairs += as_uint8(prediction, "prediction")
        table = np.bincount(pairs.reshape(-1), minlength=_VALUES * _VALUES).reshape(_VALUES, _VALUES)
        n = self.num_classes
        check_truth_counts(table.sum(axis=1), n)
        foreign = np.flatnonzero(table[:IGNORE, n:IGNORE].any(axis=0)) + n
        if foreign.size:
            raise ValueError(f"the prediction holds label {foreign[0]}, expected 0..{n - 1} or {IGNORE}")
        self.counts[:, :-1] += table[:n, :n]
        self.counts[:, -1] += table[:n, IGNORE]

    def merge(self, other: ConfusionMatrix) -> None:
        """Add the counts of another matrix of the same classes."""
        if other.num_classes != self.num_classes:
            raise ValueError(f"cannot merge matrices of {self.num_classes} and {other.num_classes} classes")
        self.counts += other.counts

    def __iadd__(self, other: ConfusionMatrix) -> ConfusionMatrix:
        self.merge(other)
        return self

    def __repr__(self) -> str:
        return f"ConfusionMatrix(num_classes={self.num_classes}, pixels={self.counts.sum()})"


def as_uint8(labels: np.ndarray, name: str) -> np.ndarray:
    """The same labels as uint8.

    Raises:
        TypeError: the array does not hold integers.
        ValueError: a value lies outside of 0..255.
    """
    if labels.dtype == np.uint8:
        return labels
    if labels.dtype.kind not in "iu":
        raise TypeError(f"{name} must hold integer labels, got {labels.dtype}")
    if labels.size and (labels.min() < 0 or labels.max() > IGNORE):
        worst = labels.min() if labels.min() < 0 else labels.max()
        raise ValueError(f"the {name} holds label {worst}, expected 0..{IGNORE}")
    return labels.astype(np.uint8)


def check_truth_counts(per_value: np.ndarray, num_classes: int) -> None:
    """Raise DataError if the ``(256,)`` counts of the true labels have a label beyond the classes that is not 255."""
    foreign = np.flatnonzero(per_value[num_classes:IGNORE]) + num_classes
    if foreign.size:
        raise DataError(
            f"a ground-truth mask holds label {foreign[0]} ({per_value[foreign[0]]} pixels), "
            f"expected 0..{num_classes - 1} or {IGNORE}. Check that the masks belong to these classes."
        )


def iou(matrix: np.ndarray) -> np.ndarray:
    """Intersection over union of each class, TP / (TP + FP + FN).

    Args:
        matrix: ``(n, n)`` counts, rows are the truth.

    Returns:
        ``(n,)`` float64 in [0, 1]; NaN for a class that is neither in the truth nor predicted.
    """
    return _ratio(np.diag(matrix), _union(matrix))


def miou(matrix: np.ndarray) -> float:
    """Mean of :func:`iou` over the classes that occur, background included; NaN if none does."""
    return _mean(iou(matrix))


def pixel_accuracy(matrix: np.ndarray) -> float:
    """Fraction of pixels with the right label; NaN without pixels."""
    return _ratio(np.trace(matrix), matrix.sum()).item()


def precision(matrix: np.ndarray) -> np.ndarray:
    """TP / (TP + FP) of each class, ``(n,)``; NaN for a class that is never predicted."""
    return _ratio(np.diag(matrix), matrix.sum(axis=0))


def recall(matrix: np.ndarray) -> np.ndarray:
    """TP / (TP + FN) of each class, ``(n,)``; NaN for a class that is not in the truth."""
    return _ratio(np.diag(matrix), matrix.sum(axis=1))


def false_positives(matrix: np.ndarray) -> np.ndarray:
    """FP / (TP + FP + FN) of each class, ``(n,)``: IoU + false positives + false negatives = 1. NaN as in iou."""
    return _ratio(matrix.sum(axis=0) - np.diag(matrix), _union(matrix))


def false_negatives(matrix: np.ndarray) -> np.ndarray:
    """FN / (TP + FP + FN) of each class, ``(n,)``: IoU + false positives + false negatives = 1. NaN as in iou."""
    return _ratio(matrix.sum(axis=1) - np.diag(matrix), _union(matrix))


def summarize(matrix: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
    """All metrics of one matrix, ready for JSON: fractions in [0, 1], None where a value is not defined.

    The means follow the published tables of this field (LPCAM, CVPR 2023, Table 1): ``miou``, ``precision`` and
    ``recall`` over all classes with background, ``fp`` and ``fn`` over the foreground classes alone, as the
    evaluation of the IRN family does. The rows of that table therefore sum to 1.014, not to 1: what is exact is
    ``miou_foreground + fp + fn = 1``. A class whose value is not defined is left out of that mean.

    Args:
        matrix: ``(n, n)`` counts, rows are the truth.
        class_names: the ``n`` names, background first.

    Returns:
        ``miou``, ``miou_foreground``, ``precision``, ``recall``, ``fp``, ``fn``, ``pixel_accuracy``, and ``iou``:
        class name -> IoU.
    """
    if len(class_names) != len(matrix):
        raise ValueError(f"{len(class_names)} class names for a matrix of {len(matrix)} classes (background included)")
    per_class = iou(matrix)
    return {
        "miou": jsonable(_mean(per_class)),
        "miou_foreground": jsonable(_mean(per_class[1:])),
        "precision": jsonable(_mean(precision(matrix))),
        "recall": jsonable(_mean(recall(matrix))),
        "fp": jsonable(_mean(false_positives(matrix)[1:])),
        "fn": jsonable(_mean(false_negatives(matrix)[1:])),
        "pixel_accuracy": jsonable(pixel_accuracy(matrix)),
        "iou": {name: jsonable(value) for name, value in zip(class_names, per_class.tolist(), strict=True)},
    }


def summarize_pseudo_labels(confusion: ConfusionMatrix, class_names: Sequence[str]) -> dict[str, Any]:
    """:func:`summarize` for labels that may be 255.

    All keys take 255 as background. Two more are added: ``miou_ignored``, the mIoU without those pixels, and
    ``ignored``, the fraction of pixels it leaves out.
    """
    return summarize(confusion.matrix, class_names) | {
        "miou_ignored": jsonable(miou(confusion.matrix_ignored)),
        "ignored": jsonable(confusion.ignored),
    }


def image_miou(truth: np.ndarray, prediction: np.ndarray, num_classes: int) -> float:
    """mIoU of one image over the classes in its truth or prediction, to rank images; 255 predicted is background.

    Its mean over images is *not* the data set's mIoU. NaN if the truth is 255 everywhere.
    """
    confusion = ConfusionMatrix(num_classes)
    confusion.update(truth, prediction)
    return miou(confusion.matrix)


def _union(matrix: np.ndarray) -> np.ndarray:
    return matrix.sum(axis=0) + matrix.sum(axis=1) - np.diag(matrix)


def _ratio(part: Any, whole: Any) -> np.ndarray:
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)


def _mean(values: np.ndarray) -> float:
    defined = values[~np.isnan(values)]
    return defined.mean().item() if defined.size else float("nan")


def jsonable(value: float) -> float | None:
    """The value, or None for a NaN, which JSON does not have."""
    """A number as JSON can hold it: None instead of NaN."""
    return None if np.isnan(value) else float(value)
