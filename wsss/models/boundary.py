"""Class boundaries from the features of a trained classifier (the boundary branch of IRN)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsss.errors import ConfigError
from wsss.models.classifier import Classifier
from wsss.models.structure import TRACE_SIDE, outputs_of

_GROUPS = 4


class BoundaryNetwork(nn.Module):
    """The probability that a class boundary runs through each cell (IRN; Ahn, Cho and Kwak, CVPR 2019, section 4).

    The outputs of the classifier's stages go through a 1x1 convolution with group normalisation and ReLU each, are
    brought to one size and weighed against each other by one more 1x1 convolution. The encoder learns nothing: it has
    no gradients and stays in evaluation mode, so that its batch norm does not drift either.

    The encoder is taken over, not copied: freezing it freezes that of ``classifier`` too.

    Args:
        classifier: trained; its encoder and stages are used, its head is not.
        stages: which of its stages are looked at.
        channels: of each stage after its convolution, a multiple of 4 (the groups of the normalisation).
        stride: image pixels to a cell.

    Attributes:
        encoder: that of the classifier.
        projections: stage -> its convolution, normalisation and ReLU.
        head: the last convolution.

    Raises:
        ConfigError: a choice of stages, channels or stride that cannot be.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        classifier: Classifier,
        stages: Sequence[int] = (1, 2, 3, 4, 5),
        channels: int = 32,
        stride: int = 4,
    ) -> None:
        super().__init__()
        if not stages or len(set(stages)) < len(stages):
            raise ConfigError(f"boundaries: stages={list(stages)} must name one or more different stages")
        if channels < _GROUPS or channels % _GROUPS or stride < 1:
            raise ConfigError(
                f"boundaries: channels={channels} must be a multiple of {_GROUPS} and stride={stride} 1 or more"
            )
        self.encoder = classifier.encoder.requires_grad_(False)
        self.stride = stride
        self._layers = {stage: classifier.layer(stage) for stage in stages}
        self.register_buffer("mean", classifier.mean.clone(), persistent=False)
        self.register_buffer("std", classifier.std.clone(), persistent=False)
        self.eval()
        blocks = self._stage_outputs(self.mean.new_zeros((1, 3, TRACE_SIDE, TRACE_SIDE)))
        for stage, block in blocks.items():
            if block.ndim != 4:
                raise ConfigError(f"boundaries: stage {stage} ({self._layers[stage]}) gives no feature map")
        self.projections = nn.ModuleDict(
            {str(stage): _projection(block.shape[1], channels) for stage, block in blocks.items()}
        )
        self.head = nn.Conv2d(len(blocks) * channels, 1, kernel_size=1)
        self.train()

    def train(self, mode: bool = True) -> BoundaryNetwork:
        """Training or evaluation mode of the new layers; the encoder stays in evaluation mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Logits of a boundary, ``(N, ceil(H / stride), ceil(W / stride))``, of ``(N, 3, H, W)`` RGB in [0,1]."""
        height, width = images.shape[-2:]
        size = (-(-height // self.stride), -(-width // self.stride))
        blocks = self._stage_outputs(images)
        projected = [projection(blocks[int(stage)]) for stage, projection in self.projections.items()]
        resized = [F.interpolate(block, size=size, mode="bilinear", align_corners=False) for block in projected]
        return self.head(torch.cat(resized, dim=1)).squeeze(1)

    @torch.no_grad()
    def boundaries(self, image: Tensor) -> Tensor:
        """Probabilities of a boundary, the logits being the mean of those of the image and of its mirror image.

        Args:
            image: ``(3, H, W)`` RGB in [0,1].

        Returns:
            ``(ceil(H / stride), ceil(W / stride))`` in [0,1].
        """
        upright, mirrored = self(torch.stack([image, image.flip(-1)])).float()
        return ((upright + mirrored.flip(-1)) / 2).sigmoid()

    @torch.no_grad()
    def _stage_outputs(self, images: Tensor) -> dict[int, Tensor]:
        modules = {stage: self.get_submodule(layer) for stage, layer in self._layers.items()}
        with outputs_of(modules) as outputs:
            self.encoder((images - self.mean) / self.std)
        return {stage: outputs[stage] for stage in self._layers}


def _projection(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, width, kernel_size=1, bias=False), nn.GroupNorm(_GROUPS, width), nn.ReLU())
