from __future__ import annotations

import numpy as np

from wsss.refine.threshold import power_background, threshold

SCORES = np.array([[[0.3, 0.4, 0.5, 0.0]], [[0.2, 0.4, 0.9, 0.0]]], dtype=np.float32)
IDS = np.array([7, 3])


def test_score_must_be_greater_and_the_first_of_equals_wins():
    labels = threshold(SCORES, IDS, background=0.3)
    assert labels.tolist() == [[0, 7, 3, 0]]  # 0.3 is not greater than 0.3; 0.4 ties
    assert labels.dtype == np.uint8


def test_background_may_vary():
    assert threshold(SCORES, IDS, background=np.array([[0.1, 0.5, 0.1, 0.1]])).tolist() == [[7, 0, 3, 0]]


def test_python_and_numpy_backgrounds_agree():
    # 0.3 in float32 is greater than 0.3 in float64: without rounding the answer would depend on the argument's type
    for background in (0.3, np.float64(0.3), np.float32(0.3)):
        assert threshold(SCORES[:1], IDS[:1], background=background)[0, 0] == 0


def test_no_class_is_background():
    assert threshold(SCORES[:0], IDS[:0], background=0.3).tolist() == [[0, 0, 0, 0]]
    assert power_background(SCORES[:0], alpha=4).tolist() == [[1, 1, 1, 1]]


def test_power_background():
    assert np.allclose(power_background(SCORES, alpha=2), [[0.49, 0.36, 0.01, 1]])
    assert power_background(SCORES, alpha=2).dtype == np.float32
