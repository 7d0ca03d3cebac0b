"""The networks of the DeepLab papers as published, on torchvision's and timm's encoders."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from wsss.errors import ConfigError
from wsss.models import weights as pretrained
from wsss.models.classifier import IMAGENET_MEAN, IMAGENET_STD, RESNETS, _torchvision_state
from wsss.models.segmenter import SegmentationNetwork, load_timm_features

STRIDE = 8
VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Channels of the convolutions before each pooling layer."""
WIDTH = 1024
"""Channels of fc6 and fc7 of the LargeFOV network."""


class DeepLab(SegmentationNetwork):
    """An encoder of stride 8 and a head of one convolution or several, enlarged bilinearly.

    Feature k of a row sees pixel 8k in its middle. Padding sides to 8k + 1 therefore puts the first and the last
    feature on the first and the last pixel, and interpolation with aligned corners shifts nothing. The papers get the
    same from crops of 321 = 8 * 40 + 1 pixels.

    Args:
        backbone: normalised images -> features of stride 8, all of it pretrained where weights are at hand.
        head: features -> logits of stride 8.
        mean: of the images that the backbone expects.
        std: likewise.
    """

    step, offset = STRIDE, 1

    def __init__(
        self, backbone: nn.Module, head: nn.Module, *, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        super().__init__(mean=mean, std=std)
        self.backbone, self.head = backbone, head

    @property
    def encoder(self) -> nn.Module:
        """The backbone."""
        return self.backbone

    def dense(self, normalised: Tensor) -> Tensor:
        """Logits ``(N, C+1, H, W)`` of normalised images ``(N, 3, H, W)`` whose sides are 8k + 1."""
        coarse = self.head(self.backbone(normalised))
        return F.interpolate(coarse, size=normalised.shape[-2:], mode="bilinear", align_corners=True)


class LargeFOV(DeepLab):
    """DeepLab-LargeFOV on VGG16 (Chen et al., ICLR 2015; TPAMI 2018, section 4.1.1), used in LayerCAM's experiments.

    VGG16 with pooling windows of 3x3, stride 1 in pool4 and pool5, dilation 2 in conv5, an average pooling before fc6
    as in the authors' model files, fc6 as a 3x3 convolution of dilation 12, and fc6 and fc7 with 1024 channels: with
    21 labels 20.5 million parameters. The encoder goes up to fc7; fc8, the head, is the one new layer.

    From ImageNet weights, fc6 and fc7 are thinned out (see ``thinned_fc6``). torchvision's weights are others than the
    Caffe weights that the papers start from, with RGB images of unit deviation in place of BGR images in 0..255.

    Args:
        num_labels: C + 1, background included.
        weights: of the whole of torchvision's VGG16: ``imagenet``, a path, or None for random weights.

    Raises:
        ConfigError: weights that are not to be had.
    """

    def __init__(self, *, num_labels: int, weights: str | None = None) -> None:
        backbone = nn.Sequential(OrderedDict(features=_vgg16_features(), classifier=_large_fov()))
        if weights is None:
            for module in backbone.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                    _zero_bias(module)
        else:
            backbone.load_state_dict(_large_fov_state(weights))
        super().__init__(backbone, _new_convolution(WIDTH, num_labels), mean=IMAGENET_MEAN, std=IMAGENET_STD)


def _vgg16_features() -> nn.Sequential:
    """conv1 to pool5 with torchvision's numbering of the layers, and the average pooling after them."""
    layers: list[nn.Module] = []
    inputs = 3
    for stage, widths in enumerate(VGG16, start=1):
        for width in widths:
            dilation = 2 if stage == 5 else 1
            layers += [nn.Conv2d(inputs, width, 3, padding=dilation, dilation=dilation), nn.ReLU(inplace=True)]
            inputs = width
        layers.append(nn.MaxPool2d(3, stride=2 if stage <= 3 else 1, padding=1))
    return nn.Sequential(*layers, nn.AvgPool2d(3, stride=1, padding=1))


def _large_fov() -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            fc6=nn.Conv2d(VGG16[-1][-1], WIDTH, 3, padding=12, dilation=12),
            relu6=nn.ReLU(inplace=True),
            drop6=nn.Dropout(0.5),
            fc7=nn.Conv2d(WIDTH, WIDTH, 1),
            relu7=nn.ReLU(inplace=True),
            drop7=nn.Dropout(0.5),
        )
    )


