"""How a feature block becomes one vector an item, as pure functions of tensors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from wsss.errors import ConfigError

Pooling = Callable[[Tensor], Tensor]


def pooling_named(name: str, *, tap_threshold: float) -> Pooling:
    """The pooling that a configuration names.

    Args:
        name: ``gap`` (``global_average``) or ``tap`` (``thresholded_average``).
        tap_threshold: theta of ``tap``.

    Raises:
        ConfigError: there is no such pooling, or theta lies outside [0,1).
    """
    poolings: dict[str, Pooling] = {
        "gap": global_average,
        "tap": partial(thresholded_average, threshold=tap_threshold),
    }
    if name not in poolings:
        raise ConfigError(f"classifier.pooling={name!r} is unknown; choose {' or '.join(poolings)}")
    if not 0 <= tap_threshold < 1:
        raise ConfigError(f"classifier.tap_threshold={tap_threshold} must lie in [0,1): it is a share of the maximum")
    return poolings[name]


def global_average(features: Tensor) -> Tensor:
    """Global average pooling: ``(N, D, h, w)`` to ``(N, D)``."""
    return features.mean(dim=(2, 3))


def thresholded_average(features: Tensor, *, threshold: float) -> Tensor:
    """Thresholded average pooling, TAP (Bae et al., "Revisiting CAM", 2020, Eq. 4).

    The mean of the values strictly above ``threshold`` times the maximum of their channel in that item, in training
    and in test, so that a small object is not averaged away. The threshold is a constant to autograd.

    Args:
        features: ``(N, D, h, w)``, activated.
        threshold: theta in [0,1).

    Returns:
        ``(N, D)``. A channel without a value above its threshold (a silent one) gives 0; a value that is not finite
        comes out as such.
    """
    peak = features.detach().amax(dim=(2, 3), keepdim=True).clamp(max=torch.finfo(features.dtype).max)
    kept = ~(features <= threshold * peak)  # `>` would drop NaN, and hide that a network has diverged
    return torch.where(kept, features, 0).sum(dim=(2, 3)) / kept.sum(dim=(2, 3)).clamp(min=1)
