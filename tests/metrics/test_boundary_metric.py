from __future__ import annotations

import math

import numpy as np
import pytest

from wsss.errors import DataError
from wsss.metrics import BoundaryFScore
from wsss.metrics.boundary import boundary_pixels, fill_ignored


def u8(values: object) -> np.ndarray:
    return np.array(values, dtype=np.uint8)


def square(top: int, left: int, side: int, *, label: int = 1, shape: tuple[int, int] = (60, 80)) -> np.ndarray:
    """A square on background; the diagonal of (60, 80) is 100 pixels."""
    mask = np.zeros(shape, dtype=np.uint8)
    mask[top : top + side, left : left + side] = label
    return mask


def scored(truth: np.ndarray, prediction: np.ndarray, *, classes: int = 3, tolerance: float = 0.0075) -> BoundaryFScore:
    score = BoundaryFScore(classes, tolerance)
    score.update(truth, prediction)
    return score


def blobs(seed: int, *, classes: int = 4, shape: tuple[int, int] = (24, 32)) -> np.ndarray:
    """Random rectangles over each other."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape, dtype=np.uint8)
    for _ in range(6):
        y, x = rng.integers(0, shape[0] - 4), rng.integers(0, shape[1] - 4)
        mask[y : y + rng.integers(2, 14), x : x + rng.integers(2, 14)] = rng.integers(0, classes)
    return mask


def literal(truth: np.ndarray, prediction: np.ndarray, classes: int, tolerance: float) -> np.ndarray:
    """F of each class by loops over pixels and pairs of them; NaN where neither has a boundary. Knows no 255."""
    height, width = truth.shape
    reach = tolerance * math.sqrt(height**2 + width**2)

    def boundary(mask: np.ndarray, label: int) -> list[tuple[int, int]]:
        found = []
        for y in range(height):
            for x in range(width):
                around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
                inside = [(v, u) for v, u in around if 0 <= v < height and 0 <= u < width]
                if mask[y, x] == label and any(mask[v, u] != label for v, u in inside):
                    found.append((y, x))
        return found

    def near(points: list[tuple[int, int]], others: list[tuple[int, int]]) -> float:
        return sum(any(math.hypot(y - v, x - u) < reach for v, u in others) for y, x in points) / len(points)

    result = np.full(classes, np.nan)
    for label in range(classes):
        true, predicted = boundary(truth, label), boundary(prediction, label)
        if true and predicted:
            p, r = near(predicted, true), near(true, predicted)
            result[label] = 2 * p * r / (p + r) if p + r else 0
        elif true or predicted:
            result[label] = 0
    return result


def test_by_hand():
    """Two vertical borders, in columns 1|2 and 2|3 of a 3 x 4 image (diagonal 5): each is one column off."""
    truth, prediction = u8([[0, 0, 1, 1]] * 3), u8([[0, 0, 0, 1]] * 3)
    assert scored(truth, prediction, tolerance=0.2).per_class[:2].tolist() == [0, 0]  # one pixel is not less than one
    assert scored(truth, prediction, tolerance=0.21).per_class[:2].tolist() == [1, 1]
    assert np.isnan(scored(truth, prediction).per_class[2])


def test_precision_and_recall_by_hand():
    """Background and one pixel of class 1 with four boundary pixels around it; another pixel is predicted besides."""
    truth, prediction = square(10, 10, 1), square(10, 10, 1)
    prediction[40, 40] = 1
    score = scored(truth, prediction)
    assert score.per_class[:2] == pytest.approx([2 / 3, 2 / 3])  # precision 1/2, recall 1
    assert score.mean == pytest.approx(2 / 3)


def test_the_tolerance_is_a_fraction_of_the_diagonal():
    """100 pixels: a shift by 3 lies within 0.0301 of them and not within 0.03."""
    truth, prediction = square(20, 20, 20), square(23, 20, 20)
    assert scored(truth, prediction, tolerance=0.0301).mean == 1
    assert scored(truth, prediction, tolerance=0.03).mean < 1


def test_the_right_region_with_a_rough_border_scores_less_than_a_smooth_one():
    truth, rough = square(10, 20, 40), square(10, 20, 40)
    rough[6:10, 20:60:8] = 1
    assert scored(truth, truth).mean == 1
    assert 0.5 < scored(truth, rough).mean < 0.95


def test_the_edge_of_the_image_is_no_boundary():
    assert boundary_pixels(np.ones((3, 4), np.uint8)) == {}
    full, empty = np.ones((6, 8), np.uint8), np.zeros((6, 8), np.uint8)
    assert math.isnan(scored(full, full).mean)
    assert math.isnan(scored(full, empty).mean)
    assert scored(full, square(2, 2, 2, shape=(6, 8))).per_class[:2].tolist() == [0, 0]


def test_missed_and_invented_classes_count_as_zero():
    score = scored(square(10, 10, 20, label=1), square(10, 10, 20, label=2))
    assert score.per_class.tolist() == [1, 0, 0]


def test_mean_over_images_then_over_classes():
    """Class 1 is right in one image and missed in another, class 2 is right in the one that has it."""
    score, nothing = BoundaryFScore(3), np.zeros((60, 80), np.uint8)
    score.update(square(10, 10, 20), square(10, 10, 20))
    score.update(square(10, 10, 20), nothing)
    score.update(square(10, 10, 20, label=2), square(10, 10, 20, label=2))
    assert score.per_class.tolist() == [2 / 3, 0.5, 1]
    assert score.mean == pytest.approx((2 / 3 + 0.5 + 1) / 3)


@pytest.mark.parametrize("tolerance", [0.0075, 0.03, 0.055, 0.2])
def test_equals_a_literal_loop(tolerance: float):
    """The tolerances are 0.3, 1.2, 2.2 and 8 pixels of 40."""
    score, expected = BoundaryFScore(4, tolerance), []
    for seed in range(6):
        truth, prediction = blobs(seed), blobs(seed)
        prediction[:, 1:] = blobs(seed)[:, :-1]
        prediction[5:9, 3:9] = seed % 4
        score.update(truth, prediction)
        expected.append(literal(truth, prediction, 4, tolerance))
    assert np.allclose(score.per_class, np.nanmean(expected, axis=0))
    assert 0 < score.mean < 1


# --- 255 --------------------------------------------------------------------------------------------------------------


def test_near_ignored_pixels_take_the_nearest_label():
    row = u8([[1, 255, 255, 255, 255, 255, 2]])
    assert fill_ignored(row, reach=2.5).tolist() == [[1, 1, 1, 255, 2, 2, 2]]
    assert fill_ignored(row, reach=1).tolist() == row.tolist()
    nothing = np.full((2, 3), 255, np.uint8)
    assert (fill_ignored(nothing, reach=9) == 255).all()


def test_filled_pixels_have_a_label_of_the_smallest_distance():
    rng = np.random.default_rng(0)
    labels = np.where(rng.random((20, 30)) < 0.9, 255, rng.integers(0, 3, (20, 30))).astype(np.uint8)
    filled, known = fill_ignored(labels, reach=2.5), np.argwhere(labels != 255)
    for y, x in np.argwhere(labels == 255):
        distance = np.hypot(*(known - (y, x)).T)
        nearest = {int(labels[tuple(place)]) for place in known[distance == distance.min()]}
        assert filled[y, x] in (nearest if distance.min() < 2.5 else {255})


def test_a_thin_ring_of_ignored_pixels_is_a_boundary_along_its_middle():
    """As in VOC, 5 pixels wide. A prediction that stays in the ring is right, one 6 pixels beside its middle is not."""
    truth = square(28, 28, 104, label=255, shape=(240, 320))  # a diagonal of 400, a tolerance of 4 pixels
    truth[33:127, 33:127] = 1
    for offset, expected in ((0, 1), (-1, 1), (2, 1), (6, 0)):
        prediction = square(30 + offset, 30 + offset, 100 - 2 * offset, shape=(240, 320))
        assert scored(truth, prediction, tolerance=0.01).mean == expected


def test_what_borders_on_a_wide_ignored_region_is_no_boundary():
    """Whatever is predicted in there counts for nothing."""
    truth = square(10, 10, 20)
    truth[:, 50:] = 255
    prediction = square(10, 10, 20)
    prediction[20:40, 55:70] = 2
    score = scored(truth, prediction)
    assert score.per_class[:2].tolist() == [1, 1]
    assert np.isnan(score.per_class[2])
    nothing = np.full((60, 80), 255, np.uint8)
    assert math.isnan(scored(nothing, prediction).mean)


def test_predicted_255_is_background():
    prediction = np.where(square(10, 10, 20) == 1, 1, 255).astype(np.uint8)
    assert scored(square(10, 10, 20), prediction).mean == 1


# --- state and mistakes -----------------------------------------------------------------------------------------------


def test_totals_of_several_processes_add_up():
    whole, parts = BoundaryFScore(4), [BoundaryFScore(4) for _ in range(2)]
    for seed in range(6):
        for score in (whole, parts[seed % 2]):
            score.update(blobs(seed), blobs(seed + 1))
    parts[0] += parts[1]
    assert np.allclose(parts[0].totals, whole.totals)
    assert parts[0].totals.shape == (2, 4)
    with pytest.raises(ValueError, match=r"cannot merge scores of 4 classes at 0\.0075 and of 4 at 0\.01"):
        parts[0].merge(BoundaryFScore(4, 0.01))


def test_labels_beyond_the_classes_are_named_and_leave_no_trace():
    score = BoundaryFScore(3)
    with pytest.raises(DataError, match="holds label 3"):
        score.update(u8([[3, 0]]), u8([[0, 0]]))
    with pytest.raises(ValueError, match=r"the prediction holds label 7, expected 0\.\.2 or 255"):
        score.update(u8([[1, 0]]), u8([[7, 0]]))
    with pytest.raises(ValueError, match=r"truth \(1, 2\) and prediction \(2, 1\)"):
        score.update(u8([[1, 0]]), u8([[1], [0]]))
    with pytest.raises(ValueError, match="num_classes"):
        BoundaryFScore(0)
    with pytest.raises(ValueError, match="tolerance is a fraction"):
        BoundaryFScore(2, 3)
    assert math.isnan(score.mean)
