"""Class activation maps as pure functions of tensors. Nothing here knows of networks, files or configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Fusion = Literal["max", "mean", "product"]


def cam(features: Tensor, weights: Tensor) -> Tensor:
    """Class activation map (Zhou et al., CVPR 2016; LPCAM paper, Eq. 1).

    Args:
        features: ``(N, C, H, W)``, the block that global average pooling sees.
        weights: ``(N, C)``, the linear layer's weights for the class of each item.

    Returns:
        ``(N, H, W)``, non-negative, not normalised.
    """
    return torch.einsum("nchw,nc->nhw", features, weights).relu()


def grad_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Grad-CAM map of one layer (Selvaraju et al., ICCV 2017; LayerCAM paper, Eqs. 2-3).

    Args:
        activations: ``(N, C, H, W)``, after the layer's ReLU.
        gradients: ``(N, C, H, W)``, of one class logit per item, w.r.t. ``activations``.

    Returns:
        ``(N, H, W)``, non-negative, not normalised.
    """
    return cam(activations, gradients.mean(dim=(2, 3)))


def layer_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """LayerCAM map of one layer (Jiang et al., TIP 2021, Eqs. 6-8).

    Args:
        activations: ``(N, C, H, W)``, after the layer's ReLU.
        gradients: ``(N, C, H, W)``, of one class logit per item, w.r.t. ``activations``.

    Returns:
        ``(N, H, W)``, non-negative, not normalised.
    """
    return (activations * gradients.relu()).sum(dim=1).relu()


def scale_to_peak(maps: Tensor) -> Tensor:
    """Divide each map by its own maximum.

    Args:
        maps: ``(N, H, W)``, non-negative.

    Returns:
        ``(N, H, W)`` in [0,1]. A map that is zero everywhere stays zero: no noise is lifted.
    """
    peak = maps.amax(dim=(1, 2), keepdim=True)
    silent = peak <= 0  # not so for NaN, which must come out as NaN
    # divide, do not multiply by 1 / peak: the reciprocal of a tiny peak is infinite
    return torch.where(silent, torch.zeros_like(maps), maps / torch.where(silent, torch.ones_like(peak), peak))


def tanh_scale(maps: Tensor, *, gamma: float = 2.0) -> Tensor:
    """Lift the small values of a shallow layer's map (LayerCAM, Eq. 9): tanh(gamma M / max M).

    Args:
        maps: ``(N, H, W)``, non-negative.
        gamma: strength; the paper's best is 2 (Table III).

    Returns:
        ``(N, H, W)`` in [0, tanh(gamma)]. A map that is zero everywhere stays zero.
    """
    return torch.tanh(gamma * scale_to_peak(maps))


def resize_maps(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring ``(N, h, w)`` maps to ``(N, *size)``, bilinear, corners not aligned."""
    if maps.shape[-2:] == size or not maps.shape[0]:
        return maps if maps.shape[-2:] == size else maps.new_zeros((0, *size))
    return F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def fuse(maps: Sequence[Tensor], *, size: tuple[int, int], mode: Fusion = "max") -> Tensor:
    """Fuse the maps of several layers at one size (LayerCAM, section II-C: elementwise maximum).

    Args:
        maps: one ``(N, h, w)`` tensor a layer, already on a common scale; resolutions may differ.
        size: ``(H, W)`` of the result; each map is brought there bilinearly first.
        mode: elementwise ``max``, ``mean`` or ``product``.

    Returns:
        ``(N, H, W)``.

    Raises:
        ValueError: no map, or an unknown mode.
    """
    if not maps:
        raise ValueError("fuse needs the maps of at least one layer")
    stack = torch.stack([resize_maps(layer, size) for layer in maps])
    if mode == "max":
        return stack.amax(dim=0)
    if mode == "mean":
        return stack.mean(dim=0)
    if mode == "product":
        return stack.prod(dim=0)
    raise ValueError(f"fusion mode {mode!r} is unknown; there are max, mean and product")
