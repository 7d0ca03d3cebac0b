"""A background threshold without masks: the one whose labels deep features of other images predict best.

Seeds at a threshold t are labels of background and classes. If t is right, a label says what a place looks like to the
classifier, and a linear model of features, learnt on half of the images, predicts the labels of the other half. Too low
a t calls surroundings an object, too high a t calls object background; both mix two looks under one label, and less of
the labels' variance can be explained. The criterion is that share, R^2. It is 0 for labels that have nothing to do with
the features, whatever their frequencies, so that neither all background nor all foreground wins. This is no published
method: it was picked among more than a hundred criteria by the masks of the sets below.

mIoU lost against the threshold picked with masks, points (EfficientNet-Lite0, stage 4, images at 480 px; 2026-11-21):
msrc15, 17 seed sets of 8 CAM methods, 0.06 on average and 0.76 at worst; magnetic_tile, 3 sets, 0.16 and 0.32;
12 sets of one scale, most of single layers, 0.35 and 1.88; with images of msrc15 at 320 px, 5 sets, 0.25 and 0.97.
Otsu's threshold (mean over images) loses at worst 0.97 and 2.00 on the first two, shared
information with the image's colours 0.07 and 5.77.

Features are read once per image from the classifier that made the seeds; stage 4 (stride 16) did best. What is needed
of them adds up over images: their second moments, and their sums over the places of each label at each threshold.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from wsss.metrics.threshold import check_scores, strongest
from wsss.types import BACKGROUND, IGNORE

CANDIDATES = tuple(step / 20 for step in range(1, 20))
"""0.05 to 0.95."""

FOLDS = 2
COMPONENTS = 48
"""Principal components of the standardised features that the linear model sees."""

RIDGE = 1e-3
"""Penalty of the linear model, relative to the variance of a component."""


class ThresholdChoice(NamedTuple):
    """What was chosen, and why.

    Attributes:
        threshold: the candidate of the largest criterion, the smallest one of equals.
        curve: ``[t, R^2]`` for each candidate in increasing order; NaN where t leaves one label on all places.
        images: how many images had a class.
    """

    threshold: float
    curve: list[list[float]]
    images: int


class LabelEvidence:
    """Sums over images from which R^2 at every threshold follows.

    Args:
        num_classes: number of classes with background, ``C + 1``.
        channels: D, the number of features of a place.
        thresholds: distinct values in (0, 1), in any order.

    Attributes:
        thresholds: in increasing order.
        gram: ``(2, D + 1, D + 1)`` float64: per fold, the second moments of the features and a constant 1.
        cross: ``(2, T, C + 1, D + 1)`` float64: per fold and threshold, their sums over the places of each label. The
            last column counts the places.
        images: ``(2,)`` number of images with classes in each fold.

    Raises:
        ValueError: a number of classes, channels or thresholds that cannot be.
    """

    def __init__(self, num_classes: int, channels: int, *, thresholds: Sequence[float] = CANDIDATES) -> None:
        self.thresholds = sorted(float(t) for t in thresholds)
        self._float32 = np.array(self.thresholds, dtype=np.float32)
        if not self.thresholds or np.unique(self._float32).size < len(self.thresholds):
            raise ValueError(f"expected one or more distinct thresholds, got {list(thresholds)}")
        if not (self.thresholds[0] > 0 and self.thresholds[-1] < 1):
            raise ValueError(f"thresholds lie inside of (0, 1), got {list(thresholds)}")
        if not 2 <= num_classes <= IGNORE or channels < 1:
            raise ValueError(
                f"expected 2..{IGNORE} classes with background and 1 channel or more, got {num_classes} and {channels}"
            )
        self.num_classes, self.channels = num_classes, channels
        self.gram = np.zeros((FOLDS, channels + 1, channels + 1))
        self.cross = np.zeros((FOLDS, len(self.thresholds), num_classes, channels + 1))
        self.images = np.zeros(FOLDS, dtype=np.int64)

    def update(
        self, features: np.ndarray, class_ids: Sequence[int] | np.ndarray, scores: np.ndarray, *, fold: int
    ) -> None:
        """Add one image.

        Args:
            features: ``(D, h, w)`` floats, from the classifier.
            class_ids: the ``K`` present classes, distinct, in 1..C. An image without classes is passed over: it is
                background at any threshold, and counting it was no help (see the module's head).
            scores: ``(K, H, W)`` float32 in [0, 1], of the same picture at any size; averaged over each place.
            fold: 0 or 1. Near duplicates in both folds make R^2 larger at every threshold.

        Raises:
            ValueError: shapes, class ids, scores or features break this contract.
        """
        ids = np.asarray(class_ids, dtype=np.intp)
        if features.ndim != 3 or features.shape[0] != self.channels or not features.size:
            raise ValueError(f"expected features ({self.channels}, h, w), got {features.shape}")
        if ids.ndim != 1 or scores.ndim != 3 or len(scores) != len(ids):
            raise ValueError(f"class ids {ids.shape} and scores {scores.shape} do not fit; expected (K,) and (K, H, W)")
        if len(ids) and (ids.min() < 1 or ids.max() >= self.num_classes or np.unique(ids).size < len(ids)):
            raise ValueError(f"class ids must be distinct and in 1..{self.num_classes - 1}, got {ids.tolist()}")
        if fold not in range(FOLDS):
            raise ValueError(f"fold is 0 or 1, got {fold}")
        check_scores(scores)
        if not np.isfinite(features).all():
            raise ValueError("features must be finite, got NaN or infinity")
        if not len(ids):
            return
        places = np.ones((features.shape[1] * features.shape[2], self.channels + 1))
        places[:, :-1] = features.reshape(self.channels, -1).T
        cross = self.cross[fold]
        self.gram[fold] += places.T @ places
        self.images[fold] += 1
        cross[:, BACKGROUND] += places.sum(axis=0)
        index, best = strongest(_place_means(scores, (features.shape[1], features.shape[2])))
        below = np.searchsorted(self._float32, best.reshape(-1))  # number of thresholds that the place is greater than
        for k, label in enumerate(ids):
            mine = np.flatnonzero(index.reshape(-1) == k)
            member = np.zeros((len(self.thresholds) + 1, len(places)))
            member[below[mine], mine] = 1
            levels = member @ places
            above = levels[::-1].cumsum(axis=0)[::-1][1:]
            cross[:, label] += above
            cross[:, BACKGROUND] -= above

    def merge(self, other: LabelEvidence) -> None:
        """Add the sums of another one of the same classes, channels and thresholds."""
        if other.cross.shape != self.cross.shape or other.thresholds != self.thresholds:
            raise ValueError(
                f"cannot merge evidence {self.cross.shape} at {self.thresholds} with {other.cross.shape} at "
                f"{other.thresholds}"
            )
        self.gram += other.gram
        self.cross += other.cross
        self.images += other.images

    def curve(self) -> list[list[float]]:
        """``[t, R^2]`` for each threshold in increasing order.

        R^2 is 1 minus the summed squared error of the predicted one-hot labels over their summed squared deviation from
        the mean. Each fold is predicted by the ridge regression of the other; the principal components come from both,
        since they know no label. NaN where all places have one label.

        Raises:
            ValueError: a fold without images that have a class.
        """
        if not self.images.all():
            raise ValueError(f"expected images with classes in both folds, got {self.images.tolist()}")
        basis = _components(self.gram.sum(axis=0), COMPONENTS)
        gram = [basis.T @ moments @ basis for moments in self.gram]
        penalty = RIDGE * np.eye(len(gram[0]))
        penalty[-1, -1] = 0  # the constant is free
        cross = [sums.reshape(-1, self.channels + 1) @ basis for sums in self.cross]
        error = np.zeros(self.cross.shape[1:3])
        for train, test in ((0, 1), (1, 0)):
            weights = np.linalg.solve(gram[train] + penalty * gram[train][-1, -1], cross[train].T).T
            counts = cross[test][:, -1]  # a one-hot label is its own square
            squared = counts - 2 * (weights * cross[test]).sum(axis=1) + ((weights @ gram[test]) * weights).sum(axis=1)
            error += squared.reshape(error.shape)
        counts = self.cross[..., -1].sum(axis=0)
        places = counts.sum(axis=1)
        deviation = places - (counts**2).sum(axis=1) / places
        with np.errstate(invalid="ignore", divide="ignore"):
            shares = np.where(deviation > 0, 1 - error.sum(axis=1) / deviation, np.nan)
        return [[t, float(share)] for t, share in zip(self.thresholds, shares, strict=True)]

    def choice(self) -> ThresholdChoice:
        """The threshold of the largest R^2.

        Raises:
            ValueError: a fold without images that have a class, or seeds that are background at every threshold.
        """
        curve = self.curve()
        spoken = [(share, -t) for t, share in curve if not np.isnan(share)]
        if not spoken:
            raise ValueError(
                f"no seed is greater than {self.thresholds[0]} at any place of {int(self.images.sum())} images: "
                f"there is nothing to choose a threshold from. Check the seeds, or give a threshold"
            )
        return ThresholdChoice(-max(spoken)[1], curve, int(self.images.sum()))


def choose_threshold(
    samples: Iterable[tuple[np.ndarray, Sequence[int] | np.ndarray, np.ndarray]],
    *,
    num_classes: int,
    candidates: Sequence[float] = CANDIDATES,
) -> ThresholdChoice:
    """The background threshold of a set of seeds, from their images' features.

    Args:
        samples: ``(features (D, h, w), class_ids (K,), scores (K, H, W))`` of each image; see
            :meth:`LabelEvidence.update`. Those with classes go to the two folds in turn.
        num_classes: number of classes with background, ``C + 1``.
        candidates: distinct thresholds in (0, 1).

    Raises:
        ValueError: fewer than two images with classes, a sample that breaks the contract, or seeds that are silent
            everywhere.
    """
    evidence: LabelEvidence | None = None
    for features, class_ids, scores in samples:
        if evidence is None:
            evidence = LabelEvidence(num_classes, len(features), thresholds=candidates)
        evidence.update(features, class_ids, scores, fold=int(evidence.images.sum()) % FOLDS)
    if evidence is None:
        raise ValueError("expected two samples with classes or more, got none")
    return evidence.choice()


def _place_means(scores: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """``(K, H, W)`` scores averaged over the cells of a grid ``(h, w)``."""
    maps = torch.from_numpy(np.ascontiguousarray(scores, dtype=np.float32))
    return functional.adaptive_avg_pool2d(maps, size).numpy()


def _components(moments: np.ndarray, count: int) -> np.ndarray:
    """``(D + 1, q + 1)``: from features and a constant to at most ``count`` whitened components and the constant."""
    places = moments[-1, -1]
    mean = moments[-1, :-1] / places
    covariance = moments[:-1, :-1] / places - np.outer(mean, mean)
    deviation = np.sqrt(np.maximum(np.diag(covariance), 0))
    varies = deviation > 1e-6 * max(deviation.max(), 1e-30)  # a silent channel stays out
    scale = np.where(varies, 1 / np.where(varies, deviation, 1), 0)
    values, vectors = np.linalg.eigh(covariance * np.outer(scale, scale))
    kept = np.flatnonzero(values > 1e-6 * max(values[-1], 1e-30))[-count:]
    basis = np.zeros((len(moments), len(kept) + 1))
    basis[:-1, :-1] = scale[:, None] * vectors[:, kept] / np.sqrt(values[kept])
    basis[-1, :-1] = -mean @ basis[:-1, :-1]
    basis[-1, -1] = 1
    return basis
