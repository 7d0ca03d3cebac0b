"""Reading image and mask files, of whatever kind, as a person would see them."""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin

from wsss.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
"""File names that are taken for images, in lower case."""

UNDECODABLE = (
    OSError,
    SyntaxError,
    ValueError,
    LookupError,
    TypeError,
    ArithmeticError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow raises at a file that is missing, cut off or something else."""

WHITE = 65535
"""The value that becomes 255 in grey images of more than 8 bits unless a set says otherwise: the highest of 16 bits."""


def read_image(path: Path, *, white: int | None = None) -> np.ndarray:
    """An image file as ``(H, W, 3)`` uint8 RGB, as a viewer shows it.

    - Turned as its EXIF orientation says.
    - Transparent pixels lie on white, the page that viewers put behind them: the colour stored under full transparency
      is arbitrary, often black, and nobody has seen it when the image was tagged.
    - More than 8 bits a channel are brought to 8 by a fixed factor, the same for all images of a set whatever values
      each of them has: ``v`` becomes ``v * 255 // white``, and 255 where it is more.
    - CMYK is converted by the plain formula; colour profiles are not applied.
    - A second picture inside a photograph (MPO: preview, depth) is left out.

    Args:
        path: the file.
        white: the value in 1..65535 that becomes 255 in grey images of more than 8 bits: 4095 where a camera gives 12
            bits. None takes the whole range of 16 bits (of 32-bit files too). Images of 8 bits do not heed it.

    Raises:
        DataError: the file is missing or does not decode, is animated or has several pages (which of them the tags
            speak of is unknown), has floating-point values (no range says what white is), has grey values outside
            0..65535, or has colours of 16 bits although ``white`` is given (only their high 8 bits are decoded).
    """
    try:
        with Image.open(path) as image:
            if getattr(image, "is_animated", False) and image.format != "MPO":
                raise DataError(f"the image {path} has several frames or pages. Save the one that is meant as a file")
            if white is not None and _deep_colour(image):
                raise DataError(
                    f"the image {path} has colours of 16 bits, and data.white={white} is for grey images alone. Save "
                    f"it with 8 bits a channel, or leave data.white at null for the full range"
                )
            upright = ImageOps.exif_transpose(image)
            if upright.mode == "F":
                raise DataError(f"the image {path} has floating-point values. Save it with 8 or 16 bits")
            if upright.mode.startswith("I"):
                return _deep_grey(np.asarray(upright), path, WHITE if white is None else white)
            if upright.has_transparency_data:
                opaque = upright.convert("RGBA")
                page = Image.new("RGBA", opaque.size, "white")
                upright = Image.alpha_composite(page, opaque)
            return np.array(upright.convert("RGB"))
    except UNDECODABLE as error:
        raise DataError(
            f"the image {path} does not decode ({error}). Replace the file, or take {path.stem} out of the split"
        ) from error


class Depth(NamedTuple):
    """What an image of more than 8 bits a channel uses of its range.

    Attributes:
        highest: its highest value; of colours, which are decoded by their high 8 bits, those times 257.
        grey: whether it is grey, so that ``white`` scales it.
    """

    highest: int
    grey: bool


def deep_range(path: Path) -> Depth | None:
    """The ``Depth`` of an image; None where it has 8 bits a channel or fewer, which the header tells.

    Raises:
        DataError: the file does not decode.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith("I"):
                return Depth(int(np.asarray(image).max()), grey=True)
            if _deep_colour(image):
                return Depth(257 * int(np.asarray(image.convert("RGB")).max()), grey=False)
            return None
    except UNDECODABLE as error:
        raise DataError(f"the image {path} does not decode ({error}). Replace the file") from error


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of an image as it is seen (EXIF orientation applied), from its header alone.

    Raises:
        DataError: the file does not decode.
    """
    width, height, on_its_side = _header(path)
    return (height, width) if on_its_side else (width, height)


def stored_size(path: Path) -> tuple[int, int]:
    """Width and height of an image before its EXIF orientation turns it; see ``image_size``."""
    width, height, _ = _header(path)
    return width, height


def read_mask(path: Path, *, id: str) -> np.ndarray:
    """The mask file of the image ``id`` as ``(H, W)`` uint8 labels: the indices of an indexed image, the values of a
    grey one.

    Raises:
        DataError: the file is missing, does not decode, or is neither indexed nor grey of 8 bits.
    """
    try:
        with Image.open(path) as image:
            mode, mask = image.mode, np.array(image)
    except FileNotFoundError:
        raise DataError(f"no mask {path} for image {id}. Add it, or take {id} out of the split") from None
    except UNDECODABLE as error:
        raise DataError(f"the mask {path} does not decode ({error}). Replace the file") from error
    if mode not in ("P", "L", "1"):
        raise DataError(f"the mask {path} has mode {mode}; masks are indexed or 8-bit grey PNG files of class ids")
    return mask.astype(np.uint8)


def _header(path: Path) -> tuple[int, int, bool]:
    """Width and height as stored, and whether the image is to be turned by a quarter."""
    try:
        with Image.open(path) as image:
            on_its_side = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
            if isinstance(image, TiffImagePlugin.TiffImageFile):  # its size is that after turning
                tags = image.tag_v2
                return tags[ExifTags.Base.ImageWidth], tags[ExifTags.Base.ImageLength], on_its_side
            return *image.size, on_its_side
    except UNDECODABLE as error:
        raise DataError(f"the image {path} does not decode ({error}). Replace the file") from error


def _deep_grey(values: np.ndarray, path: Path, white: int) -> np.ndarray:
    """Grey values of more than 8 bits as RGB of 8 bits, ``white`` as 255."""
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= WHITE):
        raise DataError(f"the image {path} has grey values from {low} to {high}; save it with 8 or 16 bits")
    grey = np.minimum(values.astype(np.uint32) * 255 // white, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def _deep_colour(image: Image.Image) -> bool:
    """Whether Pillow, which has no colours of 16 bits, will decode the high 8 bits of each. Asked before it loads."""
    # "RGB;16B" and the like; "BGR;16" of BMP files is 16 bits a pixel
    parts = [str(part.args) for part in getattr(image, "tile", ())]
    return not image.mode.startswith("I") and any(re.search(";16[BLN]", part) for part in parts)
