from __future__ import annotations

import pickle

import numpy as np
import pytest

from wsss.refine import auto_threshold
from wsss.refine.auto_threshold import CANDIDATES, LabelEvidence, choose_threshold

# Eight places: two of the object, two of a ring around it that is as silent to the classifier as the four far away.
OBJECT = np.array([[[1, 1, 0, 0, 0, 0, 0, 0]]], dtype=np.float32)
SCORES = np.array([[[0.9, 0.9, 0.5, 0.5, 0.0, 0.0, 0.0, 0.0]]], dtype=np.float32)


def random_sample(rng: np.random.Generator, *, channels: int = 5, classes: int = 3, grid: tuple[int, int] = (4, 5)):
    """Features that know something of the labels, and scores."""
    ids = rng.permutation(classes)[: rng.integers(1, classes + 1)] + 1
    scores = rng.random((len(ids), *grid), dtype=np.float32)
    features = rng.normal(size=(channels, *grid))
    for id, score in zip(ids, scores, strict=True):
        features[id] += 3 * score
    return features, ids, scores


def random_samples(count: int = 8, **options):
    rng = np.random.default_rng(0)
    return [random_sample(rng, **options) for _ in range(count)]


def test_by_hand():
    choice = choose_threshold([(OBJECT, [1], SCORES)] * 2, num_classes=2, candidates=[0.8, 0.2, 0.95])
    (low, at_low), (right, at_right), (high, at_high) = choice.curve
    assert (low, right, high) == (0.2, 0.8, 0.95)
    # At 0.2 half of the places have label 1, variance 1/4; two of the six silent ones do, variance 6/8 * 1/3 * 2/3.
    assert at_low == pytest.approx(1 - (1 / 6) / (1 / 4), abs=1e-3)
    assert at_right == pytest.approx(1, abs=1e-3)
    assert np.isnan(at_high)  # all background
    assert choice.threshold == 0.8
    assert choice.images == 2


def test_the_smallest_of_equals_and_a_score_must_be_greater():
    choice = choose_threshold([(OBJECT, [1], SCORES)] * 2, num_classes=2)
    assert choice.threshold == 0.5  # 0.5 is not greater than 0.5; 0.5 to 0.85 give the same labels
    assert [t for t, share in choice.curve if np.isnan(share)] == [0.9, 0.95]
    assert [t for t, _ in choice.curve] == list(CANDIDATES)


def test_equality_is_decided_in_float32():
    scores = np.full((1, 1, 8), 0.3, dtype=np.float32)  # float32(0.3) is greater than 0.3
    evidence = LabelEvidence(2, 1, thresholds=[0.25, 0.3])
    evidence.update(OBJECT, [1], scores, fold=0)
    assert evidence.cross[0, :, 1, -1].tolist() == [8, 0]


def test_features_that_know_nothing_explain_nothing():
    rng = np.random.default_rng(1)
    samples = [(rng.normal(size=(2, 30, 30)), [1], rng.random((1, 30, 30), dtype=np.float32)) for _ in range(4)]
    shares = np.array(choose_threshold(samples, num_classes=2).curve)[:, 1]
    assert np.abs(shares).max() < 0.01  # whether 95% or 5% of the places are background


def test_two_classes_and_an_image_without_any():
    features = np.array([[[2, 0, 0, 0]], [[0, 2, 0, 0]]], dtype=np.float32)
    scores = np.array([[[0.6, 0.5, 0, 0]], [[0.5, 0.7, 0, 0]]], dtype=np.float32)
    evidence = LabelEvidence(4, 2, thresholds=[0.4, 0.65])
    evidence.update(features, [3, 1], scores, fold=0)
    assert evidence.cross[0, :, :, -1].tolist() == [[2, 1, 0, 1], [3, 1, 0, 0]]  # places of labels 0..3
    assert evidence.cross[0, 0, 3].tolist() == [2, 0, 1]
    before = pickle.dumps(evidence)
    evidence.update(features, [], scores[:0], fold=0)
    assert pickle.dumps(evidence) == before
    assert evidence.gram[0, -1].tolist() == [2, 2, 4]
    assert evidence.images.tolist() == [1, 0]


def test_images_with_classes_take_turns_in_the_folds():
    one, none = (OBJECT, [1], SCORES), (OBJECT, [], SCORES[:0])
    expected = choose_threshold([one, one], num_classes=2)
    assert choose_threshold([none, one, none, one, none], num_classes=2).threshold == expected.threshold


def test_scores_are_averaged_over_places():
    samples = random_samples()
    large = [(f, ids, scores.repeat(3, axis=1).repeat(2, axis=2)) for f, ids, scores in samples]
    expected = choose_threshold(samples, num_classes=4).curve
    assert np.allclose(choose_threshold(large, num_classes=4).curve, expected, atol=1e-5)


