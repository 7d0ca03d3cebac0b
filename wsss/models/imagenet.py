"""An encoder with the ImageNet classifier that it was published with, as a ``Classifier``: maps without training."""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.data import ImageNetInfo
from torch import Tensor, nn

from wsss.errors import ConfigError
from wsss.models import weights as pretrained
from wsss.models.classifier import TimmClassifier

CLASSES = 1000


class ImageNetClassifier(TimmClassifier):
    """A timm model of the thousand ImageNet classes: pooling, and the linear layer's weights as the 1x1 head.

    Class ids are 1..1000, ImageNet's numbers plus one. The linear layer has a bias, which ``classify`` adds:
    predictions need it. Maps do not, for a constant has no gradient and no place.

    Args:
        encoder: a name that timm knows, of a model that ends in global average pooling and one linear layer.
        weights: of the whole model: ``bundled``, ``imagenet``, a path, or None for random ones.
        options: see ``TimmClassifier``.

    Attributes:
        test_side: the short side, in pixels, to which images are resized in the model's usual test.

    Raises:
        ConfigError: the weights are not to be had, or the model does something else between features and logits.
    """

    bias: Tensor

    def __init__(self, *, encoder: str, weights: str | None = None, **options: Any) -> None:
        super().__init__(encoder=encoder, num_classes=CLASSES, **options)
        stride = options.get("output_stride", 32)
        model: Any = timm.create_model(encoder, **({} if stride == 32 else {"output_stride": stride})).eval()
        if weights is not None:
            pretrained.load(model, pretrained.timm_state(encoder, weights), source=weights)
        self.test_side = round(model.default_cfg["input_size"][-1] / (model.default_cfg.get("crop_pct") or 1))

        linear = model.get_classifier()
        wanted = (CLASSES, self.head.in_channels)
        if not isinstance(linear, nn.Linear) or linear.weight.shape != wanted:
            raise _unsuitable(encoder)
        state = model.state_dict()
        own: Any = self.encoder.model
        own.load_state_dict({name: state[name] for name in own.state_dict()})
        self.head.weight = nn.Parameter(linear.weight.detach()[:, :, None, None].clone())
        bias = torch.zeros(CLASSES) if linear.bias is None else linear.bias.detach().clone()
        self.register_buffer("bias", bias)
        if not self._agrees_with(model):
            raise _unsuitable(encoder)

    def classify(self, features: Tensor) -> Tensor:
        """Logits ``(N, 1000)`` of a feature block ``(N, D, h, w)``."""
        return super().classify(features) + self.bias

    @torch.no_grad()
    def _agrees_with(self, model: nn.Module) -> bool:
        """Whether the logits are those of timm's own model: a norm between pooling and linear layer shows here."""
        images = torch.rand((1, 3, 96, 96), generator=torch.Generator().manual_seed(0))
        expected = model((images - self.mean) / self.std)
        training = self.training
        found = self.eval()(images)
        self.train(training)
        return bool((found - expected).abs().max() <= 1e-3 * expected.abs().max())


def _unsuitable(encoder: str) -> ConfigError:
    return ConfigError(
        f"{encoder}, as configured, does not end in global average pooling and one linear layer of {CLASSES} ImageNet "
        f"classes, on which maps of these classes rest. Choose an EfficientNet-Lite, a ResNet or a MobileNetV2 of timm"
    )


def class_names() -> list[tuple[str, ...]]:
    """The thousand ImageNet classes in their order, each with its synonyms, the usual one first.

    >>> class_names()[1], class_names()[207]
    (('goldfish', 'Carassius auratus'), ('golden retriever',))
    """
    info = ImageNetInfo()
    return [tuple(info.index_to_description(index).split(", ")) for index in range(CLASSES)]