def _large_fov_state(weights: str) -> pretrained.StateDict:
    """The state dict of the encoder of LargeFOV from that of torchvision's VGG16."""
    with torch.device("meta"):  # the names and shapes are wanted, not half a gigabyte of random numbers
        expected = torchvision.models.vgg16(init_weights=False).state_dict()
    state = _torchvision_state(weights, torchvision.models.VGG16_Weights.IMAGENET1K_V1)
    wrong = [name for name in expected if name not in state or state[name].shape != expected[name].shape]
    wrong += [name for name in state if name not in expected]
    if wrong:
        raise ConfigError(
            f"the weights {weights} are not those of torchvision's VGG16: {len(wrong)} tensors are missing, left over "
            f"or of another shape, the first is {wrong[0]}"
        )
    own = {name: tensor for name, tensor in state.items() if name.startswith("features.")}
    for layer, source, thinned in (("fc6", "classifier.0", thinned_fc6), ("fc7", "classifier.3", thinned_fc7)):
        own[f"classifier.{layer}.weight"] = thinned(state[f"{source}.weight"])
        own[f"classifier.{layer}.bias"] = state[f"{source}.bias"][:: 4096 // WIDTH]
    return own


def thinned_fc6(weight: Tensor) -> Tensor:
    """VGG16's fc6 as a 3x3 convolution with 1024 channels: every fourth output, every third row and column.

    The paper (ICLR 2015, section 3.1) tells of simple decimation in space and of 1024 in place of 4096 channels; which
    of the channels are kept it does not tell.

    Args:
        weight: ``(4096, 25088)``, the inputs being 512 channels of 7 rows and 7 columns.

    Returns:
        ``(1024, 512, 3, 3)``.
    """
    return weight.view(-1, VGG16[-1][-1], 7, 7)[:: 4096 // WIDTH, :, ::3, ::3]


def thinned_fc7(weight: Tensor) -> Tensor:
    """VGG16's fc7 between the outputs that are kept of fc6 and of fc7.

    Args:
        weight: ``(4096, 4096)``.

    Returns:
        ``(1024, 1024, 1, 1)``.
    """
    return weight[:: 4096 // WIDTH, :: 4096 // WIDTH, None, None]


class Aspp(nn.Module):
    """Atrous spatial pyramid pooling of DeepLab-v2: dilated 3x3 convolutions side by side, their logits summed.

    Args:
        features: channels in.
        num_labels: channels out.
        rates: dilation of each branch.
    """

    def __init__(self, features: int, num_labels: int, *, rates: Sequence[int]) -> None:
        super().__init__()
        self.branches = nn.ModuleList([_new_convolution(features, num_labels, rate=rate) for rate in rates])

    def forward(self, features: Tensor) -> Tensor:
        """Logits ``(N, C+1, h, w)`` of features ``(N, D, h, w)``."""
        return torch.stack([branch(features) for branch in self.branches]).sum(dim=0)


class DeepLabV2(DeepLab):
    """DeepLab-v2 (Chen et al., TPAMI 2018, section 3): an encoder of stride 8, ASPP, the maximum over scales.

    With ``scales``, an image is seen in these sizes besides its own. The logits of each are brought to the size of the
    image, and the largest of each label counts, in training as in the test. The loss is the sum of that of each size
    and that of the maximum, as in the authors' model files, where the labels are made as small as the features instead.

    Args:
        backbone: as for ``DeepLab``.
        features: its channels.
        num_labels: C + 1, background included.
        scales: further sizes relative to the image, 0.5 and 0.75 in the paper; none: the image as it is.
        rates: dilations of the ASPP.
        mean: as for ``DeepLab``.
        std: likewise.

    Raises:
        ConfigError: scales that are not positive, or no rates.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        features: int,
        num_labels: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        scales: Sequence[float] = (),
        rates: Sequence[int] = (6, 12, 18, 24),
    ) -> None:
        if not all(scale > 0 for scale in scales):
            raise ConfigError(f"segmenter.scales={list(scales)} must be positive")
        if not rates or not all(rate >= 1 for rate in rates):
            raise ConfigError(f"segmenter.rates={list(rates)} must be one or more dilations of 1 or more")
        super().__init__(backbone, Aspp(features, num_labels, rates=rates), mean=mean, std=std)
        self.scales = tuple(scales)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, C+1, H, W)`` of ``(N, 3, H, W)`` RGB images in [0,1]: the maximum over the scales."""
        return self.training_outputs(images)[-1]

    def training_outputs(self, images: Tensor) -> tuple[Tensor, ...]:
        """The logits of the image, of each further scale, and their maximum, each ``(N, C+1, H, W)``."""
        size = images.shape[-2:]
        outputs = [super().forward(images)]
        for scale in self.scales:
            smaller = [max(1, int(side * scale + 0.5)) for side in size]
            logits = super().forward(F.interpolate(images, size=smaller, mode="bilinear", align_corners=False))
            outputs.append(F.interpolate(logits, size=size, mode="bilinear", align_corners=False))
        return (*outputs, torch.stack(outputs).amax(dim=0)) if self.scales else (outputs[0],)


class ResNetDeepLabV2(DeepLabV2):
    """DeepLab-v2 on torchvision's ResNet-50 or -101.

    The strides of layer3 and layer4 are traded for dilation such that each weight sees what it was trained on. In
    torchvision's ResNets the 3x3 convolution of a stage's first block carries the stride, so it keeps the dilation of
    the stage before (1, 2) and those after it have 2 and 4. In the Caffe model of the paper the 1x1 convolution before
    it carries the stride, so all 3x3 convolutions of a stage have 2 and 4. The first pooling is padded on both sides
    here, in Caffe on the right alone.

    Args:
        num_labels: C + 1, background included.
        depth: 50 or 101.
        weights: of the whole of torchvision's network: ``imagenet``, a path, or None for random weights.
        options: ``scales`` and ``rates``, see ``DeepLabV2``.

    Raises:
        ConfigError: another depth, or weights that are not to be had.
    """

    def __init__(self, *, num_labels: int, depth: int = 101, weights: str | None = None, **options: Any) -> None:
        if depth not in RESNETS:
            raise ConfigError(f"segmenter.depth={depth} is none of {sorted(RESNETS)}; timm has other ResNets")
        construct: Callable[..., Any] = RESNETS[depth][0]
        model = construct(replace_stride_with_dilation=[False, True, True])
        if weights is not None:
            pretrained.load(model, _torchvision_state(weights, RESNETS[depth][1]), source=weights)
        names = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
        backbone = nn.Sequential(OrderedDict((name, getattr(model, name)) for name in names))
        super().__init__(
            backbone, features=2048, num_labels=num_labels, mean=IMAGENET_MEAN, std=IMAGENET_STD, **options
        )


class TimmFeatures(nn.Module):
    """The last feature block of a timm network that was made with ``features_only=True``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Features ``(N, D, h, w)`` of normalised images."""
        return self.model(images)[-1]


class TimmDeepLabV2(DeepLabV2):
    """DeepLab-v2's head on any timm encoder that can be dilated to stride 8.

    Args:
        encoder: a name that timm knows, for example ``tf_efficientnet_lite0``.
        num_labels: C + 1, background included.
        weights: ``bundled``, ``imagenet``, a path, or None for random weights.
        options: ``scales`` and ``rates``, see ``DeepLabV2``.

    Raises:
        ConfigError: unknown or unsuitable encoder, or weights that are not to be had.
    """

    def __init__(self, *, encoder: str, num_labels: int, weights: str | None = None, **options: Any) -> None:
        try:
            model: Any = timm.create_model(encoder, features_only=True, output_stride=STRIDE, out_indices=(-1,))
        except (RuntimeError, TypeError, AssertionError, NotImplementedError, AttributeError) as error:
            reason = str(error) or "it cannot be dilated"
            raise ConfigError(
                f"timm cannot build {encoder} with stride {STRIDE} ({reason}); choose a ResNet, a MobileNetV2 or an "
                f"EfficientNet"
            ) from error
        if weights is not None:
            load_timm_features(model, encoder, weights)
        default = timm.get_pretrained_cfg(encoder)
        super().__init__(
            TimmFeatures(model),
            features=model.feature_info.channels()[-1],
            num_labels=num_labels,
            mean=tuple(default.mean) if default else IMAGENET_MEAN,
            std=tuple(default.std) if default else IMAGENET_STD,
            **options,
        )


def _new_convolution(features: int, num_labels: int, *, rate: int | None = None) -> nn.Conv2d:
    """The papers' last layer, normal with deviation 0.01 and no bias at first: 1x1, or 3x3 with dilation ``rate``."""
    convolution = (
        nn.Conv2d(features, num_labels, 1)
        if rate is None
        else nn.Conv2d(features, num_labels, 3, padding=rate, dilation=rate)
    )
    nn.init.normal_(convolution.weight, std=0.01)
    _zero_bias(convolution)
    return convolution


def _zero_bias(convolution: nn.Conv2d) -> None:
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
