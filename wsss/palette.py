"""The colours of indexed masks."""

from __future__ import annotations

from functools import lru_cache

import numpy as np


@lru_cache(maxsize=1)
def voc_palette() -> np.ndarray:
    """The PASCAL VOC colour map: the bits of a label, dealt out to red, green and blue from the highest bit down.

    Returns:
        ``(256, 3)`` uint8, read-only. Index 0 is black, 1 dark red, 255 a pale cream.

    >>> voc_palette()[[0, 1, 2, 255]].tolist()
    [[0, 0, 0], [128, 0, 0], [0, 128, 0], [224, 224, 192]]
    """
    labels = np.arange(256)
    palette = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= (((labels >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    palette.setflags(write=False)
    return palette
