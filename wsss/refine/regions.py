"""Superpixels merged into larger regions of one colour."""

from __future__ import annotations

import heapq
import math

import numpy as np
from skimage import color


def merge_regions(image: np.ndarray, segments: np.ndarray, *, threshold: float) -> np.ndarray:
    """Greedy merging of adjacent segments by mean colour.

    Again and again the two adjacent regions (a pixel of one beside or above a pixel of the other) whose mean colours
    are closest become one, with the mean over the pixels of both, until no two are closer than the threshold. Of equal
    pairs the one with the smallest ids goes first; a region has the smallest id of its segments meanwhile.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        segments: ``(H, W)`` integer ids 0..S-1, each of which occurs.
        threshold: of the Euclidean distance in CIELAB (the CIE 1976 colour difference: about 2 is just visible, black
            to white is 100), 0 or more. At 0 nothing is merged.

    Returns:
        ``(H, W)`` int64, regions with contiguous ids 0..R-1, in the order of their smallest segment.

    Raises:
        ValueError: shapes, types or the threshold are others, or an id does not occur.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"expected an image (H, W, 3) of uint8, got {image.shape} of {image.dtype}")
    if segments.shape != image.shape[:2] or not np.issubdtype(segments.dtype, np.integer):
        raise ValueError(f"expected integer segments {image.shape[:2]}, got {segments.shape} of {segments.dtype}")
    if not (threshold >= 0 and math.isfinite(threshold)):
        raise ValueError(f"expected a threshold of 0 or more, got {threshold}")
    flat = segments.reshape(-1).astype(np.int64)
    if flat.min() < 0 or not (sizes := np.bincount(flat)).all():
        raise ValueError(f"expected segment ids 0..S-1 that all occur, got {np.unique(flat).size} from {flat.min()} on")
    lab = color.rgb2lab(image).reshape(-1, 3)
    sums = np.stack([np.bincount(flat, weights=channel) for channel in lab.T], axis=1)
    roots = _merge(sums, sizes, _adjacent(segments), threshold)
    return np.unique(roots, return_inverse=True)[1].reshape(-1)[segments]


def _adjacent(segments: np.ndarray) -> np.ndarray:
    """``(E, 2)``: each pair of segments with a common side once, the smaller id first, sorted."""
    segments = segments.astype(np.int64)
    first = np.concatenate([segments[:, :-1].reshape(-1), segments[:-1].reshape(-1)])
    second = np.concatenate([segments[:, 1:].reshape(-1), segments[1:].reshape(-1)])
    differ = first != second
    low, high = np.minimum(first, second)[differ], np.maximum(first, second)[differ]
    count = int(segments.max()) + 1
    return np.stack(np.divmod(np.unique(low * count + high), count), axis=1)


def _merge(sums: np.ndarray, sizes: np.ndarray, pairs: np.ndarray, threshold: float) -> np.ndarray:
    """The smallest segment of the region that each segment ends up in, ``(S,)``."""
    colours = [tuple(colour) for colour in (sums / sizes[:, None]).tolist()]  # scalars: numpy is slow on three numbers
    weights: list[int] = sizes.tolist()
    neighbours: list[set[int]] = [set() for _ in weights]
    for a, b in pairs.tolist():
        neighbours[a].add(b)
        neighbours[b].add(a)
    distances = np.linalg.norm(np.diff((sums / sizes[:, None])[pairs], axis=1)[:, 0], axis=-1).tolist()
    # A merge makes the entries of its regions stale instead of searching for them: an entry holds the sizes of its
    # regions, which only grow, and a region that is gone has size 0.
    heap = [
        (distance, a, b, weights[a], weights[b])
        for distance, (a, b) in zip(distances, pairs.tolist(), strict=True)
        if distance < threshold
    ]
    heapq.heapify(heap)
    roots = np.arange(len(weights))
    while heap:
        _, a, b, weight_a, weight_b = heapq.heappop(heap)
        if weights[a] != weight_a or weights[b] != weight_b:
            continue
        weights[a], weights[b] = weight_a + weight_b, 0
        colours[a] = tuple(
            (x * weight_a + y * weight_b) / weights[a] for x, y in zip(colours[a], colours[b], strict=True)
        )
        roots[b] = a
        for other in neighbours[b]:
            neighbours[other].discard(b)
            neighbours[other].add(a)
        neighbours[a] = (neighbours[a] | neighbours[b]) - {a, b}
        for other in neighbours[a]:
            distance = math.dist(colours[a], colours[other])
            if distance < threshold:
                low, high = min(a, other), max(a, other)
                heapq.heappush(heap, (distance, low, high, weights[low], weights[high]))
    for segment in range(len(roots)):  # a root is smaller than its segment, so it is settled already
        roots[segment] = roots[roots[segment]]
    return roots
