"""Binary graph cuts: each class against the rest, along the edges of the image."""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage, sparse
from scipy.sparse import csgraph

from wsss.metrics.threshold import check_scores
from wsss.refine.threshold import threshold
from wsss.types import BACKGROUND

_FLOOR = 0.02  # added to both scores before their logarithms: a score of 0 is strong evidence, not infinite evidence
_BINS = 16  # of the colour histogram along each channel
_RARE = 1e-5  # added to the share of a colour: one that occurs in neither region says nothing
_CLIP = 3.0  # bound on the evidence of a colour, a factor of 20: histograms of few pixels are sure too easily
_RESOLUTION = 1e4  # units of the integer capacities per unit of energy
_INT32 = 2**31 - 1

# One of each two opposite neighbours: row offset, column offset.
_OFFSETS = ((0, 1), (1, 0), (1, 1), (1, -1))


def graph_cut(
    image: np.ndarray,
    score: np.ndarray,
    *,
    background: float | np.ndarray,
    smoothness: float = 0.04,
    colour: float = 1.0,
) -> np.ndarray:
    """The foreground of one class by a minimum cut (Boykov and Jolly, ICCV 2001; Rother et al., SIGGRAPH 2004).

    Minimises over binary masks x the energy

        sum_p x_p * -(log((score_p + 0.02) / (background_p + 0.02)) + colour * c_p)
            + smoothness * sqrt(H W) * sum_pq [x_p != x_q] * exp(-|I_p - I_q|^2 / (2 m)) / |p - q|

    over pixels p and pairs pq of 8-neighbours. ``m`` is the mean of |I_p - I_q|^2 over all pairs. The root keeps the
    balance of area and border at another resolution. ``c_p`` is the log ratio of how frequent the colour of p is in
    the thresholded foreground and in the thresholded background (histograms of 16 x 16 x 16 bins, smoothed), in
    [-3, 3]. Of several minima it is the one with the fewest pixels. With ``smoothness=0, colour=0`` the mask is
    ``score > background``.

    LayerCAM (TIP 2021) names a graph cut for the maps of shallow layers without its terms; these are ours.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        score: ``(H, W)`` in [0, 1], of one class.
        background: score of all else in [0, 1], a number or ``(H, W)``.
        smoothness: weight of the border's length relative to the image's side, 0 or more.
        colour: weight of the colour model, 0 or more.

    Returns:
        ``(H, W)`` bool. If no score exceeds the background, or every one does, there is nothing to cut: all False, or
        all True.

    Raises:
        ValueError: shapes, types or ranges are others.
    """
    _check(image, score[None], smoothness=smoothness, colour=colour)
    score, rest = score.astype(np.float32, copy=False), _background(background, score.shape)
    return _cut(score, rest, _contrast(image), _bins(image), smoothness, colour)


def largest_region(mask: np.ndarray, *, connectivity: int = 8) -> np.ndarray:
    """The largest connected region of a mask; of equals the first in scan order.

    Args:
        mask: ``(H, W)`` bool.
        connectivity: 4 or 8 neighbours.

    Returns:
        ``(H, W)`` bool, empty if the mask is.

    Raises:
        ValueError: the mask is no 2-D bool array, or the connectivity another number.
    """
    if mask.ndim != 2 or mask.dtype != np.bool_:
        raise ValueError(f"expected a mask (H, W) of bool, got {mask.shape} of {mask.dtype}")
    if connectivity not in (4, 8):
        raise ValueError(f"expected connectivity 4 or 8, got {connectivity!r}")
    regions, count = ndimage.label(mask, ndimage.generate_binary_structure(2, 1 if connectivity == 4 else 2))
    if count <= 1:
        return mask.copy()
    return regions == 1 + np.bincount(regions.reshape(-1))[1:].argmax()


