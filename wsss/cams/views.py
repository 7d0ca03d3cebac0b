"""Images seen at several scales, plain and mirrored, and the maps of all views as one."""

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
    images: Sequence[Tensor],
    class_ids: Sequence[Sequence[int]],
    *,
    scales: Sequence[float],
    flip: bool,
    stride: int,
) -> list[Tensor]:
    """Maps of the classes of each image, over all views.

    Each view gives one map per layer and class. Maps of the mirrored view are mirrored back; views are added layer by
    layer; then the layers are fused and the result is scaled to its peak, once. Images of one size go through the
    network together; what comes out does not depend on who goes with whom.

    Args:
        method: computes the maps of a view.
        network: the classifier.
        images: ``(3, H, W)`` RGB in [0,1] each; sizes may differ.
        class_ids: the classes in 1..C that get a map, for each image: its tags.
        scales: sizes of the views relative to the image.
        flip: whether each scale is also seen mirrored.
        stride: the maps have one value per ``stride`` pixels.

    Returns:
        For each image ``(K, ceil(H / stride), ceil(W / stride))`` float32 in [0,1], on its device; K counts its
        classes.

    Raises:
        FloatingPointError: a map holds a value that is not finite; ``args[1]`` is the position of the image.
    """
    scores = [
        image.new_zeros((0, *_grid(image, stride)), dtype=torch.float32) for image in images
    ]  # what an image without classes gets
    groups: dict[torch.Size, list[int]] = {}
    for at, (image, ids) in enumerate(zip(images, class_ids, strict=True)):
        if len(ids):
            groups.setdefault(image.shape, []).append(at)
    for members in groups.values():
        batch = torch.stack([images[at] for at in members])
        wanted = [class_ids[at] for at in members]
        maps = _group_scores(method, network, batch, wanted, scales, flip, _grid(batch, stride))
        for at, found in zip(members, maps.split([len(item) for item in wanted]), strict=True):
            if not found.isfinite().all():
                raise FloatingPointError("the maps hold NaN or infinity", at)
            scores[at] = found.clamp(0, 1)
    return scores


def _group_scores(
    method: CamMethod,
    network: Classifier,
    images: Tensor,
    class_ids: Sequence[Sequence[int]],
    scales: Sequence[float],
    flip: bool,
    size: tuple[int, int],
) -> Tensor:
    """``(P, *size)`` maps of the (image, class) pairs of ``(N, 3, H, W)`` images."""
    totals: list[Tensor] = []
    for scale in scales:
        view = _resize(images, scale)
        batch = torch.cat([view, view.flip(-1)]) if flip else view
        ids = [*class_ids, *class_ids] if flip else class_ids
        maps = method.layer_maps(network, batch.contiguous(memory_format=torch.channels_last), ids)
        merged = [resize_maps(_unflip(layer.float()) if flip else layer.float(), size) for layer in maps]
        totals = [a + b for a, b in zip(totals, merged, strict=True)] if totals else merged
    return method.fuse(totals, size)


def _grid(image: Tensor, stride: int) -> tuple[int, int]:
    return -(-image.shape[-2] // stride), -(-image.shape[-1] // stride)


def _resize(images: Tensor, scale: float) -> Tensor:
    size = [max(MIN_SIDE, round(side * scale)) for side in images.shape[-2:]]
    if size == list(images.shape[-2:]):
        return images
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=scale < 1).clamp(0, 1)


def _unflip(maps: Tensor) -> Tensor:
    """Sum the plain maps with the mirrored ones, mirrored back: ``(2 P, h, w)`` to ``(P, h, w)``."""
    plain, mirrored = maps.chunk(2)
    return plain + mirrored.flip(-1)
