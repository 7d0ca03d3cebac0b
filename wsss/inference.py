"""How a finished segmentation network looks at an image: views, windows, a CRF, and which labels may come out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn import functional as F

from wsss.build import build
from wsss.errors import ConfigError
from wsss.types import BACKGROUND

SMALLEST_SIDE = 32
"""Pixels: neither a resized view nor ``window`` is smaller; an image seen as it is may be."""

AT_ONCE = 4
"""Windows, mirrored ones counted, that go through the network together."""

LIKELY = 0.05
"""A label takes part in the CRF if it has this probability somewhere."""


class DenseCrf(Protocol):
    """What is asked of a CRF; :class:`wsss.refine.Crf` is one."""

    def posteriors(self, image: np.ndarray, probabilities: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Posteriors ``(L, H, W)`` for several unaries of one image."""
        ...

    def to(self, device: str) -> bool:
        """Compute on this torch device from now on; False for one that cannot."""
        ...


@dataclass(frozen=True)
class Inference:
    """Labels of an image from a network, averaged over views.

    A network gives logits ``(N, C+1, h, w)`` of ``(N, 3, h, w)`` RGB images in [0,1] and is in evaluation mode.

    Attributes:
        scales: sizes of the views relative to the image; those other than 1 have no side below 32 pixels.
        flip: whether each view is also seen mirrored.
        window: side in pixels of the view, not of the image, of the windows that slide over a view; None: views go
            through the network whole. The network's memory is then that of a few windows, whatever the image.
        overlap: of neighbouring windows, as a fraction of their side.
        crf: refines the averaged probabilities.
        tags: whether the caller shall restrict the labels to the image's tags (``allowed``). That is supervision.

    Raises:
        ConfigError: a value that cannot be.
    """

    scales: Sequence[float] = (1.0,)
    flip: bool = False
    window: int | None = None
    overlap: float = 1 / 3
    crf: DenseCrf | None = None
    tags: bool = False

    def __post_init__(self) -> None:
        if not len(self.scales) or not all(0 < scale < float("inf") for scale in self.scales):
            raise ConfigError(f"evaluation.scales must be at least one factor above 0, got {list(self.scales)}")
        if self.window is not None and self.window < SMALLEST_SIDE:
            raise ConfigError(f"evaluation.window must be {SMALLEST_SIDE} pixels or more, or null, got {self.window}")
        if not 0 <= self.overlap < 1:
            raise ConfigError(f"evaluation.overlap must be 0 or more and below 1, got {self.overlap}")
        if self.crf is not None and not hasattr(self.crf, "posteriors"):
            raise ConfigError(f"evaluation.crf must be an option of conf/crf/ (evaluation=crf), got {self.crf!r}")

    @torch.no_grad()
    def probabilities(self, network: nn.Module, image: Tensor, *, allowed: Sequence[int] | None = None) -> Tensor:
        """The probability of each label: softmax, averaged over views. The CRF takes no part.

        Args:
            network: see the class.
            image: ``(3, H, W)`` RGB in [0,1].
            allowed: labels that may come out, in 0..C, 0 being always among them; None: all. The others get 0 and the
                rest is divided by its sum.

        Returns:
            ``(C+1, H, W)`` float32, summing to 1 at each pixel. Where all that is allowed has probability 0 it is
            uniform over the allowed labels.

        Raises:
            ValueError: an allowed label does not exist, or the image is not ``(3, H, W)``.
        """
        total = self._total(network, image)
        may = _allowed(allowed, len(total), total.device)[:, None, None]
        total = total * may
        whole = total.sum(dim=0)
        return torch.where(whole > 0, total / torch.where(whole > 0, whole, 1), may / may.sum())

    @torch.no_grad()
    def labels(
        self,
        network: nn.Module,
        image: Tensor,
        *,
        picture: np.ndarray | None = None,
        allowed: Sequence[int] | None = None,
    ) -> np.ndarray:
        """The most probable label of each pixel (the first of equals), after the CRF where there is one.

        Labels that are below ``LIKELY`` at every pixel and win at none are left out of the CRF, whose cost grows with
        their number.

        Args:
            network: see the class.
            image: ``(3, H, W)`` RGB in [0,1].
            picture: the same image as ``(H, W, 3)`` uint8, which the CRF looks at.
            allowed: as in :meth:`probabilities`.

        Returns:
            ``(H, W)`` uint8 in 0..C.

        Raises:
            ValueError: as in :meth:`probabilities`, or a CRF without a picture.
        """
        if self.crf is None:
            total = self._total(network, image)  # undivided: two sums that differ may have one quotient
            may = _allowed(allowed, len(total), total.device)
            return total.masked_fill(~may[:, None, None], -1).argmax(dim=0).to(torch.uint8).cpu().numpy()
        return self.decide(self.probabilities(network, image, allowed=allowed), picture=picture)

    def decide(self, probabilities: Tensor, *, picture: np.ndarray | None = None) -> np.ndarray:
        """Labels from probabilities: the most probable one of each pixel, after the CRF where there is one.

        Args:
            probabilities: ``(C+1, H, W)``, as :meth:`probabilities` gives them.
            picture: as in :meth:`labels`.

        Returns:
            ``(H, W)`` uint8 in 0..C.

        Raises:
            ValueError: a CRF without a picture.
        """
        if self.crf is None:
            return probabilities.argmax(dim=0).to(torch.uint8).cpu().numpy()
        if picture is None:
            raise ValueError("the CRF needs the picture (H, W, 3) as uint8")
        taking_part = probabilities.amax(dim=(1, 2)) >= LIKELY
        taking_part[probabilities.argmax(dim=0).unique()] = True
        likely = taking_part.nonzero()[:, 0]
        self.crf.to(str(probabilities.device))
        (posterior,) = self.crf.posteriors(picture, [probabilities[likely].cpu().numpy()])
        return likely.cpu().numpy().astype(np.uint8)[posterior.argmax(axis=0)]

    def _total(self, network: nn.Module, image: Tensor) -> Tensor:
        """Probabilities summed over views, ``(C+1, H, W)``."""
        if image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(f"expected an image (3, H, W), got {tuple(image.shape)}")
        size = image.shape[-2:]
        total: Tensor | None = None
        for scale in self.scales:
            view = image[None]
            if scale != 1:
                side = [max(SMALLEST_SIDE, round(length * scale)) for length in size]
                view = F.interpolate(view, size=side, mode="bilinear", align_corners=False, antialias=scale < 1)
            seen = self._view(network, view)
            seen = F.interpolate(seen, size=size, mode="bilinear", align_corners=False) if scale != 1 else seen
            total = seen if total is None else total + seen
        assert total is not None
        return total[0]

    def _view(self, network: nn.Module, view: Tensor) -> Tensor:
        """Probabilities ``(1, C+1, h, w)`` of one view ``(1, 3, h, w)``, those of its mirror image added."""
        corners, (height, width) = self._corners(view.shape[-2:])
        if len(corners) == 1:
            return self._seen(network, view)
        total: Tensor | None = None
        for some in _chunks(corners, max(1, AT_ONCE // (1 + self.flip))):
            crops = torch.cat([view[..., y : y + height, x : x + width] for y, x in some])
            for (y, x), seen in zip(some, self._seen(network, crops), strict=True):
                if total is None:
                    total = seen.new_zeros(1, len(seen), *view.shape[-2:])
                total[..., y : y + height, x : x + width] += seen
        assert total is not None
        count = total.new_zeros(view.shape[-2:])
        for y, x in corners:
            count[y : y + height, x : x + width] += 1
        return total.div_(count)

    def _corners(self, size: Sequence[int]) -> tuple[list[tuple[int, int]], tuple[int, int]]:
        """Upper left corners of the windows on a view of ``size``, and their size."""
        sides = [min(length, self.window or length) for length in size]
        starts = [_starts(length, side, overlap=self.overlap) for length, side in zip(size, sides, strict=True)]
        return [(y, x) for y in starts[0] for x in starts[1]], (sides[0], sides[1])

    def _seen(self, network: nn.Module, images: Tensor) -> Tensor:
        """Probabilities ``(N, C+1, h, w)`` of ``(N, 3, h, w)``, those of the mirror images added."""
        logits = network(torch.cat([images, images.flip(-1)]) if self.flip else images).float()
        probabilities = logits.softmax(dim=1)
        if not self.flip:
            return probabilities
        return probabilities[: len(images)] + probabilities[len(images) :].flip(-1)


def inference_of(config: DictConfig, node: str = "evaluation") -> Inference:
    """The inference that a node describes.

    Args:
        config: the whole configuration.
        node: ``evaluation`` or ``self_training``.

    Raises:
        ConfigError: a value that cannot be, or a CRF that cannot be built.
    """
    settings: Any = config[node]
    return Inference(
        scales=tuple(settings.scales),
        flip=settings.flip,
        window=settings.window,
        overlap=settings.overlap,
        crf=build(config, f"{node}.crf"),
        tags=settings.get("tags", False),
    )


def _allowed(allowed: Sequence[int] | None, labels: int, device: torch.device) -> Tensor:
    """``(labels,)`` bool: which may come out."""
    if allowed is None:
        return torch.ones(labels, dtype=torch.bool, device=device)
    if any(not 0 <= label < labels for label in allowed):
        raise ValueError(f"allowed labels lie in 0..{labels - 1}, got {list(allowed)}")
    may = torch.zeros(labels, dtype=torch.bool)
    may[[BACKGROUND, *allowed]] = True
    return may.to(device)


def _starts(length: int, side: int, *, overlap: float) -> list[int]:
    """Where windows of ``side`` pixels begin so that they cover ``length``; the last one ends with it.

    >>> _starts(10, 4, overlap=0.5)
    [0, 2, 4, 6]
    >>> _starts(11, 4, overlap=0)
    [0, 4, 7]
    """
    return [*range(0, length - side, max(1, round(side * (1 - overlap)))), length - side]


def _chunks(items: Sequence[tuple[int, int]], size: int) -> Iterator[Sequence[tuple[int, int]]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
