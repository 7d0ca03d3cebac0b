"""Pictures of images and masks for the pages: overlays at one width, legends, and tiles for the templates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wsss import viz
from wsss.palette import voc_palette
from wsss.types import BACKGROUND, IGNORE

PICTURE_STEPS = ((320, 80), (320, 60), (240, 60), (160, 50), (96, 40))
"""Width and quality of the pictures of a page, from the one wanted to the last resort."""

SIZE_LIMIT = 6_000_000
"""Bytes that a page should not exceed; pictures are made smaller until it does not."""

HEAT = [viz.css_color(index, palette=viz.heat_colors(np.linspace(0, 1, 9))) for index in range(9)]
"""CSS colours of scores from 0 to 1."""


def fitting(render: Callable[[int, int], str]) -> str:
    """A page whose pictures shrink step by step until it keeps to ``SIZE_LIMIT``.

    Args:
        render: the page with pictures of a width and a quality.
    """
    page = ""
    for width, quality in PICTURE_STEPS:
        page = render(width, quality)
        if len(page.encode("utf-8")) <= SIZE_LIMIT:
            break
    return page


@dataclass(frozen=True)
class Classes:
    """Names and colours of the classes.

    Attributes:
        names: of classes 1..C, background left out.
        palette: ``(256, 3)`` uint8 colours of the labels.
    """

    names: Sequence[str]
    palette: np.ndarray = field(default_factory=voc_palette)

    def name(self, index: int) -> str:
        """Name of class ``index``."""
        return self.names[index - 1] if 1 <= index <= len(self.names) else f"class {index}"

    def color(self, index: int) -> str:
        """CSS colour of class ``index``."""
        return viz.css_color(index, palette=self.palette)

    def tag(self, name: str) -> tuple[str, str | None]:
        """A tag with its colour; one that is no class has none."""
        names = list(self.names)
        return name, self.color(names.index(name) + 1) if name in names else None

    def legend(self, masks: Iterable[np.ndarray]) -> list[tuple[str, str]]:
        """Name and colour of each class in the masks."""
        shown = {int(label) for mask in masks for label in np.unique(mask)}
        return [(self.name(index), self.color(index)) for index in sorted(shown - {BACKGROUND, IGNORE})]

    def overlay(self, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """A mask of any resolution over ``(H, W, 3)`` uint8 ``image``."""
        return viz.overlay_labels(image, fit(mask, image, nearest=True), palette=self.palette)


def overlay_strongest(image: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The highest of the ``(K, h, w)`` scores of each place over ``(H, W, 3)`` uint8 ``image``; 0 where K is 0."""
    strongest = scores.max(axis=0, initial=0) if len(scores) else np.zeros(image.shape[:2], np.float32)
    return viz.overlay_scores(image, fit(strongest, image))


def shrink(image: np.ndarray, width: int) -> np.ndarray:
    """An image that fits into a square of ``width`` pixels."""
    rows, columns = image.shape[:2]
    return viz.resize_to(image, max(1, min(columns, width, round(width * columns / rows))))


def fit(plane: np.ndarray, image: np.ndarray, *, nearest: bool = False) -> np.ndarray:
    """A map or mask of any resolution at the resolution of ``image``."""
    return viz.resize_to(plane, image.shape[1], height=image.shape[0], nearest=nearest)


def has_ignored(masks: Iterable[np.ndarray]) -> bool:
    """Whether a mask has pixels that count for nothing."""
    return any(bool(np.any(mask == IGNORE)) for mask in masks)


def tile(title: str, image: np.ndarray | None, quality: int) -> dict[str, Any]:
    """A picture for the template; one that is missing keeps its place."""
    if image is None:
        return {"title": title, "uri": "", "width": 0, "height": 0}
    height, width = image.shape[:2]
    return {"title": title, "uri": viz.data_uri(image, quality=quality), "width": width, "height": height}