def cut_labels(
    image: np.ndarray,
    class_ids: np.ndarray,
    scores: np.ndarray,
    *,
    background: float | np.ndarray,
    smoothness: float = 0.04,
    colour: float = 1.0,
    largest: bool = False,
) -> np.ndarray:
    """Labels from one :func:`graph_cut` per class against the rest.

    The background score of a class is the larger of ``background`` and the other classes' scores. A pixel that
    several cuts claim takes the class with the largest score there (the first of equals), one that none claims is
    background. With ``smoothness=0, colour=0, largest=False`` the labels are those of
    :func:`wsss.refine.threshold.threshold`.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        class_ids: ``(K,)`` in 1..254.
        scores: ``(K, H, W)`` in [0, 1].
        background: in [0, 1], a number or ``(H, W)``.
        smoothness: and ``colour``: see :func:`graph_cut`.
        largest: keep only the largest region of each cut, as LayerCAM does for its one object per image.

    Returns:
        ``(H, W)`` uint8 in {0} and ``class_ids``; all 0 if ``K = 0``.

    Raises:
        ValueError: shapes, types or ranges are others.
    """
    if scores.ndim != 3 or len(class_ids) != len(scores):
        raise ValueError(f"expected scores (K, H, W) and K class ids, got {scores.shape} and {len(class_ids)}")
    _check(image, scores, smoothness=smoothness, colour=colour)
    least = _background(background, scores.shape[1:])
    if not len(scores):
        return np.full(scores.shape[1:], BACKGROUND, dtype=np.uint8)
    scores = scores.astype(np.float32, copy=False)
    below = np.nextafter(scores, np.float32(-1))  # so that of equal scores the first exceeds the others
    contrast, bins = _contrast(image), _bins(image)
    claimed = np.full_like(scores, -1)
    for k, score in enumerate(scores):
        rest = np.maximum(least, np.concatenate([scores[:k], below[k + 1 :]]).max(axis=0, initial=0))
        mask = _cut(score, rest, contrast, bins, smoothness, colour)
        if largest:
            mask = largest_region(mask)
        np.copyto(claimed[k], score, where=mask)
    return threshold(claimed, np.asarray(class_ids), background=-1.0)


def _cut(
    score: np.ndarray,
    background: np.ndarray,
    contrast: list[np.ndarray],
    bins: np.ndarray,
    smoothness: float,
    colour: float,
) -> np.ndarray:
    seed = score > background
    if seed.all() or not seed.any():  # all evidence on one side, and no second region to learn colours from
        return seed
    evidence = np.log((score.astype(np.float64) + _FLOOR) / (background.astype(np.float64) + _FLOOR))
    if colour:
        evidence += colour * _colour_evidence(bins, seed)
    scale = smoothness * math.sqrt(score.size)
    return _minimum_cut(evidence, [scale * weights for weights in contrast])


def _colour_evidence(bins: np.ndarray, seed: np.ndarray) -> np.ndarray:
    """``(H, W)`` in [-3, 3]: log of how much more frequent a colour is inside of ``seed`` than outside."""
    shares = []
    for region in (seed, ~seed):
        counts = np.bincount(bins[region], minlength=_BINS**3).astype(np.float64).reshape(_BINS, _BINS, _BINS)
        counts = ndimage.gaussian_filter(counts, sigma=1, mode="nearest").reshape(-1)
        shares.append(counts / counts.sum() + _RARE)
    return np.clip(np.log(shares[0] / shares[1]), -_CLIP, _CLIP)[bins]


