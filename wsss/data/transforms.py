"""Random views of an image and its mask, drawn together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import resize_image

from wsss.errors import ConfigError, DataError
from wsss.types import IGNORE

BRIGHTNESS, CONTRAST, SATURATION = range(3)
"""The changes of colour, as torchvision numbers them; 3 is the hue, which stays."""


def to_tensor(image: np.ndarray) -> Tensor:
    """``(H, W, 3)`` uint8 array to ``(3, H, W)`` uint8 tensor."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def _as_channels_first(image: np.ndarray) -> Tensor:
    """The same pixels as ``(3, H, W)``, not copied: the colours of a pixel stay side by side in memory."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)


class View(NamedTuple):
    """What is drawn for one view.

    Attributes:
        height: and ``width``: size of the resized image, in pixels.
        flip: whether it is mirrored, after resizing.
        colours: the changes of colour in their order, each with its factor.
        top: and ``left``: the square's corner in the resized and mirrored image; negative where it reaches out of it.
    """

    height: int
    width: int
    flip: bool
    colours: tuple[tuple[int, float], ...]
    top: int
    left: int


class Augment:
    """Random scale, flip, colour and crop; the mask follows the image in every geometric step.

    The image is resized so that its long side is ``size * U(scale)``, or its own long side times ``U(scale)`` without
    ``fit``, and a ``size`` square is cropped from it at random. Where the image is smaller than the square, the rest is
    mid-grey ``fill`` in the image and 255 in the mask.

    Views are those of torchvision's v2 transforms ScaleJitter (with ``fit``), RandomHorizontalFlip, ColorJitter and
    RandomCrop for the same seed, pixel for pixel, at a fraction of the cost: the image stays interleaved until it is
    resized, the mask is looked up in the square alone, and colours change there alone from the contrast on (whose pivot
    is the mean of the whole image). bench/data.py measures it.

    Args:
        size: side of the square crop, in pixels.
        scale: smallest and largest long side, as multiples of ``size`` (of the image's own long side without ``fit``).
        flip: probability of a horizontal flip.
        jitter: strength of brightness, contrast and saturation changes (0: none). The hue stays: turning it costs
            more than all the rest.
        fill: grey value of padding; 127 is zero after a normalisation around one half.
        fit: whether images are fitted into the square before they are scaled, so that large and small ones are seen
            alike; False keeps their own size, as DeepLab's training does ("crop 321, scales 0.5-1.5").

    Raises:
        ConfigError: a setting is out of its range.
    """

    def __init__(
        self,
        *,
        size: int,
        scale: Sequence[float] = (1.0, 1.5),
        flip: float = 0.5,
        jitter: float = 0.0,
        fill: int = 127,
        fit: bool = True,
    ) -> None:
        if size < 16:
            raise ConfigError(f"augment.size={size} is too small: a crop has at least 16 pixels a side")
        if len(scale) != 2 or not 0 < scale[0] <= scale[1]:
            raise ConfigError(f"augment.scale={list(scale)} must be two factors, the smaller first, both above 0")
        if not 0 <= flip <= 1:
            raise ConfigError(f"augment.flip={flip} must be a probability, from 0 to 1")
        if jitter < 0:
            raise ConfigError(f"augment.jitter={jitter} must be 0 or more")
        self.size, self.scale, self.flip, self.jitter, self.fill = size, tuple(scale), flip, jitter, fill
        self.fit = fit

    @property
    def longest_aspect(self) -> float:
        """Long side over short side beyond which an image is refused: of its short side nothing would be left."""
        return self.size * min(1.0, self.scale[0]) if self.fit else math.inf

    def __call__(self, image: np.ndarray, mask: np.ndarray | None = None, *, seed: int) -> tuple[Tensor, Tensor | None]:
        """Draw one view.

        Args:
            image: ``(H, W, 3)`` uint8.
            mask: ``(H, W)`` uint8 labels, or None.
            seed: decides the view alone, so that a view depends neither on the worker that draws it nor on the
                views drawn before it.

        Returns:
            ``(3, size, size)`` uint8 image and ``(size, size)`` uint8 mask (None without a mask).

        Raises:
            DataError: the image is so narrow that nothing of its short side would be left.
            ValueError: the mask is of another size than the image.
        """
        height, width = image.shape[:2]
        if max(height, width) > self.longest_aspect * min(height, width):
            raise DataError(
                f"an image of {width}x{height} pixels is too narrow to learn from. Take it out of the split"
            )
        if mask is not None and mask.shape != (height, width):
            raise ValueError(f"the mask must be of the image's shape {(height, width)}, not {mask.shape}")
        view = self.draw(height, width, seed=seed)
        labels = None if mask is None else torch.from_numpy(self._labels(mask, view))
        return self._picture(image, view), labels

    def draw(self, height: int, width: int, *, seed: int) -> View:
        """The view that ``seed`` decides for an image of ``height`` x ``width`` pixels.

        Numbers are drawn in the order, and computed in the precision, of torchvision's transforms.
        """
        draw = torch.Generator().manual_seed(seed)
        least, most = self.scale
        scale = least + torch.rand(1, generator=draw) * (most - least)
        factor = min(self.size / height, self.size / width) * scale if self.fit else scale
        height, width = (max(1, int(length * factor)) for length in (height, width))
        flip = bool(torch.rand(1, generator=draw) < self.flip)
        colours: tuple[tuple[int, float], ...] = ()
        if self.jitter:
            order = torch.randperm(4, generator=draw).tolist()
            bounds = max(1.0 - self.jitter, 0.0), 1.0 + self.jitter
            factors = [torch.empty(1).uniform_(*bounds, generator=draw).item() for _ in range(3)]
            colours = tuple(
                (change, factors[change]) for change in order if change in (BRIGHTNESS, CONTRAST, SATURATION)
            )
        top, left = (self._corner(length, draw) for length in (height, width))
        return View(height, width, flip, colours, top, left)

    def _corner(self, length: int, draw: torch.Generator) -> int:
        """Where the square begins along a side: anywhere such that the shorter of the two lies in the longer."""
        room = abs(length - self.size)
        return int(torch.randint(room + 1, (), generator=draw)) - max(0, self.size - length) if room else 0

    def _picture(self, image: np.ndarray, view: View) -> Tensor:
        # Interleaved pixels are resized in half the time that three planes take, to the same values; numpy then takes
        # them apart faster than torch does.
        resized = resize_image(_as_channels_first(image), [view.height, view.width], antialias=True)
        picture = resized.numpy()[..., ::-1] if view.flip else resized.numpy()
        window = (slice(None), self._window(view.top, view.height), self._window(view.left, view.width))
        picture = _recolour(np.ascontiguousarray(picture), view.colours, window) if view.colours else picture[window]
        square = np.empty((3, self.size, self.size), dtype=np.uint8)
        if picture.shape != square.shape:
            square[:] = self.fill
        square[:, *self._place(view)] = picture
        return torch.from_numpy(square)

    def _labels(self, mask: np.ndarray, view: View) -> np.ndarray:
        rows = _nearest(mask.shape[0], view.height)
        columns = _nearest(mask.shape[1], view.width)
        if view.flip:
            columns = columns[::-1]
        found = mask.take(rows[self._window(view.top, view.height)], axis=0)
        found = found.take(columns[self._window(view.left, view.width)], axis=1)
        if found.shape == (self.size, self.size):
            return found
        square = np.full((self.size, self.size), IGNORE, dtype=mask.dtype)
        square[self._place(view)] = found
        return square

    def _window(self, start: int, length: int) -> slice:
        """The part of a side that lies in the square."""
        return slice(max(0, start), min(length, start + self.size))

    def _place(self, view: View) -> tuple[slice, slice]:
        """Where in the square the image lies."""
        top, left = max(0, -view.top), max(0, -view.left)
        return slice(top, top + min(self.size, view.height)), slice(left, left + min(self.size, view.width))


def _recolour(
    image: np.ndarray, changes: Sequence[tuple[int, float]], window: tuple[slice, slice, slice]
) -> np.ndarray:
    """The part of a ``(3, H, W)`` uint8 image in ``window`` after ``changes`` of colour, of which one is the contrast.

    The contrast turns around the mean grey of the whole image; what follows it is done in the window alone. Every
    change ends in whole numbers from 0 to 255, as if in uint8; they stay floats in between, which is cheaper.
    """
    values = torch.from_numpy(image).float()
    for change, factor in changes:
        if change == BRIGHTNESS:
            values.mul_(factor)
        elif change == SATURATION:
            grey = _grey(values)
            values.mul_(factor).add_(grey, alpha=1 - factor)
        else:
            mean = _grey(values).mean()[None]
            values = values[window].contiguous().mul_(factor).add_(mean, alpha=1 - factor)
        values.clamp_(0, 255).floor_()
    return values.to(torch.uint8).numpy()


def _grey(image: Tensor) -> Tensor:
    """Grey values of ``(3, H, W)`` as ``(H, W)``, whole numbers."""
    red, green, blue = image
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_()


def _nearest(length: int, resized: int) -> np.ndarray:
    """Which of ``length`` pixels each of ``resized`` pixels is: the same ones that torch takes for a whole image."""
    index = torch.arange(length, dtype=torch.float32)
    return F.interpolate(index[None, None], size=resized, mode="nearest")[0, 0].long().numpy()
