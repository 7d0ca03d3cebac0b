"""Multi-label classifiers whose class activation map is exact: encoder, average pooling, bias-free linear head."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

from wsss.errors import ConfigError
from wsss.models import weights as pretrained
from wsss.models.fusion import StageFusion
from wsss.models.pooling import pooling_named
from wsss.models.structure import NORM_ACTS, TRACE_SIDE, Call, Layout, is_activated, layout, outputs_of, trace

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Classifier(nn.Module):
    """Encoder, pooling and a 1x1 convolution without bias.

    Images go in as RGB in [0,1]: the network normalises them itself, so that no stage can do it differently.

    Args:
        encoder: image -> last feature block ``(N, D, h, w)``.
        features: D.
        num_classes: C.
        stages: number of a stage (1 is the shallowest, 5 the last) -> the encoder's module whose output stands for it.
        mean: of the images that the encoder expects.
        std: likewise.
        pooling: ``gap``, global average pooling, or ``tap``, thresholded average pooling (see ``pooling``).
        tap_threshold: theta of ``tap``: 0.05 in the paper, 0.1 in its authors' earlier release.
        fused_stages: stages whose features are multiplied before pooling (see ``fusion``); the last stage, as which
            the encoder's output counts, and one more at least. Empty: the encoder's output alone.

    Attributes:
        encoder: as above.
        fusion: the projections of the fused stages; None where none are fused.
        head: ``(C, D, 1, 1)`` convolution; its weights are the w of CAM.
        stages: number of a stage -> name of its module.

    Raises:
        ConfigError: a pooling, threshold or choice of stages that cannot be.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        *,
        features: int,
        num_classes: int,
        stages: Mapping[int, str],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        pooling: str = "gap",
        tap_threshold: float = 0.05,
        fused_stages: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self._pooling = pooling_named(pooling, tap_threshold=tap_threshold)
        self.encoder = encoder
        self.head = nn.Conv2d(features, num_classes, kernel_size=1, bias=False)
        nn.init.normal_(self.head.weight, std=0.01)
        self.stages = {stage: f"encoder.{name}" if name else "encoder" for stage, name in stages.items()}
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        widths = self._channels(self._shallower_stages(fused_stages))
        self.fusion = StageFusion(widths, features=features) if widths else None

    def features(self, images: Tensor) -> Tensor:
        """What pooling sees: a block ``(N, D, h, w)`` of ``(N, 3, H, W)`` RGB images in [0,1].

        It is the last feature block, or with ``fused_stages`` the product of several, at the size of the finest.
        """
        normalised = (images - self.mean) / self.std
        if self.fusion is None:
            return self.encoder(normalised)
        fused = {stage: self.get_submodule(self.stages[stage]) for stage in self.fusion.stages}
        with outputs_of(fused) as shallower:
            last = self.encoder(normalised)
        return self.fusion(last, shallower)

    def pool(self, features: Tensor) -> Tensor:
        """One vector an item, ``(N, D)``, of a feature block ``(N, D, h, w)``."""
        return self._pooling(features)

    def classify(self, features: Tensor) -> Tensor:
        """Logits ``(N, C)`` of a feature block ``(N, D, h, w)``."""
        return self.head(self.pool(features)[:, :, None, None]).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, C)`` of ``(N, 3, H, W)`` RGB images in [0,1]."""
        return self.classify(self.features(images))

    def layer(self, which: int | str) -> str:
        """The module name of a stage number, or of a module name itself.

        Raises:
            ConfigError: there is no such stage or module.
        """
        if isinstance(which, int):
            if which not in self.stages:
                raise ConfigError(f"no stage {which}: this classifier has the stages {sorted(self.stages)}")
            return self.stages[which]
        if which not in dict(self.named_modules()):
            raise ConfigError(f"no module {which!r} in this classifier; its stages are {self.stages}")
        return which

    def parameters_up_to(self, stage: int) -> list[nn.Parameter]:
        """The parameters that lie before or in ``stage`` (0: none), in the order of definition."""
        if stage == 0:
            return []
        owner = self.layer(stage)
        names = [name for name, _ in self.named_parameters()]
        last = max((i for i, name in enumerate(names) if name.startswith(f"{owner}.")), default=None)
        if last is None:  # an activation has no parameters of its own: take all of the modules listed before it
            before = [name for name, _ in self.named_modules()]
            earlier = set(before[: before.index(owner)])
            last = max(i for i, name in enumerate(names) if name.rpartition(".")[0] in earlier)
        return list(self.parameters())[: last + 1]

    @property
    def activated(self) -> dict[str, int]:
        """The layers whose output is an activated feature map, in the order of execution -> input pixels per position.

        All that Zoom-CAM can look at: each runs once in a forward pass, and each tensor has one name, that of a stage
        where one stands for it. An activation that is a plain function call, or a module that runs several times (as
        in torchvision's ResNets), counts where a module that runs once returns its tensor. Gates without positions do
        not count. Strides are rounded to powers of two.
        """
        return self._layout.activated

    @property
    def map_layers(self) -> frozenset[str]:
        """The modules that give one feature map ``(N, D, h, w)`` with several positions in each forward pass."""
        return self._layout.maps

    def is_pooled(self, layer: str) -> bool:
        """Whether what pooling sees is the output of the module ``layer`` itself."""
        return self.fusion is None and layer in self._layout.ends

    @cached_property
    def _layout(self) -> Layout:
        return layout(self._trace(), image_side=TRACE_SIDE, preferred=set(self.stages.values()))

    def _trace(self) -> list[Call]:
        """The calls of the encoder's modules for one small blank image, under their names in this network."""
        with torch.no_grad():
            return trace(self.encoder, self.mean.new_zeros((1, 3, TRACE_SIDE, TRACE_SIDE)), prefix="encoder")

    def _shallower_stages(self, fused_stages: Sequence[int]) -> list[int]:
        """Those of ``fused_stages`` that go through a projection, checked."""
        if not fused_stages:
            return []
        fused, known = list(fused_stages), sorted(self.stages)
        if len(fused) != len(set(fused)) or not set(fused) <= set(known):
            raise ConfigError(f"classifier.fused_stages={fused} must name different ones of the stages {known}")
        if known[-1] not in fused or len(fused) < 2:
            raise ConfigError(
                f"classifier.fused_stages={fused} must hold the last stage, {known[-1]}, and one more at least"
            )
        return sorted(set(fused) - {known[-1]})

    def _channels(self, stages: Sequence[int]) -> dict[int, int]:
        """How many channels the outputs of ``stages`` have."""
        if not stages:
            return {}
        shapes = {call.name: call.output.shape for call in self._trace()}
        for stage in stages:
            if len(shapes.get(self.stages[stage], ())) != 4:
                raise ConfigError(f"stage {stage} ({self.stages[stage]}) gives no feature map to fuse")
        return {stage: shapes[self.stages[stage]][1] for stage in stages}


class TimmEncoder(nn.Module):
    """A timm model without pooling and classifier."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """The last feature block, after its activation where the network has one there."""
        return self.model.forward_features(images)


class TimmClassifier(Classifier):
    """Any convolutional timm encoder.

    Stages follow timm's reductions (2, 4, 8, 16, 32). A stage stands for the last *activated* tensor of its resolution:
    blocks that end in a linear projection (EfficientNet, MobileNet) have negative outputs, on which products of
    gradient and activation mean little. Stage 5 is what pooling sees.

    Args:
        encoder: a name that timm knows, for example ``tf_efficientnet_lite0``.
        num_classes: C.
        weights: ``bundled``, ``imagenet``, a path, or None for random weights.
        output_stride: 32, or 16 or 8 where the encoder can be dilated.
        options: pooling and fused stages, see ``Classifier``.

    Raises:
        ConfigError: unknown encoder, unsuitable encoder, or weights that are not to be had.
    """

    def __init__(
        self,
        *,
        encoder: str,
        num_classes: int,
        weights: str | None = None,
        output_stride: int = 32,
        **options: Any,
    ) -> None:
        dilated: dict[str, Any] = {} if output_stride == 32 else {"output_stride": output_stride}
        try:
            model: Any = timm.create_model(encoder, **dilated)
        except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
            raise ConfigError(f"timm cannot build {encoder} with output_stride={output_stride}: {error}") from error
        if weights is not None:
            pretrained.load(model, pretrained.timm_state(encoder, weights), source=weights)
        default = model.default_cfg
        try:
            model.reset_classifier(0, "")
            network = TimmEncoder(model)
            shapes = _shapes(network)
        except (AssertionError, RuntimeError) as error:  # transformers of one input size
            raise ConfigError(f"{encoder} gives no feature map ({error}); choose a convolutional encoder") from error
        if len(shapes[""]) != 4:
            raise ConfigError(f"{encoder} gives features of shape {tuple(shapes[''])}; choose a convolutional encoder")
        super().__init__(
            network,
            features=shapes[""][1],
            num_classes=num_classes,
            stages=_activated_stages(network, shapes, encoder),
            mean=tuple(default["mean"]),
            std=tuple(default["std"]),
            **options,
        )


def _activated_stages(network: TimmEncoder, shapes: Mapping[str, torch.Size], encoder: str) -> dict[int, str]:
    """Stage number -> the module whose output stands for the stage.

    A block that ends in an activation stands for itself. One that ends in a linear projection is followed, at the same
    resolution, by the expansion inside the next block: the last activated tensor before the resolution drops. Without
    such an expansion it is the last activated tensor inside the block.
    """
    info = getattr(network.model, "feature_info", None)
    if not info:
        raise ConfigError(f"{encoder} has no feature pyramid (timm's feature_info); choose a convolutional encoder")
    blocks = [f"model.{entry['module']}" for entry in (info if isinstance(info, list) else info.info)]
    order = [name for name in shapes if name]

    def activated(names: list[str], size: torch.Size) -> list[str]:
        # gates of squeeze-and-excitation are activated too, but have no positions
        return [name for name in names if is_activated(network.get_submodule(name)) and shapes[name][2:] == size]

    stages = {}
    for stage, block in enumerate(blocks, start=6 - len(blocks)):
        size, end = shapes[block][2:], order.index(block)
        inside = [name for name in order[: end + 1] if name == block or name.startswith(f"{block}.")]
        leaves = [name for name in inside if not any(other.startswith(f"{name}.") for other in inside)]
        following = [name for name in order[end + 1 :] if is_activated(network.get_submodule(name))]
        if is_activated(network.get_submodule(leaves[-1])):
            chosen = leaves[-1]
        else:
            chosen = (activated(following[:1], size) or activated(inside, size)[-1:] or [block])[0]
        stages[stage] = chosen
    head = activated(order[order.index(blocks[-1]) + 1 :], shapes[""][2:])  # a convolution after the last block
    if head:
        stages[5] = head[-1]
    return stages


def _shapes(network: TimmEncoder) -> dict[str, torch.Size]:
    """Output shape of each module for one small image, in the order in which they finish; ``""`` is the whole."""
    with torch.no_grad():
        calls = trace(network, torch.zeros(1, 3, TRACE_SIDE, TRACE_SIDE))
    # the parts of a BatchNormAct2d finish just before their owner, which stands for them
    owners = {call.name for call in calls if isinstance(call.module, NORM_ACTS)}
    return {call.name: call.output.shape for call in calls if call.name.rpartition(".")[0] not in owners}


class Vgg16Classifier(Classifier):
    """torchvision's VGG16 up to its last ReLU (stride 16), as LayerCAM and Zoom-CAM use it.

    Stage k is the last ReLU output before pooling layer k (``features`` 3, 8, 15, 22, 29).

    Args:
        num_classes: C.
        weights: ``imagenet``, a path, or None for random weights.
        options: pooling and fused stages, see ``Classifier``.

    Raises:
        ConfigError: weights that are not to be had.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        weights: str | None = None,
        **options: Any,
    ) -> None:
        model = torchvision.models.vgg16()
        if weights is not None:
            state = _torchvision_state(weights, torchvision.models.VGG16_Weights.IMAGENET1K_V1)
            pretrained.load(model, state, source=weights)
        super().__init__(
            model.features[:30],
            features=512,
            num_classes=num_classes,
            stages={1: "3", 2: "8", 3: "15", 4: "22", 5: "29"},
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            **options,
        )


