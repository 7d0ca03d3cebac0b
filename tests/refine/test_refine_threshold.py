from __future__ import annotations

import numpy as np

from wsss.refine import DenseCrf, Extras, PercentileBackground, Threshold
from wsss.refine.threshold import percentile_scale, power_background, threshold

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


# --- percentile as a standard (PaS) --------------------------------------------------------------------------------


def test_percentile_by_hand():
    """The median of 0, 0.2, 0.4, 0.6, 1 is 0.4: half of it is the threshold 0.5 on the scaled map."""
    scores = np.array([[[0.0, 0.2, 0.4, 0.6, 1.0]]], dtype=np.float32)
    assert np.allclose(percentile_scale(scores, percentile=50), [[[0, 0.5, 1, 1, 1]]])
    assert percentile_scale(scores, percentile=50).dtype == np.float32
    assert np.array_equal(percentile_scale(scores, percentile=100), scores)


def test_thresholding_the_scaled_map_is_the_threshold_of_the_paper():
    scores = np.random.default_rng(0).random((1, 9, 11), dtype=np.float32) ** 3
    limit = 0.3 * np.percentile(scores[0], 90)
    labels = threshold(percentile_scale(scores, percentile=90), IDS[:1], background=0.3)
    assert np.array_equal(labels > 0, scores[0] > limit)


def test_each_map_has_its_own_percentile():
    scores = np.stack([np.full((2, 2), 0.5), np.full((2, 2), 0.1)]).astype(np.float32)
    assert np.array_equal(percentile_scale(scores, percentile=90), np.ones((2, 2, 2)))


def test_above_their_percentiles_the_larger_quotient_wins():
    """Medians 0.2 and 0.4: in the last pixel 4 against 2, and the score of the second stays in proportion."""
    scores = np.array([[[0.1, 0.2, 0.8]], [[0.1, 0.4, 0.8]]], dtype=np.float32)
    scaled = percentile_scale(scores, percentile=50)
    assert np.allclose(scaled, [[[0.5, 1, 1]], [[0.25, 1, 0.5]]])
    assert threshold(scaled[::-1], IDS[::-1], background=0.3)[0].tolist() == [7, 3, 7]


def test_a_map_whose_percentile_is_zero_stays_relative_to_its_maximum():
    """Not to become 1 wherever it is positive, and beat every other class there."""
    scores = np.zeros((3, 20, 20), dtype=np.float32)
    scores[0, 0, :2] = 0.01, 1.0
    scores[1] = 0.5
    scaled = percentile_scale(scores, percentile=98)
    assert np.allclose(scaled[0, 0, :3], [0.01, 1, 0])
    assert (scaled[1] == 1).all()
    assert not scaled[2].any()
    assert percentile_scale(scores[:0], percentile=98).shape == (0, 20, 20)


def test_every_labelling_step_takes_a_percentile():
    image = np.zeros((4, 5, 3), dtype=np.uint8)
    scores = np.full((1, 4, 5), 0.2, dtype=np.float32)
    scores[0, 0, 0] = 1.0
    ids = np.array([2])
    relative = PercentileBackground(background=0.3, percentile=50)
    for step in (Threshold, DenseCrf):
        assert (step(background=0.3)(image, ids, scores, Extras()) == 2).sum() <= 1
        assert (step(background=relative)(image, ids, scores, Extras()) == 2).all()
