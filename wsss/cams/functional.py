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


def nwc_cam(features: Tensor, weights: Tensor) -> Tensor:
    """CAM with negative weights clamped to 0 (NWC; Bae et al., 2020, Eq. 5).

    Args:
        features: ``(N, C, H, W)``, the block that global average pooling sees.
        weights: ``(N, C)``, the linear layer's weights for the class of each item.

    Returns:
        ``(N, H, W)``, non-negative, not normalised.
    """
    return cam(features, weights.relu())


def grad_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Grad-CAM map of one layer (Selvaraju et al., ICCV 2017; LayerCAM paper, Eqs. 2-3).

    Args:
        activations: ``(N, C, H, W)``, after the layer's ReLU.
        gradients: ``(N, C, H, W)``, of one class logit per item, w.r.t. ``activations``.

    Returns:
        ``(N, H, W)``, non-negative, not normalised.
    """
    return cam(activations, gradients.mean(dim=(2, 3)))


def grad_cam_plus_plus(activations: Tensor, gradients: Tensor) -> Tensor:
    """Grad-CAM++ map of one layer (Chattopadhay et al., WACV 2018; LayerCAM paper, Eqs. 4-5).

    Weight of channel k: the sum over positions of alpha * relu(g), where alpha = g^2 / (2 g^2 + sum_ab(A_ab) g^3).
    Where g is not 0 that is 1 / (2 + sum_ab(A_ab) g), which loses nothing where g^2 is too small for a float. Alpha is
    0 where its denominator is. Unlike the other maps this one is not proportional to the gradients: they must come
    unscaled.

    Args:
        activations: ``(N, C, H, W)``, after the layer's ReLU.
        gradients: ``(N, C, H, W)``, of one class logit per item, w.r.t. ``activations``.

    Returns:
        ``(N, H, W)``, non-negative, not normalised.
    """
    denominator = 2 + activations.sum(dim=(2, 3), keepdim=True) * gradients
    alpha = torch.where(denominator == 0, torch.zeros_like(denominator), denominator.reciprocal())
    return cam(activations, (alpha * gradients.relu()).sum(dim=(2, 3)))


def norm_grad(activations: Tensor, gradients: Tensor) -> Tensor:
    """NormGrad map of one layer, for an identity layer (Rebuffi et al., CVPR 2020; LayerCAM paper, Tables I-II).

    The norm of the activation vector times the norm of the gradient vector, position by position.

    Args:
        activations: ``(N, C, H, W)``.
        gradients: ``(N, C, H, W)``, of one class logit per item, w.r.t. ``activations``.

    Returns:
        ``(N, H, W)``, non-negative, not normalised.
    """
    return activations.norm(dim=1) * gradients.norm(dim=1)


def layer_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """LayerCAM map of one layer (Jiang et al., TIP 2021, Eqs. 6-8).

    Args:
        activations: ``(N, C, H, W)``, after the layer's ReLU.
        gradients: ``(N, C, H, W)``, of one class logit per item, w.r.t. ``activations``.

    Returns:
        ``(N, H, W)``, non-negative, not normalised.
    """
    return (activations * gradients.relu()).sum(dim=1).relu()


def layer_cam_normal(activations: Tensor, gradients: Tensor) -> Tensor:
    """LayerCAM with the gradients as they are, negative ones included (Jiang et al., TIP 2021, Tables XII-XIII).

    Args:
        activations: ``(N, C, H, W)``, after the layer's ReLU.
        gradients: ``(N, C, H, W)``, of one class logit per item, w.r.t. ``activations``.

    Returns:
        ``(N, H, W)``, non-negative, not normalised.
    """
    return zoom_cam(activations, gradients)


def zoom_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Zoom-CAM map of one layer (Shi et al., ICPR 2020, Eq. 9). One layer of it is ``layer_cam_normal``.

    What sets Zoom-CAM apart is what follows: ``min_max_scale`` of each layer, then the maximum over layers (Eq. 10).

    Args:
        activations: ``(N, C, H, W)``, after the layer's ReLU.
        gradients: ``(N, C, H, W)``, of one class logit per item, w.r.t. ``activations``.

    Returns:
        ``(N, H, W)``, non-negative, not normalised.
    """
    return (activations * gradients).sum(dim=1).relu()


def score_cam(activations: Tensor, scores: Tensor) -> Tensor:
    """Score-CAM map of one layer (Wang et al., CVPR Workshops 2020).

    Args:
        activations: ``(N, C, H, W)``.
        scores: ``(N, C)``, the class logit of the input masked by each channel. A constant added to all of them, such
            as the score of a baseline image, changes nothing: channels are weighted by a softmax over them.

    Returns:
        ``(N, H, W)``, non-negative, not normalised.
    """
    return cam(activations, scores.softmax(dim=1))


def pool_grid(activations: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor]:
    """What a 2x2 average pooling after the layer would see: a remedy for the grid artefacts of strided layers.

    A layer of stride 2 gives its input gradients that alternate from one position to the next, and products of
    gradient and activation then show a grid. The gradient w.r.t. the pooled activation is the sum over its 2x2 cell.

    Args:
        activations: ``(N, C, H, W)``.
        gradients: ``(N, C, H, W)``.

    Returns:
        Both as ``(N, C, ceil(H / 2), ceil(W / 2))``; cells cut by the border count what they hold.
    """
    pooled = F.avg_pool2d(activations, 2, ceil_mode=True, count_include_pad=False)
    padded = F.pad(gradients, (0, gradients.shape[3] % 2, 0, gradients.shape[2] % 2))
    return pooled, F.avg_pool2d(padded, 2, divisor_override=1)


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


def min_max_scale(maps: Tensor) -> Tensor:
    """Bring the minimum of each map to 0 and its maximum to 1, as Zoom-CAM does before fusion (Eq. 10).

    Args:
        maps: ``(N, H, W)``.

    Returns:
        ``(N, H, W)`` in [0,1]. A constant map locates nothing and becomes zero everywhere.
    """
    return scale_to_peak(maps - maps.amin(dim=(1, 2), keepdim=True))


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
