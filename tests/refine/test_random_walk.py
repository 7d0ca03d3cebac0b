from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from wsss.refine.random_walk import affinities, half_plane, path, propagate, random_walk, resize, walk, window

RNG = np.random.default_rng(0)
BOUNDARIES = RNG.random((7, 9), dtype=np.float32) ** 3
SCORES = RNG.random((2, 7, 9), dtype=np.float32)


# --- pairs and lines -------------------------------------------------------------------------------------------------


def test_pairs_by_hand():
    assert half_plane(2) == [(0, 1), (1, -1), (1, 0), (1, 1)]
    assert half_plane(3)[:3] == [(0, 1), (0, 2), (1, -2)]
    assert half_plane(3)[-2:] == [(2, 1), (2, 2)]


@pytest.mark.parametrize("radius", [2, 5, 10])
def test_with_their_opposites_and_the_origin_the_pairs_fill_a_disc(radius):
    shifts = half_plane(radius)
    both = [*shifts, *((-dy, -dx) for dy, dx in shifts), (0, 0)]
    disc = {(y, x) for y, x in product(range(-radius, radius + 1), repeat=2) if np.hypot(y, x) < radius}
    assert len(both) == len(set(both))
    assert set(both) == disc


def test_lines_by_hand():
    assert path(0, 3) == [(0, 0), (0, 1), (0, 2), (0, 3)]
    assert path(2, 0) == [(0, 0), (1, 0), (2, 0)]
    assert path(1, 1) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert path(1, -1) == [(0, -1), (0, 0), (1, -1), (1, 0)]
    assert path(2, 2) == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 1), (2, 2)]


@pytest.mark.parametrize("shift", half_plane(6))
def test_a_line_is_the_same_from_both_ends(shift):
    dy, dx = shift
    assert {(dy - y, dx - x) for y, x in path(dy, dx)} == set(path(dy, dx))


@pytest.mark.parametrize("shift", [(0, 2), (1, -2), (2, 0), (2, 2)])
def test_windows_pair_each_cell_with_the_one_a_shift_away(shift):
    numbers = np.arange(3 * 4).reshape(3, 4)
    first, second = numbers[window(0, 0, shift, (3, 4))], numbers[window(*shift, shift, (3, 4))]
    expected = [
        (y * 4 + x, (y + shift[0]) * 4 + x + shift[1])
        for y, x in product(range(3), range(4))
        if y + shift[0] < 3 and 0 <= x + shift[1] < 4
    ]
    assert list(zip(first.ravel(), second.ravel(), strict=True)) == expected


@pytest.mark.parametrize("shift", [(3, 0), (0, 4), (1, -4)])
def test_a_shift_as_long_as_the_grid_has_no_pairs(shift):
    assert np.zeros((3, 4))[window(0, 0, shift, (3, 4))].size == 0


# --- the matrix ------------------------------------------------------------------------------------------------------


def test_transitions_by_hand():
    """From each cell of three in a row to itself 1, to the others 1 - 1/2: the middle one is on all lines."""
    row = np.array([[0.0, 0.5, 0.0]])
    assert np.allclose(affinities(row, beta=1).toarray(), np.array([[2, 1, 1], [1, 2, 1], [1, 1, 2]]) / 4)
    assert np.allclose(affinities(row, beta=2).toarray(), np.array([[4, 1, 1], [1, 4, 1], [1, 1, 4]]) / 6)
    assert np.allclose(
        affinities(row, beta=1, radius=2).toarray(), [[2 / 3, 1 / 3, 0], [0.25, 0.5, 0.25], [0, 1 / 3, 2 / 3]]
    )