class ResNetClassifier(Classifier):
    """torchvision's ResNet-50 or -101 with strides (2, 2, 2, 1): stride 16 without dilation, as IRN and LPCAM use it.

    Stages 2..5 are the outputs of layer1..layer4; stage 1 is the stem's activation.

    Args:
        depth: 50 or 101.
        num_classes: C.
        weights: ``imagenet``, a path, or None for random weights.
        options: pooling and fused stages, see ``Classifier``.

    Raises:
        ConfigError: another depth, or weights that are not to be had.
    """

    def __init__(
        self,
        *,
        depth: int,
        num_classes: int,
        weights: str | None = None,
        **options: Any,
    ) -> None:
        if depth not in RESNETS:
            raise ConfigError(f"classifier.depth={depth} is none of {sorted(RESNETS)}; timm has other ResNets")
        construct, imagenet = RESNETS[depth]
        model = construct()
        if weights is not None:
            pretrained.load(model, _torchvision_state(weights, imagenet), source=weights)
        for convolution in (model.layer4[0].conv2, model.layer4[0].downsample[0]):
            convolution.stride = (1, 1)
        names = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
        super().__init__(
            nn.Sequential(OrderedDict((name, getattr(model, name)) for name in names)),
            features=2048,
            num_classes=num_classes,
            stages={1: "relu", 2: "layer1", 3: "layer2", 4: "layer3", 5: "layer4"},
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            **options,
        )


RESNETS: dict[int, tuple[Callable[[], Any], torchvision.models.WeightsEnum]] = {
    50: (torchvision.models.resnet50, torchvision.models.ResNet50_Weights.IMAGENET1K_V1),
    101: (torchvision.models.resnet101, torchvision.models.ResNet101_Weights.IMAGENET1K_V1),
}


def _torchvision_state(weights: str, imagenet: torchvision.models.WeightsEnum) -> pretrained.StateDict:
    if weights == pretrained.BUNDLE:
        raise ConfigError(
            f"there are no bundled weights for torchvision networks. The options are {pretrained.OPTIONS}"
        )
    if weights == pretrained.IMAGENET:
        return pretrained.download(lambda: imagenet.get_state_dict(progress=False), str(imagenet))
    return pretrained.file_state(weights)
