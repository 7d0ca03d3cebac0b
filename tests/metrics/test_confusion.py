from __future__ import annotations

import json
import math

import numpy as np
import pytest

import wsss  # noqa: F401  (repairs torchvision's import, which torchmetrics needs)
from wsss.errors import DataError
from wsss.metrics import (
    ConfusionMatrix,
    false_negatives,
    false_positives,
    image_miou,
    iou,
    miou,
    pixel_accuracy,
    precision,
    recall,
    summarize,
    summarize_pseudo_labels,
)

MATRIX = np.array([[4, 1, 0], [2, 3, 0], [0, 0, 0]])  # class 2 does not occur


def u8(values: object) -> np.ndarray:
    return np.array(values, dtype=np.uint8)


def random_labels(seed: int, classes: int = 5, shape: tuple[int, ...] = (20, 30)) -> np.ndarray:
    return np.random.default_rng(seed).choice([*range(classes), 255], size=shape).astype(np.uint8)


def test_counts_rows_are_truth_and_255_is_background_or_dropped():
    confusion = ConfusionMatrix(3)
    confusion.update(u8([[0, 0, 1, 1], [2, 2, 255, 255]]), u8([[0, 2, 1, 255], [2, 255, 1, 255]]))
    assert confusion.matrix_ignored.tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 1]]
    assert confusion.matrix.tolist() == [[1, 0, 1], [1, 1, 0], [1, 0, 1]]
    assert confusion.ignored == 2 / 6


def test_equals_a_loop_over_pixels_and_merges():
    expected = np.zeros((5, 6), dtype=int)
    parts = [ConfusionMatrix(5) for _ in range(3)]
    for seed, part in enumerate(parts):
        truth, prediction = random_labels(seed), random_labels(seed + 100)
        part.update(truth, prediction)
        for t, p in zip(truth.flat, prediction.flat, strict=True):
            if t != 255:
                expected[t, min(p, 5)] += 1
    parts[0].merge(parts[1])
    parts[0] += parts[2]
    assert (parts[0].counts == expected).all()


def test_labels_beyond_the_classes_are_named():
    confusion = ConfusionMatrix(3)
    with pytest.raises(DataError, match=r"holds label 3 \(1 pixels\), expected 0..2 or 255"):
        confusion.update(u8([[3]]), u8([[0]]))
    with pytest.raises(ValueError, match="prediction holds label 254"):
        confusion.update(u8([[0]]), u8([[254]]))
    with pytest.raises(ValueError, match="prediction holds label -1"):
        confusion.update(u8([[0]]), np.array([[-1]]))
    with pytest.raises(ValueError, match=r"\(1, 2\) and prediction \(1, 1\)"):
        confusion.update(u8([[0, 0]]), u8([[0]]))
    with pytest.raises(TypeError, match="float"):
        confusion.update(u8([[0]]), np.array([[0.0]]))
    with pytest.raises(ValueError, match="got 256"):
        ConfusionMatrix(256)
    with pytest.raises(ValueError, match="3 and 4"):
        confusion.merge(ConfusionMatrix(4))
    assert confusion.counts.sum() == 0  # a rejected image leaves no trace


def test_other_integer_types_and_all_255_labels():
    confusion = ConfusionMatrix(255)
    confusion.update(np.array([[254, 255]]), np.array([[254, 3]], dtype=np.int32))
    assert confusion.matrix[254, 254] == confusion.matrix.sum() == 1


def test_metrics_by_hand():
    assert iou(MATRIX)[:2].tolist() == [4 / 7, 3 / 6]
    assert false_positives(MATRIX)[:2].tolist() == [2 / 7, 1 / 6]
    assert false_negatives(MATRIX)[:2].tolist() == [1 / 7, 2 / 6]
    assert precision(MATRIX)[:2].tolist() == [4 / 6, 3 / 4]
    assert recall(MATRIX)[:2].tolist() == [4 / 5, 3 / 5]
    assert pixel_accuracy(MATRIX) == 0.7
    for metric in (iou, precision, recall, false_positives, false_negatives):
        assert math.isnan(metric(MATRIX)[2])
    assert miou(MATRIX) == pytest.approx((4 / 7 + 1 / 2) / 2)


def test_a_class_that_is_missed_or_invented_has_iou_zero():
    assert iou(np.array([[0, 0], [3, 0]])).tolist() == [0, 0]
    assert math.isnan(recall(np.array([[0, 0], [3, 0]]))[0])
    assert math.isnan(precision(np.array([[0, 0], [3, 0]]))[1])


