"""Two methods on the same images: who is better, and by how much more than chance among images would give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

INTERVAL = (2.5, 97.5)
CELLS = 2_000_000
"""Resampled values that are held at once."""


@dataclass(frozen=True)
class PairedDifference:
    """Second minus first, over the images that both have a number for.

    Attributes:
        mean: of the differences.
        low: 2.5th percentile of the mean over resampled images.
        high: 97.5th percentile.
        better: images on which the second is better.
        worse: images on which the first is better.
        equal: images on which they are alike.
    """

    mean: float
    low: float
    high: float
    better: int
    worse: int
    equal: int

    @property
    def images(self) -> int:
        """How many images there are."""
        return self.better + self.worse + self.equal


def paired_difference(
    first: Mapping[str, float | None],
    second: Mapping[str, float | None],
    *,
    resamples: int = 2000,
    seed: int = 0,
    tolerance: float = 1e-9,
) -> PairedDifference | None:
    """Compare numbers of the same images, for example the mIoU of each.

    The interval is the percentile bootstrap over images (Efron, 1979): images are drawn with replacement, each with
    both its numbers, and the mean difference is taken anew. It tells how far the choice of images decides. How far
    another seed of the training would move the numbers is not in it.

    Args:
        first: number of each image; None where it has none.
        second: the same of the other method.
        resamples: how often images are drawn.
        seed: of the draws.
        tolerance: differences up to this count as equal.

    Returns:
        The comparison; None where no image has both numbers.
    """
    differences = np.array([b - a for _, a, b in shared(first, second)], dtype=np.float64)
    if not differences.size:
        return None
    generator = np.random.default_rng(seed)
    count, means = len(differences), list[np.ndarray]()
    step = max(1, CELLS // count)
    for start in range(0, resamples, step):
        drawn = generator.integers(count, size=(min(step, resamples - start), count))
        means.append(differences[drawn].mean(axis=1))
    low, high = np.percentile(np.concatenate(means), INTERVAL)
    better, worse = int((differences > tolerance).sum()), int((differences < -tolerance).sum())
    return PairedDifference(float(differences.mean()), float(low), float(high), better, worse, count - better - worse)


def shared(first: Mapping[str, float | None], second: Mapping[str, float | None]) -> list[tuple[str, float, float]]:
    """Id and both numbers of each image that has both, in the order of the ids."""
    pairs = ((id, first[id], second.get(id)) for id in sorted(first))
    return [(id, a, b) for id, a, b in pairs if a is not None and b is not None]


__all__ = ["PairedDifference", "paired_difference", "shared"]
