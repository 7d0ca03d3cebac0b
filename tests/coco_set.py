"""COCO 2014 in miniature, in its real layout on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 40, 64
CATEGORIES = {3: "car", 1: "person", 90: "café"}
"""Ids with gaps and not in order, as COCO has gaps: the classes are person, car, café."""

Annotation = tuple[int, int, Any, int]  # image, category, segmentation, iscrowd


def box(x: int, y: int, width: int, height: int) -> list[list[float]]:
    """A rectangle as COCO writes polygons."""
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """A mask as COCO writes crowds: lengths of runs of 0 and 1 in turn, down the columns."""
    pixels = mask.T.ravel().astype(int)
    ends = np.flatnonzero(np.diff(pixels)) + 1
    counts = np.diff([0, *ends, len(pixels)]).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if pixels[0] else counts}


def crowd_of(x: int, y: int, width: int, height: int) -> dict[str, Any]:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[y : y + height, x : x + width] = 1
    return run_lengths(mask)


def content(split: str, images: Sequence[int], annotations: Sequence[Annotation]) -> dict[str, Any]:
    return {
        "info": {"description": "a miniature", "year": 2014},
        "images": [
            {"id": id, "file_name": f"COCO_{split}_{id:012d}.jpg", "width": WIDTH, "height": HEIGHT} for id in images
        ],
        "licenses": [{"id": 1, "name": "none"}],
        "annotations": [
            {"id": 100 + n, "image_id": image, "category_id": category, "segmentation": shape, "iscrowd": crowd}
            for n, (image, category, shape, crowd) in enumerate(annotations)
        ],
        "categories": [{"supercategory": "thing", "id": id, "name": name} for id, name in CATEGORIES.items()],
    }


def write_json(root: Path, split: str, values: Mapping[str, Any]) -> Path:
    path = root / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))
    return path


def write_set(root: Path) -> Path:
    """Two and eight images: coloured boxes for persons and cars, some crowds, an image without annotations."""
    colours = {1: (200, 40, 40), 3: (40, 180, 60), 90: (50, 70, 210)}
    tables: dict[str, tuple[Sequence[int], list[Annotation]]] = {
        "train2014": (
            (9, 5, 7, 11, 13, 15, 17, 19),
            [
                (5, 3, box(30, 4, 20, 20), 0),
                (9, 1, box(2, 3, 20, 30), 0),
                (9, 3, box(6, 8, 4, 5), 0),  # a small car in a large person
                (11, 1, box(10, 10, 16, 16), 0),
                (5, 90, crowd_of(0, 0, 10, 10), 1),
                (13, 3, box(4, 4, 30, 12), 0),
                (15, 1, box(30, 10, 20, 25), 0),
                (15, 3, box(2, 10, 22, 20), 0),
                (17, 90, box(20, 5, 18, 18), 0),
                (19, 90, box(2, 5, 25, 25), 0),
            ],
        ),
        "val2014": ((4, 2), [(2, 1, box(8, 8, 20, 20), 0), (4, 3, box(30, 6, 24, 14), 0), (4, 90, box(2, 2, 9, 9), 0)]),
    }
    for split, (ids, drawn) in tables.items():
        write_json(root, split, content(split, ids, drawn))
        (root / split).mkdir()
        for id in ids:
            pixels = np.random.default_rng(id).integers(90, 150, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            for image, category, shape, crowd in drawn:
                if image == id and not crowd:
                    (x0, y0, x1, _, _, y1, _, _) = shape[0]
                    pixels[y0:y1, x0:x1] = colours[category]
            Image.fromarray(pixels).save(root / split / f"COCO_{split}_{id:012d}.jpg", quality=95)
    return root