def dense(boundaries: np.ndarray, radius: int, beta: float) -> np.ndarray:
    """All pairs one by one, the line from the definition, in float64."""
    cells = list(product(*map(range, boundaries.shape)))
    matrix = np.zeros((len(cells), len(cells)))
    for i, (y, x) in enumerate(cells):
        for j, (v, u) in enumerate(cells):
            length = np.hypot(v - y, u - x)
            if length >= radius:
                continue
            strongest = max(boundaries[y, x], boundaries[v, u]) if i != j else 0.0
            for b, a in product(range(min(y, v), max(y, v) + 1), range(min(x, u), max(x, u) + 1)):
                if i != j and abs((v - y) * (a - x) - (u - x) * (b - y)) / length < 1 - 1e-9:
                    strongest = max(strongest, boundaries[b, a])
            matrix[i, j] = (1 - float(strongest)) ** beta
    return matrix / matrix.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("shape", "radius", "beta"), [((7, 9), 5, 10), ((7, 9), 3, 1), ((1, 1), 5, 10)])
def test_transitions_are_those_of_a_loop_over_pairs(shape, radius, beta):
    boundaries = BOUNDARIES[: shape[0], : shape[1]]
    np.testing.assert_allclose(
        affinities(boundaries, radius=radius, beta=beta).toarray(), dense(boundaries, radius, beta), atol=2e-6
    )


@pytest.mark.parametrize("shape", [(7, 3), (6, 1), (1, 9), (2, 5)])
def test_shifts_that_share_a_diagonal_on_a_narrow_grid(shape):
    """On a grid 3 wide one cell to the right, and one down and two to the left, are the same distance in memory."""
    boundaries = BOUNDARIES[: shape[0], : shape[1]]
    np.testing.assert_allclose(affinities(boundaries).toarray(), dense(boundaries, 5, 10), atol=1e-6)


def test_rows_sum_to_one_and_nothing_is_negative():
    transitions = affinities(BOUNDARIES).toarray()
    assert transitions.min() >= 0
    np.testing.assert_allclose(transitions.sum(axis=1), 1, rtol=2e-6)


# --- the walk --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 2, 256])
def test_the_walk_is_a_power_of_the_dense_matrix(steps):
    start = (SCORES * (1 - BOUNDARIES)).reshape(2, -1)
    expected = start @ np.linalg.matrix_power(dense(BOUNDARIES, 5, 10), steps).T
    walked = propagate(SCORES, BOUNDARIES, steps=steps)
    np.testing.assert_allclose(walked.reshape(2, -1), expected, atol=2e-4)
    np.testing.assert_allclose(random_walk(SCORES, BOUNDARIES, steps=steps), walked / walked.max(), rtol=1e-6)


def test_a_score_spreads_over_what_a_wall_encloses_and_no_further():
    boundaries, score = np.zeros((9, 20), np.float32), np.zeros((1, 9, 20), np.float32)
    boundaries[:, 12] = 1
    score[0, 4, 3] = 1
    walked = random_walk(score, boundaries)
    assert (walked[0, :, :12] > 0.5).all()
    assert (walked[0, :, 12:] == 0).all()


def test_a_wall_of_cells_that_touch_at_corners_stops_the_walk():
    score = np.zeros((1, 12, 12), np.float32)
    score[0, 10, 1] = 1
    walked = random_walk(score, np.eye(12, dtype=np.float32), radius=6)
    below = np.tri(12, k=-1, dtype=bool)
    assert (walked[0][below] > 0).all()
    assert (walked[0][~below] == 0).all()


def test_without_boundaries_a_uniform_map_stays():
    walked = propagate(np.full((1, 8, 11), 0.25, np.float32), np.zeros((8, 11), np.float32))
    np.testing.assert_allclose(walked, 0.25, rtol=1e-5)


def test_no_value_leaves_the_range_of_the_start():
    start = SCORES * (1 - BOUNDARIES)
    for steps in (1, 7, 256):
        walked = propagate(SCORES, BOUNDARIES, steps=steps)
        assert (walked.max(axis=(1, 2)) <= start.max(axis=(1, 2)) * (1 + 1e-5)).all()
        assert (walked.min(axis=(1, 2)) >= start.min(axis=(1, 2)) * (1 - 1e-5)).all()


def test_classes_are_relative_to_the_strongest_of_them():
    scores = np.stack([np.full((2, 3), 0.5), np.full((2, 3), 0.25), np.zeros((2, 3))]).astype(np.float32)
    walked = random_walk(scores, np.zeros((2, 3), np.float32))
    np.testing.assert_allclose(walked, np.array([1, 0.5, 0])[:, None, None] * np.ones((2, 3)), rtol=1e-5)