def test_identities():
    matrix = np.random.default_rng(0).integers(0, 100, (6, 6))
    assert np.allclose(iou(matrix) + false_positives(matrix) + false_negatives(matrix), 1)
    summary = summarize(matrix, list("abcdef"))
    assert summary["miou_foreground"] + summary["fp"] + summary["fn"] == pytest.approx(1)
    assert np.allclose(1 / iou(matrix), 1 / precision(matrix) + 1 / recall(matrix) - 1)
    assert miou(np.diag([3, 1, 2])) == 1


def test_published_rows_fit_foreground_fp_and_fn():
    """LPCAM, Table 1: if FP and FN are foreground means, the background IoU that follows must be a plausible one."""
    for fp, fn, mean_iou in [(26.5, 26.2, 48.8), (33.1, 16.2, 52.1), (29.8, 16.7, 54.9)]:
        background = 21 * mean_iou - 20 * (100 - fp - fn)
        assert 75 < background < 90


def test_summary_is_json_and_states_undefined_as_none():
    summary = json.loads(json.dumps(summarize(MATRIX, ["background", "cat", "dog"]), allow_nan=False))
    assert summary["iou"] == {"background": 4 / 7, "cat": 0.5, "dog": None}
    assert summary["fp"] == pytest.approx(1 / 6)
    assert summary["precision"] == pytest.approx((4 / 6 + 3 / 4) / 2)
    assert set(summary) >= {"miou", "precision", "recall", "fp", "fn", "pixel_accuracy", "iou"}
    assert summarize(np.zeros((2, 2), int), ["a", "b"])["miou"] is None
    with pytest.raises(ValueError, match="2 class names"):
        summarize(MATRIX, ["a", "b"])


def test_pseudo_label_summary_gives_both_readings():
    confusion = ConfusionMatrix(2)
    confusion.update(u8([[0, 1, 1, 1]]), u8([[0, 1, 255, 255]]))
    summary = summarize_pseudo_labels(confusion, ["background", "cat"])
    assert (summary["miou"], summary["miou_ignored"], summary["ignored"]) == (1 / 3, 1, 0.5)


def test_image_miou_counts_the_classes_of_the_image():
    assert image_miou(u8([[0, 1]]), u8([[0, 1]]), 21) == 1
    assert image_miou(u8([[0, 0]]), u8([[0, 5]]), 21) == 0.25  # background 1/2, class 5 invented
    assert math.isnan(image_miou(u8([[255]]), u8([[0]]), 21))


def test_agrees_with_torchmetrics():
    torch = pytest.importorskip("torch")
    jaccard = pytest.importorskip("torchmetrics.functional.classification").multiclass_jaccard_index
    truth, prediction = random_labels(0, shape=(4, 20, 30)), random_labels(1, shape=(4, 20, 30)) % 5
    confusion = ConfusionMatrix(5)
    confusion.update(truth, prediction)
    arguments = (torch.from_numpy(prediction).long(), torch.from_numpy(truth).long())
    expected = jaccard(*arguments, num_classes=5, ignore_index=255, average="none").numpy()
    assert np.allclose(iou(confusion.matrix), expected)


def test_a_data_set_agrees_with_torchmetrics_and_with_a_loop():
    """One matrix over images of several sizes; class 5 is nowhere, and torchmetrics' macro mean leaves it out too."""
    torch = pytest.importorskip("torch")
    metric = pytest.importorskip("torchmetrics.classification").MulticlassJaccardIndex
    per_class, macro = (metric(6, average=average, ignore_index=255) for average in ("none", "macro"))
    confusion = ConfusionMatrix(6)
    hits, union = np.zeros(6), np.zeros(6)
    for seed, shape in enumerate([(8, 9), (11, 5), (1, 13), (7, 7)]):
        truth, prediction = random_labels(seed, shape=shape), random_labels(seed + 50, shape=shape) % 5
        confusion.update(truth, prediction)
        for each in (per_class, macro):
            each.update(torch.from_numpy(prediction).long(), torch.from_numpy(truth).long())
        for t, p in zip(truth.flat, prediction.flat, strict=True):
            if t != 255:
                hits[t] += t == p
                union[t] += 1
                union[p] += t != p
    assert math.isnan(iou(confusion.matrix)[5])
    assert np.allclose(iou(confusion.matrix)[:5], hits[:5] / union[:5])
    assert np.allclose(iou(confusion.matrix)[:5], per_class.compute()[:5])
    assert miou(confusion.matrix) == pytest.approx(macro.compute().item())
