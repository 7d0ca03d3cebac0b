from __future__ import annotations

import math

import numpy as np
import pytest

from wsss.errors import DataError
from wsss.metrics import ConfusionMatrix, ThresholdCurve, miou
from wsss.refine.threshold import threshold

THRESHOLDS = [0.0, 0.05, 0.1, 0.25, 0.3, 0.5, 0.7, 0.9, 1.0]
IMAGES = [[2], [1, 4], [4, 1, 3], []]


def image(seed: int, class_ids: list[int], classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Truth and scores; most scores equal a threshold or each other, to exercise ties."""
    rng = np.random.default_rng(seed)
    truth = rng.choice([*range(classes), 255], size=(17, 23)).astype(np.uint8)
    scores = rng.random((len(class_ids), 17, 23), dtype=np.float32)
    tied = rng.random(scores.shape) < 0.7
    return truth, np.where(tied, rng.choice(np.float32(THRESHOLDS), size=scores.shape), scores)


def test_by_hand():
    curve = ThresholdCurve(2, [0.5, 0.2])
    curve.update(np.array([[0, 1, 1, 255]], np.uint8), [1], np.array([[[0.3, 0.5, 0.6, 1.0]]], np.float32))
    assert curve.confusion(0.2).tolist() == [[0, 1], [0, 2]]
    assert curve.confusion(0.5).tolist() == [[1, 0], [1, 1]]  # a score of 0.5 is not greater than 0.5
    assert curve.curve() == [[0.2, pytest.approx(1 / 3)], [0.5, 0.5]]
    assert curve.best() == (0.5, 0.5)


def test_equals_recomputed_labels_at_every_threshold():
    curve = ThresholdCurve(5, THRESHOLDS)
    direct = {t: ConfusionMatrix(5) for t in THRESHOLDS}
    literal = {t: ConfusionMatrix(5) for t in THRESHOLDS}
    for seed, ids in enumerate(IMAGES):
        truth, scores = image(seed, ids)
        curve.update(truth, ids, scores)
        for t in THRESHOLDS:
            direct[t].update(truth, threshold(scores, np.array(ids), background=t))
            stack = np.concatenate([np.full((1, *truth.shape), t, np.float32), scores])
            literal[t].update(truth, np.array([0, *ids], np.uint8)[stack.argmax(axis=0)])
    for t in THRESHOLDS:
        assert (curve.confusion(t) == direct[t].matrix).all()
        assert (curve.confusion(t) == literal[t].matrix).all()
    assert curve.curve() == [[t, miou(direct[t].matrix)] for t in THRESHOLDS]


def test_more_thresholds_than_a_byte_counts():
    thresholds = np.linspace(0, 1, 301)
    curve = ThresholdCurve(5, thresholds)
    truth, scores = image(0, [1, 2])
    curve.update(truth, [1, 2], scores)
    for t in thresholds[::50]:
        confusion = ConfusionMatrix(5)
        confusion.update(truth, threshold(scores, np.array([1, 2]), background=t))
        assert (curve.confusion(t) == confusion.matrix).all()


def test_merge_is_the_sum():
    whole, first, second = (ThresholdCurve(5, THRESHOLDS) for _ in range(3))
    for seed, ids in enumerate(IMAGES):
        for curve in (whole, first if seed % 2 else second):
            curve.update(*_arguments(seed, ids))
    first += second
    assert (first.counts == whole.counts).all()
    with pytest.raises(ValueError, match="cannot merge"):
        first.merge(ThresholdCurve(5, [0.5]))


def _arguments(seed: int, ids: list[int]) -> tuple[np.ndarray, list[int], np.ndarray]:
    truth, scores = image(seed, ids)
    return truth, ids, scores


def test_best_takes_the_smallest_of_equal_thresholds():
    curve = ThresholdCurve(2, [0.4, 0.2, 0.3])
    curve.update(np.array([[0, 1]], np.uint8), [1], np.array([[[0.0, 1.0]]], np.float32))
    assert curve.best() == (0.2, 1.0)
    assert all(math.isnan(value) for _, value in ThresholdCurve(2, [0.1]).curve())


def test_bad_input_is_named():
    truth, scores = image(0, [1, 2])
    curve = ThresholdCurve(5, [0.5])
    with pytest.raises(ValueError, match=r"distinct and in 1..4, got \[1, 5\]"):
        curve.update(truth, [1, 5], scores)
    with pytest.raises(ValueError, match=r"got \[2, 2\]"):
        curve.update(truth, [2, 2], scores)
    with pytest.raises(ValueError, match="do not fit"):
        curve.update(truth[1:], [1, 2], scores)
    with pytest.raises(ValueError, match="finite"):
        curve.update(truth, [1, 2], np.where(scores > 0.5, np.nan, scores))
    with pytest.raises(DataError, match="label 9"):
        curve.update(np.full_like(truth, 9), [1, 2], scores)
    with pytest.raises(DataError, match="label 9"):
        curve.update(np.full_like(truth, 9), [], scores[:0])
    with pytest.raises(ValueError, match="not one of the thresholds"):
        curve.confusion(0.4)
    for thresholds in ([], [0.5, 0.5], [1.5], [math.nan]):
        with pytest.raises(ValueError, match="threshold"):
            ThresholdCurve(5, thresholds)
    assert curve.counts.sum() == 0
