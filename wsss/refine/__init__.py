"""From seeds to pseudo-labels: smoothing of scores, labelling, and a process pool to do it for many images."""

from __future__ import annotations

from wsss.refine.crf import DEEPLAB, IRN, PSA
from wsss.refine.methods import DenseCrf, Labelling, Refiner, Smoothing, Superpixels, Threshold
from wsss.refine.pool import ItemError, map_images

__all__ = [
    "DEEPLAB",
    "IRN",
    "PSA",
    "DenseCrf",
    "ItemError",
    "Labelling",
    "Refiner",
    "Smoothing",
    "Superpixels",
    "Threshold",
    "map_images",
]
