from __future__ import annotations

import itertools

import numpy as np
import pytest

from wsss.refine import graphcut
from wsss.refine.graphcut import cut_labels, graph_cut, largest_region
from wsss.refine.threshold import threshold

RED, BLUE = (200, 30, 30), (30, 30, 200)


def halves(height: int = 16, width: int = 16, edge: int = 8) -> np.ndarray:
    """Red to the left of column ``edge``, blue from it on."""
    image = np.empty((height, width, 3), dtype=np.uint8)
    image[:, :edge], image[:, edge:] = RED, BLUE
    return image


def noise(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def random_scores(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def test_three_pixels_by_hand():
    # Scores alone say 1, 0, 1. To leave out the middle costs two borders; to take it in, its evidence.
    image, score = np.full((1, 3, 3), 90, np.uint8), np.array([[0.48, 0.18, 0.48]], np.float32)
    # background 0.23 + 0.02 = 0.25: evidence log 2, log 0.8, log 2; a border within a flat image costs smoothness
    price = -np.log(0.8) / 2 / np.sqrt(3)  # relative to the image's side, the root of 3 pixels
    below = graph_cut(image, score, background=0.23, smoothness=0.95 * price, colour=0)
    above = graph_cut(image, score, background=0.23, smoothness=1.05 * price, colour=0)
    assert below.tolist() == [[True, False, True]]
    assert above.tolist() == [[True, True, True]]


def test_the_cut_moves_to_the_edge_of_the_image():
    score = np.full((16, 16), 0.1, np.float32)
    score[:, :6] = 0.9  # two columns short of the edge
    assert graph_cut(halves(), score, background=0.3).tolist() == (np.arange(16) < 8)[None].repeat(16, 0).tolist()
    score[:, :10] = 0.9  # two columns beyond
    assert graph_cut(halves(), score, background=0.3).tolist() == (np.arange(16) < 8)[None].repeat(16, 0).tolist()


def test_colour_alone_moves_it_too():
    score = np.full((16, 16), 0.2, np.float32)
    score[:, :6] = 0.9
    # ratio of 0.2 to 0.3 is weak evidence against; the colour is the foreground's
    assert graph_cut(halves(), score, background=0.3, smoothness=0, colour=1)[:, :8].all()
    assert not graph_cut(halves(), score, background=0.3, smoothness=0, colour=1)[:, 8:].any()
    assert not graph_cut(halves(), score, background=0.3, smoothness=0, colour=0)[:, 6:].any()


@pytest.mark.parametrize("background", [0, 0.3, 0.3000001, 1])
def test_without_pairs_and_colour_it_is_the_threshold(background):
    score = random_scores(9, 11)
    score[0, :4] = 0, 1, 0.3, np.nextafter(np.float32(0.3), np.float32(1))
    mask = graph_cut(noise((9, 11)), score, background=background, smoothness=0, colour=0)
    assert np.array_equal(mask, score > np.float32(background))


def energy(mask: np.ndarray, evidence: np.ndarray, image: np.ndarray, smoothness: float) -> float:
    """The energy of the docstring in a literal loop, without the colours."""
    height, width = mask.shape
    inside = [(y, x) for y in range(height) for x in range(width)]
    steps = [(0, 1), (1, 0), (1, 1), (1, -1)]
    pairs = [((y, x), (y + dy, x + dx)) for y, x in inside for dy, dx in steps if (y + dy, x + dx) in set(inside)]
    squares = [float(((image[p].astype(float) - image[q]) ** 2).sum()) for p, q in pairs]
    total, weight = -float((evidence * mask).sum()), smoothness * np.sqrt(mask.size)
    for (p, q), square in zip(pairs, squares, strict=True):
        if mask[p] != mask[q]:
            total += weight * np.exp(-square / (2 * np.mean(squares))) / np.hypot(p[0] - q[0], p[1] - q[1])
    return total


@pytest.mark.parametrize("shape", [(3, 3), (2, 4), (1, 8)])
@pytest.mark.parametrize("smoothness", [0.1, 0.5, 2])
def test_no_mask_has_less_energy(shape, smoothness):
    image, score = noise(shape), random_scores(*shape)
    evidence = np.log((score.astype(float) + 0.02) / (0.4 + 0.02))
    masks = [np.reshape(bits, shape) for bits in itertools.product([False, True], repeat=score.size)]
    least = min(energy(mask, evidence, image, smoothness) for mask in masks)
    cut = graph_cut(image, score, background=0.4, smoothness=smoothness, colour=0)
    assert energy(cut, evidence, image, smoothness) == pytest.approx(least, abs=2e-3)  # capacities are whole numbers


def test_colour_evidence_by_hand():
    bins = graphcut._bins(halves(4, 4, 2))
    seed = np.zeros((4, 4), bool)
    seed[:, 0] = True
    evidence = graphcut._colour_evidence(bins, seed)
    # Red: all 4 pixels of the seed, 4 of the 12 others, so a factor of 3. Blue: none against 8 of 12, bounded.
    assert np.allclose(evidence[:, :2], np.log(3), atol=1e-2)
    assert np.allclose(evidence[:, 2:], -3)


@pytest.mark.parametrize("value", [0.0, 0.3, 0.31, 1.0])
def test_a_constant_score_is_not_cut(value):
    mask = graph_cut(noise((8, 8)), np.full((8, 8), value, np.float32), background=0.3)
    assert mask.shape == (8, 8)
    assert mask.dtype == np.bool_
    assert (mask == (value > 0.3)).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (2, 2), (16, 16)])