def test_silent_scores_stay_zero():
    assert not random_walk(np.zeros((2, 7, 9), np.float32), BOUNDARIES).any()
    assert not random_walk(SCORES, np.ones((7, 9), np.float32)).any()
    assert random_walk(np.zeros((0, 7, 9), np.float32), BOUNDARIES).shape == (0, 7, 9)
    assert walk(np.zeros((0, 28, 36), np.float32), BOUNDARIES).shape == (0, 28, 36)


# --- at the size of the image ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(7, 9), (28, 35), (3, 4), (15, 5), (1, 1)])
def test_maps_are_resized_as_torch_does_it(size):
    expected = F.interpolate(torch.from_numpy(SCORES)[None], size=size, mode="bilinear", antialias=True)[0]
    np.testing.assert_allclose(resize(SCORES, size), expected.numpy(), atol=1e-6)


def test_at_the_size_of_the_grid_it_is_the_walk_alone():
    np.testing.assert_allclose(walk(SCORES, BOUNDARIES, steps=9), random_walk(SCORES, BOUNDARIES, steps=9), rtol=1e-6)


def test_a_seed_fills_its_object():
    """A square with a boundary around it: from a quarter of it to the whole, but for the pixels at its corners."""
    inside = np.zeros((12, 16), bool)
    inside[3:9, 4:12] = True
    around = np.zeros((12, 16), np.float32)
    around[2:10, 3:13] = 1
    around[inside] = 0
    score = np.zeros((1, 48, 64), np.float32)
    score[0, 16:28, 20:36] = 1
    walked = walk(score, around)
    assert walked.max() == pytest.approx(1)
    truth = inside.repeat(4, axis=0).repeat(4, axis=1)
    wrong = np.argwhere((walked[0] > 0.5) != truth).tolist()
    assert wrong == [[12, 16], [12, 47], [35, 16], [35, 47]]


def test_arguments_stay_as_they_are():
    scores, boundaries = SCORES.copy(), BOUNDARIES.copy()
    walk(scores, boundaries, steps=2)
    assert np.array_equal(scores, SCORES)
    assert np.array_equal(boundaries, BOUNDARIES)


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "boundaries", "settings", "fault"),
    [
        (SCORES, BOUNDARIES[None], {}, r"expected boundaries \(h, w\) of one cell or more, got \(1, 7, 9\)"),
        (SCORES[:, :0], BOUNDARIES[:0], {}, r"one cell or more, got \(0, 9\)"),
        (SCORES, BOUNDARIES * 2, {}, r"boundaries must be finite and in \[0, 1\]"),
        (SCORES, BOUNDARIES * np.nan, {}, r"boundaries must be finite and in \[0, 1\], got values from nan"),
        (SCORES * np.nan, BOUNDARIES, {}, r"scores must be finite and in \[0, 1\]"),
        (SCORES * -1, BOUNDARIES, {}, r"scores must be finite and in \[0, 1\]"),
        (SCORES[:, 1:], BOUNDARIES, {}, r"expected scores \(K, 7, 9\), got \(2, 6, 9\)"),
        (SCORES[0], BOUNDARIES, {}, r"expected scores \(K, 7, 9\), got \(7, 9\)"),
        (SCORES, BOUNDARIES, {"radius": 1}, r"expected a radius of 2 or more cells.*got 1"),
        (SCORES, BOUNDARIES, {"beta": 0.0}, r"expected a positive beta, got 0\.0"),
        (SCORES, BOUNDARIES, {"steps": -1}, r"expected 0 or more steps, got -1"),
    ],
)
def test_what_cannot_be_walked(scores, boundaries, settings, fault):
    with pytest.raises(ValueError, match=fault):
        random_walk(scores, boundaries, **settings)


def test_what_cannot_be_walked_at_full_size():
    with pytest.raises(ValueError, match=r"expected scores \(K, H, W\), got \(7, 9\)"):
        walk(SCORES[0], BOUNDARIES)
    with pytest.raises(ValueError, match="scores must be finite"):
        walk(SCORES * np.inf, BOUNDARIES)
