"""Semantic random walk on learned affinities (IRN; Ahn, Cho and Kwak, CVPR 2019), without its instance branch.

A network gives each cell of a coarse grid the probability that a class boundary runs through it. Two near cells belong
together as far as no boundary lies on the line between them; a walk along these affinities spreads the scores inside
of what the boundaries enclose.

The matrix is kept by its diagonals: a shift on the grid is a diagonal, of which there are 69 at radius 5 however large
the grid is, and no column indices are stored or followed. It is built for one image and takes
``8 * len(half_plane(radius)) + 4`` bytes a cell (276 at radius 5, 1220 at radius 10).
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from wsss.metrics.threshold import check_scores

Shift = tuple[int, int]


def half_plane(radius: int) -> list[Shift]:
    """The shifts ``(dy, dx)`` to all cells nearer than ``radius``, one of each two opposite ones, without ``(0, 0)``.

    Args:
        radius: in cells, 2 or more for any shift to be nearer. IRN trains with 10 and walks with 5.

    Returns:
        Shifts with ``dy > 0``, or ``dy = 0`` and ``dx > 0``, in the order of rows.

    Raises:
        ValueError: the radius is less than 2.
    """
    if radius < 2:
        raise ValueError(f"expected a radius of 2 or more cells, since a pair is nearer than that; got {radius}")
    near = [(dy, dx) for dy in range(radius) for dx in range(1 - radius, radius) if dy**2 + dx**2 < radius**2]
    return [shift for shift in near if shift > (0, 0)]


def path(dy: int, dx: int) -> list[Shift]:
    """The cells on the line from the origin to ``(dy, dx)``, both ends included.

    A cell counts whose centre is nearer than 1 to the line: as in the authors' program, the line is thick enough that
    a diagonal step does not slip between two cells of a boundary that touch at a corner.
    """
    rows, columns = range(min(0, dy), max(0, dy) + 1), range(min(0, dx), max(0, dx) + 1)
    return [(y, x) for y in rows for x in columns if (dy * x - dx * y) ** 2 < dy**2 + dx**2]


def window(y: int, x: int, shift: Shift, size: tuple[int, int]) -> tuple[slice, slice]:
    """Where the cells ``(y, x)`` away from the first of a pair lie, for all pairs ``shift`` apart on a grid.

    ``window(0, 0, shift, size)`` are the first cells of the pairs, ``window(*shift, shift, size)`` the second ones, in
    the same order. Empty where the grid is smaller than the shift.

    Args:
        y: rows down from the first cell.
        x: columns right from the first cell.
        shift: ``(dy, dx)`` of the pair, ``dy >= 0``.
        size: ``(h, w)`` of the grid.
    """
    dy, dx = shift
    height, width = size[0] - dy, size[1] - abs(dx)
    if height <= 0 or width <= 0:
        return slice(0, 0), slice(0, 0)
    left = max(0, -dx)
    return slice(y, y + height), slice(left + x, left + x + width)


def affinities(boundaries: np.ndarray, *, radius: int = 5, beta: float = 10.0) -> sparse.dia_array:
    """Transition matrix T of the walk (IRN, random walk on semantic affinities).

    The affinity of two cells nearer than ``radius`` is 1 minus the largest boundary probability on the line between
    them (see :func:`path`), that of a cell with itself 1, all others 0. T is the affinity to the power of ``beta``,
    divided by the sums of its rows.

    Args:
        boundaries: ``(h, w)`` probability of a boundary in each cell, in [0, 1].
        radius: in cells.
        beta: above 0; the larger, the less a faint boundary lets through.

    Returns:
        ``(h * w, h * w)`` float32, each row sums to 1. ``.tocsr()`` gives another format.

    Raises:
        ValueError: boundaries that are no such map, a radius below 2, or a beta that is not positive.
    """
    _check_boundaries(boundaries)
    if not beta > 0:
        raise ValueError(f"expected a positive beta, got {beta}")
    size = boundaries.shape
    passable = 1 - boundaries.astype(np.float32)
    sums = np.ones(size, dtype=np.float32)
    pairs = []
    for shift in half_plane(radius):
        first, second = window(0, 0, shift, size), window(*shift, shift, size)
        affinity = passable[first].copy()
        if not affinity.size:
            continue
        for y, x in path(*shift):
            np.minimum(affinity, passable[window(y, x, shift, size)], out=affinity)
        affinity **= np.float32(beta)
        sums[first] += affinity
        sums[second] += affinity
        pairs.append((shift, first, second, affinity))
    return _transitions(pairs, sums)


def _transitions(pairs: list, sums: np.ndarray) -> sparse.dia_array:
    """The rows of the symmetric matrix of ``pairs`` and ones on the diagonal, divided by ``sums``."""
    height, width = sums.shape
    # on a grid narrower than the radius, two shifts may be one diagonal; their pairs differ all the same
    steps = sorted({dy * width + dx for (dy, dx), *_ in pairs})
    offsets = [-step for step in reversed(steps)] + [0] + steps
    row = {offset: i for i, offset in enumerate(offsets)}
    diagonals = np.zeros((len(offsets), height, width), dtype=np.float32)
    diagonals[row[0]] = 1 / sums
    while pairs:  # each affinity is freed once it is copied
        (dy, dx), first, second, affinity = pairs.pop()
        step = dy * width + dx
        # an element stands at its column: that is the second cell where the first is the row, and the other way round
        np.divide(affinity, sums[first], out=diagonals[row[step]][second])
        np.divide(affinity, sums[second], out=diagonals[row[-step]][first])
    return sparse.dia_array((diagonals.reshape(len(offsets), -1), offsets), shape=(sums.size, sums.size))


def propagate(
    scores: np.ndarray, boundaries: np.ndarray, *, radius: int = 5, beta: float = 10.0, steps: int = 256
) -> np.ndarray:
    """Scores after the walk, as they are: T applied ``steps`` times to scores * (1 - boundaries) (IRN).

    Each step replaces a score by a weighted mean of scores near it: no value leaves the range of the start.

    Args:
        scores: ``(K, h, w)`` finite, in [0, 1].
        boundaries: ``(h, w)`` in [0, 1].
        radius: see :func:`affinities`.
        beta: see :func:`affinities`.
        steps: 0 or more; 2^8 in IRN. The time a walk takes is proportional to it.

    Returns:
        ``(K, h, w)`` float32 in [0, 1].

    Raises:
        ValueError: shapes, values or settings break this contract.
    """
    _check_boundaries(boundaries)
    if scores.ndim != 3 or scores.shape[1:] != boundaries.shape:
        raise ValueError(f"expected scores (K, {', '.join(map(str, boundaries.shape))}), got {scores.shape}")
    if steps < 0:
        raise ValueError(f"expected 0 or more steps, got {steps}")
    check_scores(scores)
    transitions = affinities(boundaries, radius=radius, beta=beta)
    start = (scores * (1 - boundaries)).astype(np.float32)
    walked = np.empty_like(start)
    for k, score in enumerate(start):  # a column at a time: scipy has no product of diagonals with several
        position = score.reshape(-1)
        for _ in range(steps):
            position = transitions @ position
        walked[k] = position.reshape(score.shape)
    return walked


def random_walk(
    scores: np.ndarray, boundaries: np.ndarray, *, radius: int = 5, beta: float = 10.0, steps: int = 256
) -> np.ndarray:
    """:func:`propagate`, divided by the largest value of all classes of the image, as IRN does.

    The classes of an image stay comparable, unlike with a maximum of their own. Silent scores stay zero.

    Args:
        scores: ``(K, h, w)`` finite, in [0, 1].
        boundaries: ``(h, w)`` in [0, 1].
        radius: see :func:`affinities`.
        beta: see :func:`affinities`.
        steps: see :func:`propagate`.

    Returns:
        ``(K, h, w)`` float32 in [0, 1].

    Raises:
        ValueError: see :func:`propagate`.
    """
    return _relative(propagate(scores, boundaries, radius=radius, beta=beta, steps=steps))


def walk(
    scores: np.ndarray, boundaries: np.ndarray, *, radius: int = 5, beta: float = 10.0, steps: int = 256
) -> np.ndarray:
    """The random walk for scores at the size of the image: to the grid, along it and back.

    Args:
        scores: ``(K, H, W)`` finite, in [0, 1].
        boundaries: ``(h, w)`` in [0, 1], of the same image at any size.
        radius: in cells of the grid, see :func:`affinities`.
        beta: see :func:`affinities`.
        steps: see :func:`propagate`.

    Returns:
        ``(K, H, W)`` float32 in [0, 1]; the largest value of all classes at this size is 1 unless all are silent.

    Raises:
        ValueError: see :func:`propagate`.
    """
    if scores.ndim != 3:
        raise ValueError(f"expected scores (K, H, W), got {scores.shape}")
    _check_boundaries(boundaries)
    check_scores(scores)
    grid = np.clip(resize(scores, boundaries.shape), 0, 1)
    walked = propagate(grid, boundaries, radius=radius, beta=beta, steps=steps)
    return _relative(resize(walked, scores.shape[1:]))


def resize(maps: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Bring ``(K, h, w)`` maps to ``(K, *size)``: bilinear, corners not aligned, smoothed first where they shrink.

    The same as torch's antialiased bilinear interpolation, which is the plain one where maps grow.
    """
    rows, columns = _interpolation(maps.shape[1], size[0]), _interpolation(maps.shape[2], size[1])
    return rows @ maps.astype(np.float32, copy=False) @ columns.T


def _interpolation(old: int, new: int) -> np.ndarray:
    """``(new, old)`` float32: the weights of the old positions for each of the new; rows sum to 1."""
    scale = old / new
    distance = np.abs((np.arange(new)[:, None] + 0.5) * scale - (np.arange(old) + 0.5))
    weights = np.maximum(1 - distance / max(scale, 1), 0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _relative(scores: np.ndarray) -> np.ndarray:
    """Scores divided by the largest of them all; zeros stay zeros."""
    largest = scores.max(initial=0)
    return scores / largest if largest > 0 else scores


def _check_boundaries(boundaries: np.ndarray) -> None:
    if boundaries.ndim != 2 or not boundaries.size:
        raise ValueError(f"expected boundaries (h, w) of one cell or more, got {boundaries.shape}")
    low, high = boundaries.min(), boundaries.max()
    if not (low >= 0 and high <= 1):  # a NaN makes both comparisons false
        raise ValueError(f"boundaries must be finite and in [0, 1], got values from {low} to {high}")