@pytest.mark.parametrize("flat", [True, False])
def test_any_size_and_a_flat_image(shape, flat):
    image, scores = np.full((*shape, 3), 128, np.uint8) if flat else noise(shape), random_scores(2, *shape)
    labels = cut_labels(image, np.array([3, 7]), scores, background=0.3, largest=True)
    assert labels.shape == shape
    assert labels.dtype == np.uint8
    assert np.isin(labels, [0, 3, 7]).all()
    assert np.array_equal(labels, cut_labels(image, np.array([3, 7]), scores, background=0.3, largest=True))


def test_one_pixel_stands_where_the_image_says_so_and_goes_where_not():
    score = np.zeros((9, 9), np.float32)
    score[4, 4] = 1
    image = np.full((9, 9, 3), BLUE, np.uint8)
    assert not graph_cut(image, score, background=0.3).any()
    image[4, 4] = RED
    assert np.array_equal(graph_cut(image, score, background=0.3), score > 0)


def test_extreme_weights_do_not_overflow():
    score, flat = random_scores(12, 12), np.zeros((12, 12, 3), np.uint8)
    for background in (0.1, 0.9):  # no pixel may differ from a neighbour: the sum of the evidence decides
        evidence = np.log((score.astype(float) + 0.02) / (background + 0.02)).sum()
        whole = graph_cut(flat, score, background=background, smoothness=1e9, colour=0)
        assert (whole == (evidence > 0)).all()
    # And here the colour alone does.
    score = np.full((12, 12), 0.1, np.float32)
    score[:, :3] = 0.9
    red = (np.arange(12) < 6)[None].repeat(12, 0)
    assert np.array_equal(graph_cut(halves(12, 12, 6), score, background=0.5, colour=1e9), red)


def test_largest_region():
    mask = np.array([[1, 0, 1, 1], [0, 1, 0, 0], [0, 0, 0, 1], [1, 0, 0, 1]], dtype=bool)
    eight = np.array([[1, 0, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], dtype=bool)
    four = np.array([[0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], dtype=bool)  # two of 2 pixels: the first
    assert np.array_equal(largest_region(mask), eight)
    assert np.array_equal(largest_region(mask, connectivity=4), four)
    assert not largest_region(np.zeros((3, 3), bool)).any()
    assert largest_region(np.ones((3, 3), bool)).all()


def test_labels_without_pairs_and_colour_are_the_threshold():
    scores = np.round(random_scores(3, 12, 13) * 5) / np.float32(5)  # many ties
    ids = np.array([2, 9, 4])
    labels = cut_labels(noise((12, 13)), ids, scores, background=0.4, smoothness=0, colour=0)
    assert np.array_equal(labels, threshold(scores, ids, background=0.4))
    assert not cut_labels(noise((4, 4)), ids[:0], scores[:0, :4, :4], background=0.4).any()


def test_labels_of_two_classes():
    left = np.where(np.arange(16) < 6, 0.9, 0.1).astype(np.float32)[None].repeat(16, 0)
    labels = cut_labels(halves(), np.array([5, 8]), np.stack([left, left[:, ::-1]]), background=0.2)
    assert np.array_equal(labels, np.where(np.arange(16) < 8, 5, 8)[None].repeat(16, 0))


def test_largest_drops_the_second_object():
    image, score = np.full((12, 20, 3), BLUE, np.uint8), np.zeros((12, 20), np.float32)
    for columns in (slice(1, 5), slice(9, 18)):
        image[3:9, columns], score[3:9, columns] = RED, 0.9
    both = cut_labels(image, np.array([1]), score[None], background=0.3, largest=False)
    one = cut_labels(image, np.array([1]), score[None], background=0.3, largest=True)
    assert np.array_equal(both, score > 0)
    assert np.array_equal(one[:, 7:], both[:, 7:])
    assert not one[:, :7].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": np.zeros((4, 4, 3))}, "uint8"),
        ({"image": np.zeros((4, 4), np.uint8)}, "uint8"),
        ({"image": np.zeros((4, 5, 3), np.uint8)}, "size"),
        ({"score": np.full((4, 4), np.nan, np.float32)}, "finite"),
        ({"score": np.full((4, 4), 2, np.float32)}, r"\[0, 1\]"),
        ({"background": 1.5}, "background"),
        ({"background": np.zeros((2, 2))}, "background"),
        ({"smoothness": -1}, "smoothness"),
        ({"colour": np.inf}, "colour"),
    ],
)
def test_bad_input_is_named(change, message):
    given = {"image": np.zeros((4, 4, 3), np.uint8), "score": np.zeros((4, 4), np.float32), "background": 0.3}
    given |= change
    with pytest.raises(ValueError, match=message):
        graph_cut(given.pop("image"), given.pop("score"), **given)


def test_bad_masks_and_classes_are_named():
    with pytest.raises(ValueError, match="bool"):
        largest_region(np.zeros((3, 3), np.uint8))
    with pytest.raises(ValueError, match="connectivity"):
        largest_region(np.zeros((3, 3), bool), connectivity=6)
    with pytest.raises(ValueError, match="class ids"):
        cut_labels(noise((4, 4)), np.array([1]), random_scores(2, 4, 4), background=0.3)
