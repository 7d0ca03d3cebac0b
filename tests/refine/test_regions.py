from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from skimage import color, graph

from wsss.refine.regions import merge_regions
from wsss.refine.superpixel import felzenszwalb, slic


def image(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Smooth, so that colours lie close together and apart."""
    values = np.random.default_rng(seed).random((*shape, 3))
    values = ndimage.gaussian_filter(values, sigma=(3, 3, 0))
    values = (values - values.min()) / np.ptp(values)
    return (255 * values).astype(np.uint8)


def greys(*lightness: float) -> np.ndarray:
    """One row of pixels with these values of L (a and b are 0)."""
    lab = np.zeros((1, len(lightness), 3))
    lab[0, :, 0] = lightness
    return np.rint(255 * color.lab2rgb(lab)).astype(np.uint8)


def test_the_closest_pair_goes_first():
    row = greys(50, 55, 61, 90)
    ids = np.arange(4)[None]
    assert merge_regions(row, ids, threshold=4).tolist() == [[0, 1, 2, 3]]
    # 50 and 55 become 52.5, which is 8.5 from 61
    assert merge_regions(row, ids, threshold=7).tolist() == [[0, 0, 1, 2]]
    assert merge_regions(row, ids, threshold=9).tolist() == [[0, 0, 0, 1]]
    assert merge_regions(row, ids, threshold=100).tolist() == [[0, 0, 0, 0]]


def test_the_mean_is_over_pixels():
    row = greys(50, 50, 50, 56, 60)
    ids = np.array([[0, 0, 0, 1, 2]])
    # 56 and 60 become 58; 8 from 50. Had 50 come first, its 3 pixels would have held the mean at 51.5.
    assert merge_regions(row, ids, threshold=7).tolist() == [[0, 0, 0, 1, 1]]
    row = greys(50, 50, 50, 54, 60)
    # 50 and 54 become 51, which is 9 from 60; the mean of the two segments would be 52, 8 from it
    assert merge_regions(row, ids, threshold=8.5).tolist() == [[0, 0, 0, 0, 1]]


def test_only_neighbours_merge_and_a_corner_is_none():
    assert merge_regions(greys(50, 90, 50), np.array([[0, 1, 2]]), threshold=10).tolist() == [[0, 1, 2]]
    checks = np.concatenate([greys(50, 90), greys(90, 50)])
    assert merge_regions(checks, np.array([[0, 1], [2, 3]]), threshold=10).tolist() == [[0, 1], [2, 3]]


def test_ids_of_a_region_whose_segments_lie_in_any_order():
    row = greys(50, 90, 50, 50)
    assert merge_regions(row, np.array([[3, 1, 0, 2]]), threshold=5).tolist() == [[2, 1, 0, 0]]


def test_identities():
    picture = image((30, 40))
    segments = slic(picture, segments=80)
    assert np.array_equal(merge_regions(picture, segments, threshold=0), segments)
    assert not merge_regions(picture, segments, threshold=1000).any()
    for threshold in (3, 8, 20):
        merged = merge_regions(picture, segments, threshold=threshold)
        assert merged.dtype == np.int64
        assert np.unique(merged).tolist() == list(range(merged.max() + 1))
        for segment in range(segments.max() + 1):
            assert np.unique(merged[segments == segment]).size == 1
        # no two neighbours are left to merge
        assert np.array_equal(merge_regions(picture, merged, threshold=threshold), merged)


def reference(picture: np.ndarray, segments: np.ndarray, threshold: float) -> np.ndarray:
    """The same by scikit-image's region adjacency graph."""

    def merge(rag: graph.RAG, source: int, target: int) -> None:
        for name in ("total color", "pixel count"):
            rag.nodes[target][name] += rag.nodes[source][name]
        rag.nodes[target]["mean color"] = rag.nodes[target]["total color"] / rag.nodes[target]["pixel count"]

    def distance(rag: graph.RAG, source: int, target: int, other: int) -> dict[str, float]:
        return {"weight": np.linalg.norm(rag.nodes[target]["mean color"] - rag.nodes[other]["mean color"])}

    adjacency = graph.rag_mean_color(color.rgb2lab(picture), segments, connectivity=1)
    return graph.merge_hierarchical(
        segments,
        adjacency,
        thresh=threshold,
        rag_copy=False,
        in_place_merge=True,
        merge_func=merge,
        weight_func=distance,
    )


@pytest.mark.parametrize("threshold", [8, 12, 16])
@pytest.mark.parametrize(
    "algorithm", [lambda im: slic(im, segments=60), lambda im: felzenszwalb(im, scale=1, min_size=4)]
)
def test_the_regions_are_those_of_scikit_image(threshold, algorithm):
    picture = image((40, 50), seed=3)
    segments = algorithm(picture)
    ours, theirs = merge_regions(picture, segments, threshold=threshold), reference(picture, segments, threshold)
    assert 1 < ours.max() + 1 < segments.max() + 1
    pairs = np.unique(np.stack([ours.reshape(-1), theirs.reshape(-1)]), axis=1).shape[1]
    assert pairs == ours.max() + 1 == np.unique(theirs).size


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (2, 2)])
def test_small_images(shape):
    segments = np.arange(np.prod(shape)).reshape(shape)
    picture = np.full((*shape, 3), 128, np.uint8)
    assert not merge_regions(picture, segments, threshold=1).any()
    assert np.array_equal(merge_regions(picture, segments, threshold=0), segments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": np.zeros((2, 2, 3))}, "uint8"),
        ({"segments": np.zeros((2, 3), int)}, "segments"),
        ({"segments": np.zeros((2, 2))}, "integer"),
        ({"segments": np.array([[0, 0], [2, 2]])}, "all occur"),
        ({"segments": np.array([[0, 0], [-1, 1]])}, "all occur"),
        ({"threshold": -1.0}, "threshold"),
        ({"threshold": np.nan}, "threshold"),
    ],
)
def test_bad_input_is_named(change, message):
    given = {"image": np.zeros((2, 2, 3), np.uint8), "segments": np.zeros((2, 2), int), "threshold": 5.0} | change
    with pytest.raises(ValueError, match=message):
        merge_regions(given["image"], given["segments"], threshold=given["threshold"])
