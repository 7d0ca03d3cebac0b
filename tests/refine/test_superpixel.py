from __future__ import annotations

import numpy as np
import pytest

from wsss.refine.superpixel import felzenszwalb, segment_means, slic, superpixel_smoothing


def image(shape: tuple[int, int], seed: int | None = 0) -> np.ndarray:
    if seed is None:
        return np.full((*shape, 3), 128, dtype=np.uint8)
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def test_means_by_hand():
    segments = np.array([[0, 0, 1], [2, 1, 1]])
    scores = np.array([[[0.2, 0.4, 0.0], [0.5, 0.3, 0.6]], [[1, 1, 1], [0, 1, 1]]], dtype=np.float32)
    assert np.allclose(segment_means(segments, scores), [[0.3, 0.3, 0.5], [1, 1, 0]])
    smooth = superpixel_smoothing(segments, scores)
    assert np.allclose(smooth[0], [[0.3, 0.3, 0.3], [0.5, 0.3, 0.3]])
    assert smooth.dtype == np.float32
    assert segment_means(segments, scores[:0]).shape == (0, 3)


def test_means_equal_a_loop_over_segments():
    segments = slic(image((30, 40)), segments=20)
    scores = np.random.default_rng(1).random((3, 30, 40), dtype=np.float32)
    expected = [[score[segments == s].mean() for s in range(segments.max() + 1)] for score in scores]
    assert np.allclose(segment_means(segments, scores), expected, atol=1e-6)
    assert np.allclose(
        superpixel_smoothing(segments, superpixel_smoothing(segments, scores)), superpixel_smoothing(segments, scores)
    )


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 2), (24, 31)])
@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize(
    "algorithm",
    [
        lambda im: slic(im, segments=1),
        lambda im: slic(im, segments=1000),
        lambda im: slic(im, segments=10, sigma=1),
        lambda im: felzenszwalb(im, scale=200),
        lambda im: felzenszwalb(im, scale=1, sigma=0, min_size=1),
    ],
)
def test_ids_are_contiguous_on_any_image(shape, seed, algorithm):
    segments = algorithm(image(shape, seed))
    assert segments.shape == shape
    assert np.unique(segments).tolist() == list(range(segments.max() + 1))


@pytest.mark.parametrize("algorithm", [lambda im: slic(im, segments=12), lambda im: felzenszwalb(im, scale=50)])
def test_segments_follow_a_colour_edge(algorithm):
    two = image((40, 40), None)
    two[:, 20:] = (250, 20, 20)
    segments = algorithm(two)
    assert not np.intersect1d(segments[:, :19], segments[:, 21:]).size
