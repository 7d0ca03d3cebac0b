"""One image seen at several scales, plain and mirrored, and the maps of all views as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from wsss.cams.functional import resize_maps
from wsss.cams.methods import CamMethod
from wsss.models.classifier import Classifier

MIN_SIDE = 32
"""A view is never smaller than this: below it the last feature block has no position left."""


def seed_scores(
    method: CamMethod,
    network: Classifier,
    image: Tensor,
    class_ids: Sequence[int],
    *,
    scales: Sequence[float],
    flip: bool,
    stride: int,
) -> Tensor:
    """Maps of the classes of one image, over all views.

    Each view gives one map per layer and class. Maps of the mirrored view are mirrored back; views are added layer by
    layer; then the layers are fused and the result is scaled to its peak, once.

    Args:
        method: computes the maps of a view.
        network: the classifier.
        image: ``(3, H, W)`` RGB in [0,1].
        class_ids: K classes in 1..C, the image's tags.
        scales: sizes of the views relative to the image.
        flip: whether each scale is also seen mirrored.
        stride: the maps have one value per ``stride`` pixels.

    Returns:
        ``(K, ceil(H / stride), ceil(W / stride))`` float32 in [0,1], on the device of ``image``.

    Raises:
        FloatingPointError: a map holds a value that is not finite.
    """
    height, width = image.shape[-2:]
    size = (-(-height // stride), -(-width // stride))
    if not class_ids:
        return image.new_zeros((0, *size))
    totals: list[Tensor] = []
    for scale in scales:
        view = _resize(image[None], scale)
        batch = (torch.cat([view, view.flip(-1)]) if flip else view).contiguous(memory_format=torch.channels_last)
        maps = method.layer_maps(network, batch, [class_ids] * len(batch))
        merged = [resize_maps(_unflip(layer.float(), len(class_ids)), size) for layer in maps]
        totals = [a + b for a, b in zip(totals, merged, strict=True)] if totals else merged
    scores = method.fuse(totals, size)
    if not scores.isfinite().all():
        raise FloatingPointError("the maps hold NaN or infinity")
    return scores.clamp(0, 1)


def _resize(images: Tensor, scale: float) -> Tensor:
    size = [max(MIN_SIDE, round(side * scale)) for side in images.shape[-2:]]
    if size == list(images.shape[-2:]):
        return images
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=scale < 1).clamp(0, 1)


def _unflip(maps: Tensor, num_classes: int) -> Tensor:
    """Sum the plain maps with the mirrored ones, mirrored back: ``(V * K, h, w)`` to ``(K, h, w)``, V 1 or 2."""
    plain, mirrored = maps[:num_classes], maps[num_classes:]
    return plain + mirrored.flip(-1) if len(mirrored) else plain
