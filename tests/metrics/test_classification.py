from __future__ import annotations

import math

import numpy as np
import pytest

from wsss.metrics import average_precision, mean_average_precision


def test_by_hand():
    scores = np.array([[0.9], [0.8], [0.7], [0.6]])
    assert average_precision(scores, np.array([[1], [0], [1], [0]]))[0] == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(scores, np.array([[0], [0], [0], [1]]))[0] == 0.25


def test_equal_scores_are_one_step():
    assert average_precision(np.zeros((4, 1)), np.array([[1], [0], [0], [1]]))[0] == 0.5


def test_class_without_positives_is_left_out():
    scores, tags = np.array([[0.9, 0.1], [0.2, 0.3]]), np.array([[1, 0], [0, 0]])
    assert average_precision(scores, tags)[0] == 1
    assert math.isnan(average_precision(scores, tags)[1])
    assert mean_average_precision(scores, tags) == 1
    assert math.isnan(mean_average_precision(scores, np.zeros_like(tags)))


@pytest.mark.parametrize("levels", [3, 10**6])
def test_agrees_with_scikit_learn(levels: int):
    reference = pytest.importorskip("sklearn.metrics").average_precision_score
    rng = np.random.default_rng(levels)
    scores, tags = rng.integers(0, levels, (200, 6)).astype(np.float32), rng.random((200, 6)) < 0.2
    expected = [reference(tags[:, c], scores[:, c]) for c in range(6)]
    assert np.allclose(average_precision(scores, tags), expected, rtol=0, atol=1e-12)
    assert np.allclose(average_precision(scores.astype(np.uint32), tags), expected, rtol=0, atol=1e-12)
    assert mean_average_precision(scores, tags) == pytest.approx(np.mean(expected))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"\(2, 1\) and \(2, 2\)"):
        average_precision(np.zeros((2, 1)), np.zeros((2, 2)))
    with pytest.raises(ValueError, match="finite"):
        average_precision(np.array([[np.nan]]), np.array([[1]]))
    with pytest.raises(ValueError, match=r"got \[2\]"):
        average_precision(np.array([[0.5]]), np.array([[2]]))
