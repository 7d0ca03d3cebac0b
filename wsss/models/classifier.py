"""Multi-label classifiers whose class activation map is exact: encoder, average pooling, bias-free linear head."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import timm
import torch
import torchvision
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from wsss.errors import ConfigError
from wsss.models import weights as pretrained

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.LeakyReLU, nn.PReLU, nn.Mish, nn.ELU)


class Classifier(nn.Module):
    """Encoder, global average pooling and a 1x1 convolution without bias.

    Images go in as RGB in [0,1]: the network normalises them itself, so that no stage can do it differently.

    Attributes:
        encoder: image -> last feature block ``(N, D, h, w)``.
        head: ``(C, D, 1, 1)`` convolution; its weights are the w of CAM.
        stages: number of a stage (1 is the shallowest, 5 the last) -> name of the module whose output stands for it.
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
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Conv2d(features, num_classes, kernel_size=1, bias=False)
        nn.init.normal_(self.head.weight, std=0.01)
        self.stages = {stage: f"encoder.{name}" for stage, name in stages.items()}
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def features(self, images: Tensor) -> Tensor:
        """The last feature block ``(N, D, h, w)`` of ``(N, 3, H, W)`` RGB images in [0,1]."""
        return self.encoder((images - self.mean) / self.std)

    def classify(self, features: Tensor) -> Tensor:
        """Logits ``(N, C)`` of a feature block ``(N, D, h, w)``."""
        return self.head(features.mean(dim=(2, 3), keepdim=True)).flatten(1)

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
    gradient and activation mean little. Stage 5 is what global average pooling sees.

    Args:
        encoder: a name that timm knows, for example ``tf_efficientnet_lite0``.
        num_classes: C.
        weights: ``bundled``, ``imagenet``, a path, or None for random weights.
        output_stride: 32, or 16 or 8 where the encoder can be dilated.

    Raises:
        ConfigError: unknown encoder, unsuitable encoder, or weights that are not to be had.
    """

    def __init__(self, *, encoder: str, num_classes: int, weights: str | None = None, output_stride: int = 32) -> None:
        options: dict[str, Any] = {} if output_stride == 32 else {"output_stride": output_stride}
        try:
            model: Any = timm.create_model(encoder, **options)
        except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
            raise ConfigError(f"timm cannot build {encoder} with output_stride={output_stride}: {error}") from error
        if weights is not None:
            pretrained.load(model, pretrained.timm_state(encoder, weights), source=weights)
        default = model.default_cfg
        try:
            model.reset_classifier(0, "")
            trace = _trace(model)
        except (AssertionError, RuntimeError) as error:  # transformers of one input size
            raise ConfigError(f"{encoder} gives no feature map ({error}); choose a convolutional encoder") from error
        if len(trace[""]) != 4:
            raise ConfigError(f"{encoder} gives features of shape {tuple(trace[''])}; choose a convolutional encoder")
        super().__init__(
            TimmEncoder(model),
            features=trace[""][1],
            num_classes=num_classes,
            stages=_activated_stages(model, trace, encoder),
            mean=tuple(default["mean"]),
            std=tuple(default["std"]),
        )


def _activated_stages(model: Any, trace: Mapping[str, torch.Size], encoder: str) -> dict[int, str]:
    """Stage number -> the module whose output stands for the stage.

    A block that ends in an activation stands for itself. One that ends in a linear projection is followed, at the same
    resolution, by the expansion inside the next block: the last activated tensor before the resolution drops. Without
    such an expansion it is the last activated tensor inside the block.
    """
    info = getattr(model, "feature_info", None)
    if not info:
        raise ConfigError(f"{encoder} has no feature pyramid (timm's feature_info); choose a convolutional encoder")
    blocks = [entry["module"] for entry in (info if isinstance(info, list) else info.info)]
    order = [name for name in trace if name]

    def activated(names: list[str], size: torch.Size) -> list[str]:
        # gates of squeeze-and-excitation are activated too, but have no positions
        return [name for name in names if _is_activated(model.get_submodule(name)) and trace[name][2:] == size]

    stages = {}
    for stage, block in enumerate(blocks, start=6 - len(blocks)):
        size, end = trace[block][2:], order.index(block)
        inside = [name for name in order[: end + 1] if name == block or name.startswith(f"{block}.")]
        leaves = [name for name in inside if not any(other.startswith(f"{name}.") for other in inside)]
        following = [name for name in order[end + 1 :] if _is_activated(model.get_submodule(name))]
        if _is_activated(model.get_submodule(leaves[-1])):
            chosen = leaves[-1]
        else:
            chosen = (activated(following[:1], size) or activated(inside, size)[-1:] or [block])[0]
        stages[stage] = f"model.{chosen}"
    head = activated(order[order.index(blocks[-1]) + 1 :], trace[""][2:])  # a convolution after the last block
    if head:
        stages[5] = f"model.{head[-1]}"
    return stages


def _is_activated(module: nn.Module) -> bool:
    return isinstance(module, ACTIVATIONS) or (
        isinstance(module, BatchNormAct2d) and not isinstance(module.act, nn.Identity)
    )


def _trace(model: Any) -> dict[str, torch.Size]:
    """Output shape of each module for one small image, in the order in which they finish; ``""`` is the whole."""
    shapes: dict[str, torch.Size] = {}

    def record(name: str) -> Callable[..., None]:
        return lambda _module, _inputs, output: shapes.__setitem__(name, output.shape)

    # the activation inside a BatchNormAct2d finishes just before its owner, which stands for both
    owners = {name for name, module in model.named_modules() if isinstance(module, BatchNormAct2d)}
    handles = [
        module.register_forward_hook(record(name))
        for name, module in model.named_modules()
        if name and name.rpartition(".")[0] not in owners
    ]
    training = model.training
    try:
        with torch.no_grad():
            shapes[""] = model.eval().forward_features(torch.zeros(1, 3, 64, 64)).shape
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return shapes


class Vgg16Classifier(Classifier):
    """torchvision's VGG16 up to its last ReLU (stride 16), as LayerCAM and Zoom-CAM use it.

    Stage k is the last ReLU output before pooling layer k (``features`` 3, 8, 15, 22, 29).
    """

    def __init__(self, *, num_classes: int, weights: str | None = None) -> None:
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
        )


class ResNet50Classifier(Classifier):
    """torchvision's ResNet-50 with strides (2, 2, 2, 1): stride 16 without dilation, as IRN and LPCAM use it.

    Stages 2..5 are the outputs of layer1..layer4; stage 1 is the stem's activation.
    """

    def __init__(self, *, num_classes: int, weights: str | None = None) -> None:
        model = torchvision.models.resnet50()
        if weights is not None:
            state = _torchvision_state(weights, torchvision.models.ResNet50_Weights.IMAGENET1K_V1)
            pretrained.load(model, state, source=weights)
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
        )


def _torchvision_state(weights: str, imagenet: torchvision.models.WeightsEnum) -> pretrained.StateDict:
    if weights == pretrained.BUNDLE:
        raise ConfigError(
            f"there are no bundled weights for torchvision networks. The options are {pretrained.OPTIONS}"
        )
    if weights == pretrained.IMAGENET:
        return pretrained.download(lambda: imagenet.get_state_dict(progress=False), str(imagenet))
    return pretrained.file_state(weights)