def test_merging_in_any_order_is_one_pass():
    samples = random_samples(5)
    parts = []
    for number, sample in enumerate(samples):
        part = LabelEvidence(4, 5)
        part.update(*sample, fold=number % 2)
        parts.append(pickle.loads(pickle.dumps(part)))  # as they come from a process
    total = parts.pop()
    while parts:
        total.merge(parts.pop())
    assert np.allclose(total.curve(), choose_threshold(samples, num_classes=4).curve)
    assert total.images.tolist() == [3, 2]


def test_scale_and_offset_of_a_channel_do_not_matter_nor_does_a_silent_one():
    samples = random_samples()
    factors, offsets = np.array([1, 100, 0.01, 3, 7])[:, None, None], np.array([0, 5, 1, -4, 9])[:, None, None]
    changed = [(np.concatenate([f * factors + offsets, 0 * f[:1] + 6]), ids, scores) for f, ids, scores in samples]
    expected = choose_threshold(samples, num_classes=4).curve
    assert np.allclose(choose_threshold(changed, num_classes=4).curve, expected, atol=1e-6)


@pytest.mark.parametrize("components", [2, 48])
def test_the_curve_equals_a_regression_written_out(monkeypatch, components):
    monkeypatch.setattr(auto_threshold, "COMPONENTS", components)
    samples, t = random_samples(6), 0.4
    rows, labels, folds = [], [], []
    for number, (features, ids, scores) in enumerate(samples):
        for y, x in np.ndindex(features.shape[1:]):
            rows.append(features[:, y, x])
            best = max([(0.4, 0)] + [(float(score[y, x]), int(id)) for id, score in zip(ids, scores, strict=True)])
            labels.append(best[1])
            folds.append(number % 2)
    x, fold, one_hot = np.array(rows), np.array(folds), np.eye(4)[labels]
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    left, singular, _ = np.linalg.svd(x, full_matrices=False)
    z = np.column_stack([left[:, : min(components, len(singular))] * np.sqrt(len(x)), np.ones(len(x))])
    error = 0.0
    for train in (0, 1):
        inside = z[fold == train]
        free = np.eye(z.shape[1])
        free[-1, -1] = 0
        weights = np.linalg.inv(inside.T @ inside + 1e-3 * len(inside) * free) @ inside.T @ one_hot[fold == train]
        error += ((z[fold != train] @ weights - one_hot[fold != train]) ** 2).sum()
    expected = 1 - error / ((one_hot - one_hot.mean(axis=0)) ** 2).sum()
    ((_, share),) = choose_threshold(samples, num_classes=4, candidates=[t]).curve
    assert share == pytest.approx(expected, abs=1e-9)
    assert 0.01 < share < 0.9


def test_silent_seeds_are_refused():
    with pytest.raises(ValueError, match=r"no seed is greater than 0\.05 at any place of 2 images"):
        choose_threshold([(OBJECT, [1], 0 * SCORES)] * 2, num_classes=2)


@pytest.mark.parametrize("count", [0, 1])
def test_one_image_is_not_enough(count):
    with pytest.raises(
        ValueError, match=r"both folds, got \[1, 0\]" if count else "two samples with classes or more, got none"
    ):
        choose_threshold([(OBJECT, [1], SCORES)] * count, num_classes=2)


@pytest.mark.parametrize("thresholds", [[], [0.3, 0.3], [0.0, 0.5], [0.5, 1.0], [float("nan")]])
def test_bad_thresholds(thresholds):
    with pytest.raises(ValueError, match="thresholds"):
        LabelEvidence(2, 1, thresholds=thresholds)


@pytest.mark.parametrize(
    ("features", "class_ids", "scores", "fold", "message"),
    [
        (OBJECT[0], [1], SCORES, 0, r"expected features \(1, h, w\)"),
        (np.concatenate([OBJECT, OBJECT]), [1], SCORES, 0, r"expected features \(1, h, w\), got \(2, 1, 8\)"),
        (OBJECT * np.nan, [1], SCORES, 0, "features must be finite"),
        (OBJECT, [1, 1], SCORES, 0, "do not fit"),
        (OBJECT, [2], SCORES, 0, r"distinct and in 1\.\.1, got \[2\]"),
        (OBJECT, [0], SCORES, 0, "distinct"),
        (OBJECT, [1], SCORES * 2, 0, "scores must be finite"),
        (OBJECT, [1], SCORES, 2, "fold is 0 or 1, got 2"),
    ],
)
def test_bad_images_leave_no_trace(features, class_ids, scores, fold, message):
    evidence = LabelEvidence(2, 1)
    with pytest.raises(ValueError, match=message):
        evidence.update(features, class_ids, scores, fold=fold)
    assert not evidence.gram.any()
    assert not evidence.images.any()


def test_bad_sizes():
    with pytest.raises(ValueError, match="got 1 and 3"):
        LabelEvidence(1, 3)
    with pytest.raises(ValueError, match="cannot merge"):
        LabelEvidence(2, 1).merge(LabelEvidence(2, 1, thresholds=[0.5]))
