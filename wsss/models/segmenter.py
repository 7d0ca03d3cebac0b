"""Segmentation networks: image in, one logit per pixel and label out, at the size of the image."""

from __future__ import annotations

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


class SegmentationNetwork(nn.Module):
    """What all segmentation networks share: images are RGB in [0,1] of any size, logits have the size of the image.

    The network normalises the images itself, pads them with zeros at the right and at the bottom to a size that suits
    its strides, and cuts the logits again.

    Args:
        mean: of the images that the encoder expects.
        std: likewise.

    Attributes:
        step, offset: padded sides leave the remainder ``offset`` when they are divided by ``step``.
    """

    step, offset = 32, 0
    mean: Tensor
    std: Tensor

    def __init__(self, *, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    @property
    def encoder(self) -> nn.Module:
        """The pretrained layers, all of them and no other."""
        raise NotImplementedError

    def dense(self, normalised: Tensor) -> Tensor:
        """Logits ``(N, C+1, H, W)`` of normalised and padded images ``(N, 3, H, W)``."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, C+1, H, W)`` of ``(N, 3, H, W)`` RGB images in [0,1]."""
        height, width = images.shape[-2:]
        missing = (0, (self.offset - width) % self.step, 0, (self.offset - height) % self.step)
        return self.dense(F.pad((images - self.mean) / self.std, missing))[..., :height, :width]

    def training_outputs(self, images: Tensor) -> tuple[Tensor, ...]:
        """The logits, each ``(N, C+1, H, W)``, over which the loss of a training step is summed."""
        return (self(images),)


class Segmenter(SegmentationNetwork):
    """A network of segmentation-models-pytorch. Sides are padded to multiples of 32, which its encoders ask for.

    Args:
        architecture: a class of segmentation_models_pytorch, for example ``DeepLabV3Plus``.
        encoder: an encoder that smp knows; ``tu-NAME`` is any timm encoder.
        num_labels: C + 1, background included.
        weights: of the encoder: ``bundled``, ``imagenet``, a path, or None for random weights.
        options: passed on to the architecture.

    Raises:
        ConfigError: unknown architecture or encoder, or weights that are not to be had.
    """

    def __init__(
        self, *, architecture: str, encoder: str, num_labels: int, weights: str | None = None, **options: object
    ) -> None:
        mean, std = _statistics(encoder)
        super().__init__(mean=mean, std=std)
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

    @property
    def encoder(self) -> Any:
        """The pretrained part."""
        return self.network.encoder

    def dense(self, normalised: Tensor) -> Tensor:
        """Logits ``(N, C+1, H, W)`` of normalised images ``(N, 3, H, W)`` whose sides are multiples of 32."""
        return self.network(normalised)

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
        load_timm_features(self.encoder.model, encoder, weights)


def load_timm_features(model: nn.Module, encoder: str, weights: str) -> None:
    """Load into a timm feature extractor its share of the weights of the whole network.

    A feature extractor has the layers up to its last feature block. Some have their stages side by side, and name them
    ``layers_0`` where the whole network has ``layers.0``.

    Args:
        model: made by timm with ``features_only=True``.
        encoder: its name, with or without the ``tu-`` of smp.
        weights: ``bundled``, ``imagenet`` or a path.

    Raises:
        ConfigError: the weights are not to be had, or do not fit.
    """
    state = pretrained.timm_state(encoder.removeprefix("tu-"), weights)
    state |= {name.replace(".", "_", 1): tensor for name, tensor in state.items()}
    wanted = model.state_dict()
    missing = [name for name in wanted if name not in state]
    if missing:
        raise ConfigError(f"the weights {weights} lack {missing[0]} of the encoder {encoder}")
    pretrained.load(model, {name: state[name] for name in wanted}, source=weights)


def _smp_state(encoder: str) -> pretrained.StateDict:
    return smp.encoders.get_encoder(encoder, weights="imagenet").state_dict()


def _statistics(encoder: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation that the encoder's ImageNet weights expect."""
    if not encoder.startswith("tu-"):
        return IMAGENET_MEAN, IMAGENET_STD
    config = timm.get_pretrained_cfg(encoder.removeprefix("tu-"))
    return (tuple(config.mean), tuple(config.std)) if config else (IMAGENET_MEAN, IMAGENET_STD)
