"""Random views of an image and its mask, drawn together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from wsss.errors import ConfigError, DataError
from wsss.types import IGNORE


def to_tensor(image: np.ndarray) -> Tensor:
    """``(H, W, 3)`` uint8 array to ``(3, H, W)`` uint8 tensor."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).contiguous()


class Augment:
    """Random scale, flip, colour and crop; the mask follows the image in every geometric step.

    The image is resized so that its long side is ``size * U(scale)``, and a ``size`` square is cropped from it at
    random. Where the image is smaller than the square, the rest is mid-grey ``fill`` in the image and 255 in the mask.

    Args:
        size: side of the square crop, in pixels.
        scale: smallest and largest long side, as multiples of ``size``.
        flip: probability of a horizontal flip.
        jitter: strength of brightness, contrast and saturation changes (0: none). The hue stays: turning it costs
            more than all the rest.
        fill: grey value of padding; 127 is zero after a normalisation around one half.
    """

    def __init__(
        self, *, size: int, scale: Sequence[float] = (1.0, 1.5), flip: float = 0.5, jitter: float = 0.0, fill: int = 127
    ) -> None:
        if size < 16:
            raise ConfigError(f"augment.size={size} is too small: a crop has at least 16 pixels a side")
        if len(scale) != 2 or not 0 < scale[0] <= scale[1]:
            raise ConfigError(f"augment.scale={list(scale)} must be two factors, the smaller first, both above 0")
        self.size, self.least_scale = size, min(1.0, scale[0])
        steps: list[v2.Transform] = [
            v2.ScaleJitter((size, size), scale_range=tuple(scale), antialias=True),
            v2.RandomHorizontalFlip(flip),
        ]
        if jitter:
            steps.append(v2.ColorJitter(jitter, jitter, jitter))
        steps.append(v2.RandomCrop(size, pad_if_needed=True, fill={tv_tensors.Image: fill, tv_tensors.Mask: IGNORE}))
        self._steps = v2.Compose(steps)

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
        """
        height, width = image.shape[:2]
        if max(height, width) > self.size * self.least_scale * min(
            height, width
        ):  # the short side would shrink to nothing
            raise DataError(
                f"an image of {width}x{height} pixels is too narrow to learn from. Take it out of the split"
            )
        picture = tv_tensors.Image(to_tensor(image))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if mask is None:
                return self._steps(picture).as_subclass(Tensor), None
            view, labels = self._steps(picture, tv_tensors.Mask(torch.from_numpy(mask)))
        return view.as_subclass(Tensor), labels.as_subclass(Tensor)
