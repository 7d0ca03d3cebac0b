"""The CAM methods that a configuration chooses from. Each turns images and classes into one map per layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from wsss.cams import functional
from wsss.cams.signals import class_gradients, frozen, pair_items, recorded
from wsss.errors import ConfigError
from wsss.models.classifier import Classifier

ClassIds = Sequence[Sequence[int]]
"""For each image of a batch, the classes (1..C) that get a map."""


class CamMethod(ABC):
    """One way to compute class activation maps.

    The seeds stage calls ``fit`` once, ``layer_maps`` for every view of an image (scales, flips), adds the views up
    layer by layer, and calls ``fuse`` on the sums. A gradient method, one that runs masked forward passes and one
    that learns prototypes from the data set all fit this shape.
    """

    def check(self, network: Classifier) -> None:
        """Raise ConfigError where this method cannot work on ``network``; called before any work starts."""
        return

    def describe(self, network: Classifier) -> dict[str, Any]:
        """What the manifest records: the method, and the tensor that each layer number stands for."""
        return {"name": type(self).__name__}

    def fit(self, network: Classifier, images: Iterable[tuple[Tensor, Sequence[int]]]) -> dict[str, Tensor]:
        """Learn from the training images and return what was learnt, to be stored with the seeds.

        Args:
            network: the trained classifier.
            images: pairs of ``(3, H, W)`` RGB image in [0,1] and its class ids, read as they are asked for.

        Returns:
            Named tensors, handed to ``restore`` when the stage resumes. Empty for methods that learn nothing, which
            then never read an image.
        """
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take back what ``fit`` returned."""
        return

    @abstractmethod
    def layer_maps(self, network: Classifier, images: Tensor, class_ids: ClassIds) -> list[Tensor]:
        """Maps of one view, comparable across views of other sizes.

        Args:
            network: the classifier.
            images: ``(N, 3, H, W)`` RGB in [0,1].
            class_ids: the classes that get a map, for each image.

        Returns:
            One ``(P, h, w)`` tensor a layer, non-negative, not normalised; P counts the (image, class) pairs, image
            by image.
        """

    @abstractmethod
    def fuse(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """One map a pair from the summed views of each layer: ``(P, *size)`` in [0,1]."""


class Cam(CamMethod):
    """CAM: the last feature block weighted by the classifier (``functional.cam``). Needs no gradient."""

    def layer_maps(self, network: Classifier, images: Tensor, class_ids: ClassIds) -> list[Tensor]:
        """See ``CamMethod.layer_maps``; the one layer is the last feature block."""
        with frozen(network), torch.no_grad():
            features = network.features(images)
        weights = network.head.weight.detach().flatten(1)
        wanted = [id - 1 for ids in class_ids for id in ids]
        return [functional.cam(features[pair_items(class_ids)], weights[wanted])]

    def fuse(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Normalise the one map by its peak."""
        return functional.scale_to_peak(functional.resize_maps(maps[0], size))


class GradientCam(CamMethod):
    """A method that combines the activations of layers with the gradients of a class logit.

    Args:
        layers: stage numbers (1 shallow .. 5 last) or module names.
        fusion: how the maps of several layers become one: ``max``, ``mean`` or ``product``.
        tanh_layers: those of ``layers`` whose maps go through ``tanh_scale`` first.
        gamma: strength of that scaling.

    Raises:
        ConfigError: no layer, a ``tanh_layers`` entry that is no layer, or an unknown fusion.
    """

    combine: Callable[[Tensor, Tensor], Tensor]

    def __init__(
        self,
        *,
        layers: Sequence[int | str] = (5,),
        fusion: functional.Fusion = "max",
        tanh_layers: Sequence[int | str] = (),
        gamma: float = 2.0,
    ) -> None:
        if not layers:
            raise ConfigError("cam.layers is empty: name at least one stage (1..5) or module")
        stray = [layer for layer in tanh_layers if layer not in layers]
        if stray:
            raise ConfigError(f"cam.tanh_layers names {stray}, which cam.layers={list(layers)} does not hold")
        if fusion not in ("max", "mean", "product"):
            raise ConfigError(f"cam.fusion={fusion!r} is unknown; choose max, mean or product")
        if gamma <= 0:
            raise ConfigError(f"cam.gamma={gamma} must be above 0")
        self.layers = tuple(layers)
        self.fusion = fusion
        self.tanh_layers = frozenset(tanh_layers)
        self.gamma = gamma

    def check(self, network: Classifier) -> None:
        """Every layer must exist in the network."""
        for layer in self.layers:
            network.layer(layer)

    def describe(self, network: Classifier) -> dict[str, Any]:
        """See ``CamMethod.describe``."""
        return {"name": type(self).__name__, "layers": {str(layer): network.layer(layer) for layer in self.layers}}

    def layer_maps(self, network: Classifier, images: Tensor, class_ids: ClassIds) -> list[Tensor]:
        """See ``CamMethod.layer_maps``.

        Under global average pooling a gradient is proportional to one over the number of pooled positions, so a
        half-size view would weigh four times a full-size one. Gradients are multiplied by that number: under GAP and
        a linear head, the gradient at the last layer then is the weight of CAM, whatever the size of the view.
        """
        names = [network.layer(layer) for layer in self.layers]
        with frozen(network), torch.enable_grad(), recorded(network, names) as outputs:
            features = network.features(images)
            logits = network.classify(features)
            gradients = class_gradients(logits, [outputs[name] for name in names], class_ids)
        positions = features.shape[-2] * features.shape[-1]
        items = pair_items(class_ids)
        return [
            type(self).combine(outputs[name].detach()[items], gradient * positions)
            for name, gradient in zip(names, gradients, strict=True)
        ]

    def fuse(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Scale each layer to its peak (or by tanh), fuse, and scale the result to its peak."""
        scaled = [
            functional.tanh_scale(layer_maps, gamma=self.gamma)
            if layer in self.tanh_layers
            else functional.scale_to_peak(layer_maps)
            for layer, layer_maps in zip(self.layers, maps, strict=True)
        ]
        return functional.scale_to_peak(functional.fuse(scaled, size=size, mode=self.fusion))


class GradCam(GradientCam):
    """Grad-CAM (``functional.grad_cam``)."""

    combine = staticmethod(functional.grad_cam)


class LayerCam(GradientCam):
    """LayerCAM (``functional.layer_cam``)."""

    combine = staticmethod(functional.layer_cam)