def _minimum_cut(evidence: np.ndarray, pairs: list[np.ndarray]) -> np.ndarray:
    """The smallest mask x that minimises -sum(evidence * x) + sum(pairs over the border of x).

    Args:
        evidence: ``(H, W)``, positive for the foreground.
        pairs: for each of ``_OFFSETS`` the weights of its pairs, as from :func:`_contrast`.

    Returns:
        ``(H, W)`` bool.
    """
    height, width = evidence.shape
    pixels = evidence.size
    index = np.arange(pixels, dtype=np.int32).reshape(height, width)
    # The flow is a sum in int32: on an image of many megapixels the unit is coarser.
    flow = min(np.maximum(evidence, 0).sum(), np.maximum(-evidence, 0).sum())
    scale = min(_RESOLUTION, 0.5 * _INT32 / max(flow, 1.0))
    # Away from 0, so that evidence however weak still decides where nothing else does.
    terminal = (np.sign(evidence) * _units(np.ceil(np.abs(evidence) * scale))).reshape(-1).astype(np.int32)
    source, sink = pixels, pixels + 1
    inside, outside = np.flatnonzero(terminal > 0).astype(np.int32), np.flatnonzero(terminal < 0).astype(np.int32)
    rows, columns = [np.full_like(inside, source), outside], [inside, np.full_like(outside, sink)]
    capacities = [terminal[inside], -terminal[outside]]
    for offset, weights in zip(_OFFSETS, pairs, strict=True):
        first, second = (part.reshape(-1) for part in _pair(index, offset))
        capacity = _units(np.rint(weights * scale)).reshape(-1)
        rows += [first, second]
        columns += [second, first]
        capacities += [capacity, capacity]
    graph = sparse.csr_array(
        (np.concatenate(capacities), (np.concatenate(rows), np.concatenate(columns))), shape=(pixels + 2, pixels + 2)
    )
    residual = graph - csgraph.maximum_flow(graph, source, sink).flow
    residual.eliminate_zeros()
    reached = csgraph.breadth_first_order(residual, source, return_predecessors=False)
    mask = np.zeros(pixels + 2, dtype=bool)
    mask[reached] = True
    return mask[:pixels].reshape(height, width)


def _units(capacities: np.ndarray) -> np.ndarray:
    """As int32, no larger than any flow can be."""
    return np.minimum(capacities, _INT32 // 2).astype(np.int32)


def _contrast(image: np.ndarray) -> list[np.ndarray]:
    """For each of ``_OFFSETS`` the weights of its pairs, in (0, 1]: small across an edge of the image."""
    values = image.astype(np.float32)
    differences = []
    for offset in _OFFSETS:
        first, second = _pair(values, offset)
        differences.append(((first - second) ** 2).sum(axis=-1))
    pairs = sum(difference.size for difference in differences)
    mean = sum(float(difference.sum(dtype=np.float64)) for difference in differences) / max(pairs, 1)
    return [
        np.exp(-difference / (2 * mean or 1.0)) / np.hypot(*offset)
        for offset, difference in zip(_OFFSETS, differences, strict=True)
    ]


def _bins(image: np.ndarray) -> np.ndarray:
    """``(H, W)``: the cell of each pixel's colour in the histogram."""
    red, green, blue = np.moveaxis(image.astype(np.intp) * _BINS // 256, -1, 0)
    return (red * _BINS + green) * _BINS + blue


def _pair(array: np.ndarray, offset: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The pixels that have a neighbour at ``offset``, and those neighbours."""
    down, right = offset
    height, width = array.shape[:2]
    left = max(-right, 0)
    stop = width - max(right, 0)
    return array[: height - down, left:stop], array[down:, left + right : stop + right]


def _background(background: float | np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    values = np.asarray(background, dtype=np.float32)
    if values.shape not in ((), shape) or not (values.min() >= 0 and values.max() <= 1):
        raise ValueError(f"expected a background in [0, 1], a number or {shape}, got {background!r}")
    return np.broadcast_to(values, shape)


def _check(image: np.ndarray, scores: np.ndarray, *, smoothness: float, colour: float) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"expected an image (H, W, 3) of uint8, got {image.shape} of {image.dtype}")
    if scores.shape[1:] != image.shape[:2]:
        raise ValueError(f"expected scores of the image's size {image.shape[:2]}, got {scores.shape[1:]}")
    if not (smoothness >= 0 and np.isfinite(smoothness) and colour >= 0 and np.isfinite(colour)):
        raise ValueError(f"expected smoothness and colour of 0 or more, got {smoothness} and {colour}")
    check_scores(scores)
