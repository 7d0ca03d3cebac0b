"""Multiplicative fusion of the features of several stages, before pooling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def multiply(features: Sequence[Tensor]) -> Tensor:
    """Elementwise product at one size (proposed in the LayerCAM slides: "multiplicative feature fusion").

    Args:
        features: ``(N, D, h, w)`` blocks of any sizes; at least one.

    Returns:
        ``(N, D, H, W)`` at the size of the finest, to which the others are brought bilinearly, corners not aligned.
    """
    size = max((block.shape[-2:] for block in features), key=prod)
    resized = (
        block if block.shape[-2:] == size else F.interpolate(block, size=size, mode="bilinear", align_corners=False)
        for block in features
    )
    return reduce(torch.mul, resized)


class StageFusion(nn.Module):
    """Multiplies the last feature block with projections of shallower ones.

    The slides assume blocks of equal shape. Those of a network differ in their channels, so each shallower block goes
    through a 1x1 convolution and a ReLU first. This projection is ours, and so is its start: a factor near 1, under
    which the pretrained features survive.

    Args:
        channels: stage -> channels of its output, without the last stage.
        features: D, the channels of the last feature block.
    """

    def __init__(self, channels: Mapping[int, int], *, features: int) -> None:
        super().__init__()
        self.projections = nn.ModuleDict(
            {str(stage): _projection(width, features) for stage, width in channels.items()}
        )

    @property
    def stages(self) -> list[int]:
        """The stages that are projected."""
        return [int(stage) for stage in self.projections]

    def forward(self, last: Tensor, shallower: Mapping[int, Tensor]) -> Tensor:
        """The fused block.

        Args:
            last: ``(N, D, h, w)``.
            shallower: stage -> its output ``(N, C, h', w')``.

        Returns:
            ``(N, D, H, W)`` at the size of the finest of all.
        """
        factors = [self.projections[str(stage)](shallower[stage]).relu() for stage in self.stages]
        return multiply([last, *factors])


def _projection(channels: int, features: int) -> nn.Conv2d:
    projection = nn.Conv2d(channels, features, kernel_size=1)
    # small against the bias, not zero: a hundredth of the root mean square of the stage's features
    nn.init.normal_(projection.weight, std=0.01 / channels**0.5)
    nn.init.ones_(projection.bias)  # type: ignore[arg-type]
    return projection
