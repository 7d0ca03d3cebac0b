"""Segmentation networks: image in, one logit per pixel and label out, at the size of the image."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsss.errors import ConfigError
from wsss.models import weights as pretrained
from wsss.models.classifier import IMAGENET_MEAN, IMAGENET_STD


class Segmenter(nn.Module):
    """A network of segmentation-models-pytorch that takes RGB in [0,1] of any size.

    Args:
        architecture: a class of segmentation_models_pytorch, for example ``DeepLabV3Plus``.
        encoder: an encoder that smp knows; ``tu-NAME`` is any timm encoder.
        num_labels: C + 1, background included.
        weights: of the encoder: ``bundled``, ``imagenet``, a path, or None for random weights.
        options: passed on to the architecture.

    Raises:
        ConfigError: unknown architecture or encoder, or weights that are not to be had.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, *, architecture: str, encoder: str, num_labels: int, weights: str | None = None, **options: object
    ) -> None:
        super().__init__()
        build = getattr(smp, architecture, None)
        if build is None:
            raise ConfigError(f"segmentation_models_pytorch has no architecture {architecture!r}")
        try:
            for option in options:  # timm refuses those it does not know; smp's own encoders would ignore them
                if not encoder.startswith("tu-") and option not in signature(build).parameters:
                    raise ConfigError(f"{architecture} cannot be built on {encoder}: it has no option {option!r}")
            self.network = build(encoder_name=encoder, encoder_weights=None, classes=num_labels, **options)
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise ConfigError(f"{architecture} cannot be built on {encoder}: {error}") from error
        if weights is not None:
            self._load_encoder(encoder, weights)
        mean, std = _statistics(encoder)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    @property
    def encoder(self) -> Any:
        """The pretrained part."""
        return self.network.encoder

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, C+1, H, W)`` of ``(N, 3, H, W)`` RGB images in [0,1].

        Sides that are no multiple of 32 are padded with zeros after the normalisation and cut again at the end.
        """
        height, width = images.shape[-2:]
        normalised = F.pad((images - self.mean) / self.std, (0, -width % 32, 0, -height % 32))
        return self.network(normalised)[..., :height, :width]

    def _load_encoder(self, encoder: str, weights: str) -> None:
        if not encoder.startswith("tu-"):
            if weights == pretrained.BUNDLE:
                raise ConfigError(f"no bundled weights for {encoder}; they belong to tu-tf_efficientnet_lite0/1/2")
            if weights == pretrained.IMAGENET:
                state = pretrained.download(lambda: _smp_state(encoder), encoder)
            else:
                state = pretrained.file_state(weights)
            # encoders have no classifier; a file of the whole network does
            state = {name: tensor for name, tensor in state.items() if not name.startswith(("fc.", "classifier."))}
            pretrained.load(self.encoder, state, source=weights)
            return
        state = pretrained.timm_state(encoder.removeprefix("tu-"), weights)
        wanted = self.encoder.model.state_dict()
        missing = [name for name in wanted if name not in state]
        if missing:
            raise ConfigError(f"the weights {weights} lack {missing[0]} of the encoder {encoder}")
        pretrained.load(self.encoder.model, {name: state[name] for name in wanted}, source=weights)


def _smp_state(encoder: str) -> pretrained.StateDict:
    return smp.encoders.get_encoder(encoder, weights="imagenet").state_dict()


def _statistics(encoder: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation that the encoder's ImageNet weights expect."""
    if not encoder.startswith("tu-"):
        return IMAGENET_MEAN, IMAGENET_STD
    config = timm.get_pretrained_cfg(encoder.removeprefix("tu-"))
    return (tuple(config.mean), tuple(config.std)) if config else (IMAGENET_MEAN, IMAGENET_STD)


def predict_labels(
    network: nn.Module, image: Tensor, *, scales: Sequence[float] = (1.0,), flip: bool = False
) -> Tensor:
    """The most probable label of each pixel, averaged over views.

    Args:
        network: gives logits ``(N, C+1, h, w)`` of ``(N, 3, h, w)`` images.
        image: ``(3, H, W)`` RGB in [0,1].
        scales: sizes of the views relative to the image.
        flip: whether each view is also seen mirrored.

    Returns:
        ``(H, W)`` uint8 labels.
    """
    size = image.shape[-2:]
    total: Tensor | None = None
    for scale in scales:
        view = image[None]
        if scale != 1:
            side = [max(32, round(length * scale)) for length in size]
            view = F.interpolate(view, size=side, mode="bilinear", align_corners=False, antialias=scale < 1)
        logits = network(torch.cat([view, view.flip(-1)]) if flip else view).float()
        probabilities = logits.softmax(dim=1)
        merged = (probabilities[:1] + probabilities[1:].flip(-1)) if flip else probabilities
        merged = F.interpolate(merged, size=size, mode="bilinear", align_corners=False) if scale != 1 else merged
        total = merged if total is None else total + merged
    if total is None:
        raise ValueError("predict_labels needs at least one scale")
    return total[0].argmax(dim=0).to(torch.uint8)
