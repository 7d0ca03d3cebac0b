"""Pictures of masks and scores: arrays in, arrays out. Nothing here opens a file or needs torch."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageFont

from wsss.palette import voc_palette
from wsss.types import BACKGROUND, IGNORE

ImageFormat = Literal["webp", "jpeg", "png"]

WHITE = (255, 255, 255)
HATCH_PERIOD = 6
"""Distance in pixels between two stripes of the hatching that marks ignored pixels."""


def overlay_labels(
    image: np.ndarray,
    labels: np.ndarray,
    *,
    palette: np.ndarray | None = None,
    alpha: float = 0.6,
    contour: bool = True,
) -> np.ndarray:
    """Tint an image with its label mask.

    Background keeps the pixels of the image, classes are tinted and outlined by one white pixel on their inner side,
    ignored pixels are hatched in white.

    Args:
        image: ``(H, W, 3)`` uint8, RGB.
        labels: ``(H, W)`` uint8 with 0 background, 1..C classes, 255 ignored.
        palette: ``(256, 3)`` uint8; the PASCAL VOC colours by default.
        alpha: opacity of the tint in [0, 1].
        contour: outline the classes.

    Returns:
        ``(H, W, 3)`` uint8.
    """
    _check_pair(image, labels, "labels")
    colors = voc_palette() if palette is None else palette
    is_class = (labels != BACKGROUND) & (labels != IGNORE)
    painted = _blend(image, colors[labels], is_class * alpha)
    painted = _blend(painted, WHITE, _hatch(labels == IGNORE))
    return _blend(painted, WHITE, (is_class & _boundary(labels)) * 0.9) if contour else painted


def overlay_scores(
    image: np.ndarray, scores: np.ndarray, *, colormap: str = "inferno", alpha: float = 0.9
) -> np.ndarray:
    """Lay a heat map over an image; the higher the score, the more opaque. A score of 0 leaves its pixel untouched.

    Args:
        image: ``(H, W, 3)`` uint8, RGB.
        scores: ``(H, W)`` in [0, 1].
        colormap: name of a matplotlib colour map, preferably a perceptually uniform one.
        alpha: opacity at score 1.

    Returns:
        ``(H, W, 3)`` uint8.
    """
    _check_pair(image, scores, "scores")
    _check_scores(scores)
    return _blend(image, heat_colors(scores, colormap=colormap), alpha * np.sqrt(scores))


def overlay_class_scores(
    image: np.ndarray,
    scores: np.ndarray,
    class_ids: Sequence[int],
    *,
    palette: np.ndarray | None = None,
    alpha: float = 0.85,
) -> np.ndarray:
    """Show the scores of several classes in one picture: each pixel in the colour of its strongest class.

    Args:
        image: ``(H, W, 3)`` uint8, RGB.
        scores: ``(K, H, W)`` in [0, 1], one map per entry of ``class_ids``. K may be 0.
        class_ids: class id of each map, in 1..C.
        palette: ``(256, 3)`` uint8; the PASCAL VOC colours by default.
        alpha: opacity at score 1.

    Returns:
        ``(H, W, 3)`` uint8.
    """
    if scores.ndim != 3 or len(scores) != len(class_ids):
        raise ValueError(f"expected one (H, W) map for each of {len(class_ids)} classes, got scores {scores.shape}")
    if not len(class_ids):
        return image.copy()
    _check_pair(image, scores[0], "scores")
    _check_scores(scores)
    colors = voc_palette() if palette is None else palette
    strongest = np.asarray(class_ids)[scores.argmax(axis=0)]
    return _blend(image, colors[strongest], alpha * scores.max(axis=0))


def heat_colors(scores: np.ndarray, *, colormap: str = "inferno") -> np.ndarray:
    """Look scores in [0, 1] up in a matplotlib colour map: ``(...)`` to ``(..., 3)`` uint8.

    >>> heat_colors(np.array([0.0, 1.0]), colormap="gray").tolist()
    [[0, 0, 0], [255, 255, 255]]
    """
    return _color_table(colormap)[np.rint(scores * 255).astype(np.uint8)]


def css_color(class_id: int, *, palette: np.ndarray | None = None) -> str:
    """The colour of a label as CSS hexadecimal.

    >>> css_color(1)
    '#800000'
    """
    colors = voc_palette() if palette is None else palette
    red, green, blue = (int(value) for value in colors[class_id])
    return f"#{red:02x}{green:02x}{blue:02x}"


def resize_to(array: np.ndarray, width: int, *, height: int | None = None, nearest: bool = False) -> np.ndarray:
    """Resize an image or a map to a width, and to a height that keeps the aspect ratio unless one is given.

    Args:
        array: ``(H, W, 3)`` uint8, or ``(H, W)`` uint8 or floating point.
        width: of the result, in pixels.
        height: of the result, in pixels.
        nearest: take the nearest pixel, as label masks need; otherwise interpolate.

    Returns:
        The same dtype as ``array``, except that floating point comes back as float32.

    >>> resize_to(np.zeros((20, 40, 3), np.uint8), 10).shape
    (5, 10, 3)
    """
    rows, columns = array.shape[:2]
    height = max(1, round(rows * width / columns)) if height is None else height
    source = array.astype(np.float32) if np.issubdtype(array.dtype, np.floating) else array
    if (height, width) == (rows, columns):
        return source.copy()
    smooth = Image.Resampling.BILINEAR if source.dtype == np.float32 else Image.Resampling.LANCZOS
    method = Image.Resampling.NEAREST if nearest else smooth
    return np.asarray(Image.fromarray(source).resize((width, height), method))


@dataclass(frozen=True, slots=True)
class Tile:
    """One picture of a panel.

    Attributes:
        title: one line above the picture; too long a title is cut.
        image: ``(H, W, 3)`` uint8, RGB.
    """

    title: str
    image: np.ndarray


def panel(
    tiles: Sequence[Tile],
    *,
    columns: int | None = None,
    tile_width: int = 320,
    title: str = "",
    gap: int = 10,
) -> np.ndarray:
    """Set pictures side by side on white, each under its title.

    Args:
        tiles: at least one picture; all are brought to the same width.
        columns: pictures in one line; all of them by default.
        tile_width: width of each picture in pixels.
        title: one line above the whole panel.
        gap: pixels between two pictures and around all of them.

    Returns:
        ``(H, W, 3)`` uint8.
    """
    if not tiles:
        raise ValueError("a panel needs at least one picture")
    columns = min(columns or len(tiles), len(tiles))
    pictures = [resize_to(tile.image, tile_width) for tile in tiles]
    lines = [range(start, min(start + columns, len(tiles))) for start in range(0, len(tiles), columns)]
    heights = [max(len(pictures[index]) for index in line) for line in lines]
    caption, heading = 20, 30 if title else 0
    canvas = Image.new(
        "RGB",
        (gap + columns * (tile_width + gap), gap + heading + sum(caption + height + gap for height in heights)),
        WHITE,
    )
    draw = ImageDraw.Draw(canvas)
    _write(draw, (gap, gap), title, size=18, room=canvas.width - 2 * gap)
    top = gap + heading
    for line, height in zip(lines, heights, strict=True):
        for column, index in enumerate(line):
            left = gap + column * (tile_width + gap)
            _write(draw, (left, top), tiles[index].title, size=13, room=tile_width)
            canvas.paste(Image.fromarray(pictures[index]), (left, top + caption))
        top += caption + height + gap
    return np.asarray(canvas)


def encode(image: np.ndarray, *, image_format: ImageFormat = "webp", quality: int = 80) -> bytes:
    """The bytes of an image file.

    Args:
        image: ``(H, W, 3)`` uint8, RGB.
        image_format: "webp" and "jpeg" are lossy and small, "png" is exact.
        quality: of the lossy formats, 1..100.
    """
    buffer = io.BytesIO()
    options = {"optimize": True} if image_format == "png" else {"quality": quality}
    Image.fromarray(image).save(buffer, format=image_format, **options)
    return buffer.getvalue()


def data_uri(image: np.ndarray, *, image_format: ImageFormat = "webp", quality: int = 80) -> str:
    """An image as a ``data:`` URI, to stand in HTML or CSS in place of an address. Arguments as for ``encode``."""
    content = encode(image, image_format=image_format, quality=quality)
    return f"data:image/{image_format};base64,{base64.b64encode(content).decode('ascii')}"


def _blend(image: np.ndarray, color: np.ndarray | tuple[int, int, int], opacity: np.ndarray) -> np.ndarray:
    """Paint ``color`` over ``image`` where ``opacity``, ``(H, W)``, is above 0."""
    weight = opacity.astype(np.float32)[..., None]
    return np.rint(image * (1 - weight) + np.asarray(color, dtype=np.float32) * weight).astype(np.uint8)


def _hatch(region: np.ndarray) -> np.ndarray:
    """Opacity of white diagonal stripes over a region: ``(H, W)``, 0 outside it."""
    rows, columns = np.indices(region.shape)
    stripe = (rows + columns) % HATCH_PERIOD < HATCH_PERIOD // 2
    return region * np.where(stripe, 0.75, 0.35)


def _boundary(labels: np.ndarray) -> np.ndarray:
    """True at each pixel that has a 4-neighbour with another label."""
    edge = np.zeros(labels.shape, dtype=bool)
    vertical, horizontal = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    edge[1:] |= vertical
    edge[:-1] |= vertical
    edge[:, 1:] |= horizontal
    edge[:, :-1] |= horizontal
    return edge


@lru_cache(maxsize=8)
def _color_table(name: str) -> np.ndarray:
    """A matplotlib colour map as ``(256, 3)`` uint8, read-only."""
    table = np.rint(colormaps[name](np.linspace(0, 1, 256))[:, :3] * 255).astype(np.uint8)
    table.setflags(write=False)
    return table


def _check_pair(image: np.ndarray, plane: np.ndarray, name: str) -> None:
    """Raise unless ``image`` is RGB and ``plane`` covers it."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"expected an (H, W, 3) uint8 image, got {image.shape} {image.dtype}")
    if plane.shape != image.shape[:2]:
        raise ValueError(f"expected {name} of shape {image.shape[:2]} like the image, got {plane.shape}")


def _check_scores(scores: np.ndarray) -> None:
    """Raise unless all scores lie in [0, 1]."""
    if scores.size and not (scores.min() >= 0 and scores.max() <= 1):
        raise ValueError(f"expected scores in [0, 1], got {scores.min():.4g} to {scores.max():.4g}")


def _write(draw: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, *, size: int, room: int) -> None:
    """Write one line of text, cut to ``room`` pixels."""
    font = ImageFont.load_default(size)
    line = " ".join(text.split())
    if draw.textlength(line, font=font) > room:
        while line and draw.textlength(line + "...", font=font) > room:
            line = line[:-1]
        line += "..."
    draw.text(corner, line, fill=(40, 40, 40), font=font)
