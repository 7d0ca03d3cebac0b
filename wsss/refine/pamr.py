"""Pixel-adaptive mask refinement (Araslanov and Roth, CVPR 2020): scores averaged over similar neighbours, in torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

_RING = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0))
_SHARPNESS = 0.1  # of a standard deviation: the difference that weighs a factor e less


@torch.no_grad()
def pamr(
    images: Tensor, scores: Tensor, *, iterations: int = 10, dilations: Sequence[int] = (1, 2, 4, 8, 12, 24)
) -> Tensor:
    """Each score replaced by a mean over the neighbours of its pixel, those of like colour first, again and again.

    The neighbours are the 8 around a pixel at each dilation. Their weights come from :func:`pamr_weights` and are the
    same in each iteration. Beyond the border the scores go on as they are at it.

    It holds the weights, 4 bytes a pixel for each of the ``8 len(dilations)`` neighbours (192 by default), and three
    copies of the scores, not the ``8 len(dilations)`` copies that an unfolded product would take.

    Args:
        images: ``(N, 3, H, W)`` uint8 RGB.
        scores: ``(N, K, H, W)`` in [0, 1], on the same device; any ``K``.
        iterations: how often.
        dilations: distances of the neighbours in pixels.

    Returns:
        ``(N, K, H, W)`` float32, each within the range that the scores of its map have.

    Raises:
        ValueError: shapes, types or settings are not as above.
    """
    if scores.ndim != 4 or not scores.is_floating_point() or scores.shape[::2] != images.shape[::2]:
        raise ValueError(
            f"expected scores (N, K, H, W) of a floating type for images {tuple(images.shape)}, "
            f"got {tuple(scores.shape)} of {scores.dtype}"
        )
    if images.shape[-1] != scores.shape[-1]:
        raise ValueError(f"images {tuple(images.shape)} and scores {tuple(scores.shape)} differ in width")
    if iterations < 0:
        raise ValueError(f"expected iterations of 0 or more, got {iterations}")
    weights = pamr_weights(images, dilations=dilations)
    scores = scores.to(torch.float32)
    if not scores.numel():
        return scores
    least, most = scores.amin(dim=(2, 3), keepdim=True), scores.amax(dim=(2, 3), keepdim=True)
    for _ in range(iterations):
        mean = torch.zeros_like(scores)
        for weight, neighbour in zip(weights, _neighbours(scores, dilations), strict=True):
            mean.addcmul_(weight, neighbour)
        scores = mean.clamp_(least, most)  # out of it only by rounding
    return scores


@torch.no_grad()
def pamr_weights(images: Tensor, *, dilations: Sequence[int] = (1, 2, 4, 8, 12, 24)) -> Tensor:
    """Softmax over the neighbours of minus their colour difference, in units of the local deviation.

    The difference ``|I_i - I_j| / (0.1 sigma_i)`` is averaged over the channels; ``sigma_i`` is the standard deviation
    (of the sample) of the channel over the pixel and its neighbours, the pixel counted once for each dilation. This is
    the form of the authors' code. Where all are equal the difference is 0. Beyond the border the image goes on as it is
    at it.

    Args:
        images: ``(N, 3, H, W)`` uint8 RGB.
        dilations: distances of the neighbours in pixels, positive and at least one.

    Returns:
        ``(8 len(dilations), N, 1, H, W)`` float32, summing to 1 over the neighbours: dilation by dilation, and in each
        row by row.

    Raises:
        ValueError: the images are not ``(N, 3, H, W)`` uint8 or a dilation is not a positive whole number.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"expected uint8 images (N, 3, H, W), got {images.dtype} {tuple(images.shape)}")
    if not len(dilations) or any(not isinstance(d, int) or d < 1 for d in dilations):
        raise ValueError(f"expected dilations of 1 or more, at least one, got {list(dilations)}")
    # Sums of whole numbers: exact, and so is a deviation of 0.
    values = images.to(torch.int32)
    total = values * len(dilations)
    squares = values.square() * len(dilations)
    for neighbour in _neighbours(values, dilations):
        total += neighbour
        squares += neighbour.square()
    taps = 9 * len(dilations)
    variance = (taps * squares.to(torch.int64) - total.to(torch.int64).square()).to(torch.float32) / (taps * (taps - 1))
    channels = images.shape[1]
    steepness = torch.where(variance > 0, -1 / (channels * _SHARPNESS * variance.sqrt()), 0.0)
    count, _, height, width = images.shape
    colours = images.to(torch.float32)
    logits = colours.new_empty(8 * len(dilations), count, 1, height, width)
    for logit, neighbour in zip(logits, _neighbours(colours, dilations), strict=True):
        torch.sum((neighbour - colours).abs_().mul_(steepness), dim=1, keepdim=True, out=logit)
    logits -= logits.amax(dim=0)
    logits.exp_()
    return logits.div_(logits.sum(dim=0))


def _neighbours(values: Tensor, dilations: Sequence[int]) -> Iterator[Tensor]:
    """Views ``(N, K, H, W)`` of the values 8 ways around, dilation by dilation."""
    height, width = values.shape[-2:]
    reach = max(dilations)
    rows = torch.arange(-reach, height + reach, device=values.device).clamp_(0, height - 1)
    columns = torch.arange(-reach, width + reach, device=values.device).clamp_(0, width - 1)
    wide = values.index_select(-2, rows).index_select(-1, columns)
    for dilation in dilations:
        for dy, dx in _RING:
            top, left = reach + dy * dilation, reach + dx * dilation
            yield wide[..., top : top + height, left : left + width]
