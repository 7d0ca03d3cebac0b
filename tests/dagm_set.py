"""DAGM 2007 in miniature, in its real layout on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIDE = 32
Ellipse = tuple[int, int, int, int]  # left, top, right, bottom

SPLITS: Mapping[str, Mapping[int, Sequence[Ellipse | None]]] = {
    "Train": {
        1: (None, (4, 6, 20, 16), None, (10, 12, 28, 24)),
        3: ((2, 2, 18, 18), None, (8, 14, 30, 28)),
        10: (None,),
    },
    "Test": {1: ((6, 4, 24, 20), None), 3: (None, (12, 2, 28, 20)), 10: ((4, 4, 20, 20),)},
}
"""Split -> texture -> the defect of each image, or None. Numbers begin at 576 in Train, as in the published set."""


def labels(folder: Path) -> Path:
    return folder / "Label" / "Labels.txt"


def write_set(root: Path) -> Path:
    """Three textures in the published layout."""
    for split, textures in SPLITS.items():
        for texture, defects in textures.items():
            folder = root / f"Class{texture}" / split
            (folder / "Label").mkdir(parents=True)
            lines = ["1"]
            for number, defect in enumerate(defects, start=576 if split == "Train" else 1):
                noise = np.random.default_rng([texture, number]).integers(90, 150, (SIDE, SIDE), dtype=np.uint8)
                picture = Image.fromarray(noise)
                if defect:
                    ImageDraw.Draw(picture).ellipse(defect, fill=230)
                    region = Image.new("L", (SIDE, SIDE))
                    ImageDraw.Draw(region).ellipse(defect, fill=255)
                    region.save(folder / "Label" / f"{number:04d}_label.PNG", format="PNG")
                picture.save(folder / f"{number:04d}.PNG", format="PNG")
                mask = f"{number:04d}_label.PNG" if defect else "0"
                lines.append(f"{number}\t{int(bool(defect))}\t{number:04d}.PNG\t0\t{mask}")
            labels(folder).write_bytes("".join(f"{line}\r\n" for line in lines).encode())
    return root
