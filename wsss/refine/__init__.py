"""From seeds to pseudo-labels: smoothing of scores, labelling, and a process pool to do it for many images."""

from __future__ import annotations

from wsss.refine.background import AutoBackground, Background, ConstantBackground, PercentileBackground, PowerBackground
from wsss.refine.crf import DEEPLAB, IRN, PSA
from wsss.refine.methods import ConfidentCrf, Crf, DenseCrf, GraphCut, Pamr, RandomWalk, Superpixels, Threshold
from wsss.refine.pool import ItemError, map_images
from wsss.refine.refiner import Extras, Labelling, Refiner, Smoothing

__all__ = [
    "DEEPLAB",
    "IRN",
    "PSA",
    "AutoBackground",
    "Background",
    "ConfidentCrf",
    "ConstantBackground",
    "Crf",
    "DenseCrf",
    "Extras",
    "GraphCut",
    "ItemError",
    "Labelling",
    "Pamr",
    "PercentileBackground",
    "PowerBackground",
    "RandomWalk",
    "Refiner",
    "Smoothing",
    "Superpixels",
    "Threshold",
    "map_images",
]
