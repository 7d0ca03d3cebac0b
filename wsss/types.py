"""The vocabulary shared by every module: label values and the one sample type."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BACKGROUND = 0
"""Label of every pixel that belongs to no class. Classes are 1..C."""

IGNORE = 255
"""Label of a pixel that neither losses nor metrics count."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of a data set with what is known about it.

    Attributes:
        id: the name shared by the image, its mask and everything derived from them.
        image: ``(H, W, 3)`` uint8, RGB.
        class_ids: the image-level tags as sorted class ids in 1..C; empty for an image of background alone.
        mask: ``(H, W)`` uint8 with 0 background, 1..C classes, 255 ignored; None where the caller did not ask for it.
    """

    id: str
    image: np.ndarray
    class_ids: tuple[int, ...]
    mask: np.ndarray | None = None
