"""The CAM methods that a configuration chooses from. Each turns images and classes into one map per layer."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from wsss.cams import functional
from wsss.cams.signals import (
    ClassIds,
    class_gradients,
    frozen,
    layer_outputs,
    pair_items,
    pair_order,
    recorded,
)
from wsss.errors import ConfigError
from wsss.models.classifier import Classifier

Grid = Literal["keep", "before", "pool"]
ALL = "all"
"""The value of ``layers`` that asks for every activated layer of the network."""

STAGES = range(1, 6)


class CamMethod(ABC):
    """One way to compute class activation maps.

    The seeds stage calls ``fit`` once, ``layer_maps`` for every view of a batch of images (scales, flips), adds the
    views up layer by layer, and calls ``fuse`` on the sums. A gradient method, one that runs masked forward passes and
    one that learns prototypes from the data set all fit this shape.
    """

    def check(self, network: Classifier) -> None:
        """Raise ConfigError where this method cannot work on ``network``; called before any work starts."""
        return

    def tapped(self, network: Classifier) -> list[str]:
        """The modules whose outputs the method reads; batch norm must not be folded into these."""
        return []

    def describe(self, network: Classifier) -> dict[str, Any]:
        """What the manifest records: the method, the tensor that each layer stands for, and what ``fit`` learnt."""
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
            One ``(P, h, w)`` float32 tensor a layer, non-negative, not normalised; P counts the (image, class) pairs,
            image by image.
        """

    @abstractmethod
    def fuse(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """One map a pair from the summed views of each layer: ``(P, *size)`` in [0,1]."""


class FeatureCam(CamMethod):
    """A method that needs the last feature block alone: one forward pass, no gradient, one layer."""

    @abstractmethod
    def maps(self, network: Classifier, features: Tensor, class_ids: ClassIds) -> Tensor:
        """``(P, h, w)`` maps from the features ``(N, D, h, w)``, float32, of N images."""

    def layer_maps(self, network: Classifier, images: Tensor, class_ids: ClassIds) -> list[Tensor]:
        """See ``CamMethod.layer_maps``; the one layer is what pooling sees."""
        with frozen(network), torch.no_grad():
            features = network.features(images)
            with torch.autocast(images.device.type, enabled=False):
                return [self.maps(network, features.float(), class_ids)]

    def fuse(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Normalise the one map by its peak."""
        return functional.scale_to_peak(functional.resize_maps(maps[0], size))


class Cam(FeatureCam):
    """CAM: the last feature block weighted by the classifier (``functional.cam``).

    Args:
        clamp_negative_weights: ``functional.nwc_cam`` instead (NWC).
    """

    def __init__(self, *, clamp_negative_weights: bool = False) -> None:
        self.clamp_negative_weights = clamp_negative_weights

    def maps(self, network: Classifier, features: Tensor, class_ids: ClassIds) -> Tensor:
        """See ``FeatureCam.maps``."""
        combine = functional.nwc_cam if self.clamp_negative_weights else functional.cam
        weights = network.head.weight.detach().float().flatten(1)
        wanted = [id - 1 for ids in class_ids for id in ids]
        return combine(features[pair_items(class_ids)], weights[wanted])


class LayeredCam(CamMethod):
    """A method with one map for each of several layers.

    Args:
        stages: stage numbers, 1 (shallow) to 5 (last), the same for every network. The default is the last one.
        layers: module names instead, as in ``network.named_modules()``, or ``all``: every activated layer.
        fusion: how the maps of several layers become one: ``max``, ``mean`` or ``product``.
        tanh_layers: stages (in use or not) or some of ``layers``, whose maps go through ``tanh_scale`` instead of the
            usual normalisation.
        gamma: strength of that scaling.

    Raises:
        ConfigError: no layer, a ``tanh_layers`` entry that is none, or an unknown fusion.
    """

    normalise: Callable[[Tensor], Tensor] = staticmethod(functional.scale_to_peak)

    def __init__(
        self,
        *,
        stages: Sequence[int] | None = None,
        layers: Sequence[str] | str | None = None,
        fusion: functional.Fusion = "max",
        tanh_layers: Sequence[int | str] = (),
        gamma: float = 2.0,
    ) -> None:
        for key, value in (
            ("stages", stages),
            ("tanh_layers", tanh_layers),
            ("layers", None if layers == ALL else layers),
        ):
            if value is not None and (isinstance(value, str) or not isinstance(value, Sequence)):
                also = f", {ALL}," if key == "layers" else ""
                raise ConfigError(f"cam.{key}={value} must be a list{also} or null, for example cam.stages=[4,5]")
        if layers and stages:
            raise ConfigError("both cam.stages and cam.layers name layers: set one of them to null")
        if layers is None and stages is None:
            stages = (5,)
        if not layers and not stages:
            raise ConfigError("neither cam.stages (1 to 5) nor cam.layers (module names, or all) names a layer")
        self.layers: tuple[int | str, ...] | None = None if layers == ALL else tuple(layers or stages or ())
        self.fusion, self.gamma, self.tanh_layers = fusion, gamma, frozenset(tanh_layers or ())
        if self.layers is not None and len(set(self.layers)) < len(self.layers):
            raise ConfigError(f"{'cam.layers' if layers else 'cam.stages'}={list(self.layers)} names a layer twice")
        known: Sequence[int | str] = STAGES if stages else () if self.layers is None else self.layers
        stray = [layer for layer in self.tanh_layers if layer not in known]
        if stray:
            raise ConfigError(
                f"cam.tanh_layers names {stray}: with cam.stages it holds stages (1 to 5), with cam.layers "
                f"some of those modules, with cam.layers={ALL} nothing"
            )
        if fusion not in ("max", "mean", "product"):
            raise ConfigError(f"cam.fusion={fusion!r} is unknown; choose max, mean or product")
        if gamma <= 0:
            raise ConfigError(f"cam.gamma={gamma} must be above 0")

    def check(self, network: Classifier) -> None:
        """Every layer must exist in the network and give a feature map."""
        for name in self.tapped(network):
            if name not in network.map_layers:
                near = difflib.get_close_matches(name, network.activated, n=3, cutoff=0)
                raise ConfigError(
                    f"the module {name} does not give one feature map in each forward pass of this classifier. "
                    f"Some that do: {', '.join(near)}"
                )

    def tapped(self, network: Classifier) -> list[str]:
        """The module names of the layers, in the order of the maps."""
        if self.layers is None:
            if not network.activated:  # activations called as functions leave no module to look at
                raise ConfigError("cam.layers=all: this classifier has no activated layers to be found. Name modules")
            return list(network.activated)
        return [network.layer(layer) for layer in self.layers]

    def describe(self, network: Classifier) -> dict[str, Any]:
        """See ``CamMethod.describe``."""
        names = self.tapped(network)
        labels = names if self.layers is None else self.layers
        return {
            "name": type(self).__name__,
            "layers": {str(label): name for label, name in zip(labels, names, strict=True)},
        }

    def fuse(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Scale each layer to its peak (or by tanh), fuse, and scale the result to its peak."""
        labels = self.layers or (None,) * len(maps)
        scaled = [
            functional.tanh_scale(layer_maps, gamma=self.gamma)
            if label in self.tanh_layers
            else type(self).normalise(layer_maps)
            for label, layer_maps in zip(labels, maps, strict=True)
        ]
        return functional.scale_to_peak(functional.fuse(scaled, size=size, mode=self.fusion))


class GradientCam(LayeredCam):
    """A method that combines the activations of layers with the gradients of a class logit.

    Args:
        grid: layers that feed one of stride 2 show a grid in their gradients. ``keep`` leaves it; ``pool`` pools 2x2
            what such a layer gives; ``before`` takes the last activated layer before it that has the same size (in
            residual networks part of the grid comes back through the shortcut).
        options: see ``LayeredCam``.

    Raises:
        ConfigError: an option cannot be.
    """

    combine: Callable[[Tensor, Tensor], Tensor]

    proportional = True
    """Whether maps are proportional to gradients; if not, ``combine`` wants those of the logit itself."""

    def __init__(self, *, grid: Grid = "keep", **options: Any) -> None:
        if grid not in ("keep", "before", "pool"):
            raise ConfigError(f"cam.grid={grid!r} is unknown; choose keep, before or pool")
        super().__init__(**options)
        self.grid = grid

    def check(self, network: Classifier) -> None:
        """See ``LayeredCam.check``. What feeds a stride is known of activated layers alone."""
        super().check(network)
        unknown = [name for name in LayeredCam.tapped(self, network) if name not in network.activated]
        if self.grid != "keep" and unknown:
            raise ConfigError(f"cam.grid={self.grid}: {unknown[0]} is not among the layers {list(network.activated)}")

    def tapped(self, network: Classifier) -> list[str]:
        """See ``LayeredCam.tapped``; with ``grid=before`` not the layers that feed one of stride 2."""
        names = super().tapped(network)
        if self.grid != "before":
            return names
        order, strides = list(network.activated), network.activated
        chosen = []
        for name in names:
            at = order.index(name) if name in order else 0
            same_size = at > 0 and strides[order[at - 1]] == strides[name]
            if feeds_a_stride(network, name) and not same_size:
                raise ConfigError(f"cam.grid=before: {name} is the only activated layer of its size. Use cam.grid=pool")
            chosen.append(order[at - 1] if feeds_a_stride(network, name) else name)
        return list(dict.fromkeys(chosen)) if self.layers is None else chosen

    def layer_maps(self, network: Classifier, images: Tensor, class_ids: ClassIds) -> list[Tensor]:
        """See ``CamMethod.layer_maps``.

        Under global average pooling a gradient is proportional to one over the number of pooled positions, so a
        half-size view would weigh four times a full-size one. The logit is multiplied by that number: under GAP and
        a linear head, the gradient at the last layer then is the weight of CAM, whatever the size of the view. (It also
        keeps gradients inside the range of half precision.)
        """
        names = self.tapped(network)
        with frozen(network):
            outputs, features = layer_outputs(network, images, names)
            positions = features.shape[-2] * features.shape[-1]
            with torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
                logits = network.classify(features.float()) * positions
        rounds: list[list[Tensor]] = [[] for _ in names]
        with torch.autocast(images.device.type, enabled=False):
            for items, gradients in class_gradients(logits, [outputs[name] for name in names], class_ids):
                for maps, name, gradient in zip(rounds, names, gradients, strict=True):
                    activation = outputs[name].detach()
                    if len(items) < len(images):
                        activation, gradient = activation[items], gradient[items]
                    maps.append(self._combine(network, name, activation.float(), gradient.float(), positions))
        order = pair_order(class_ids)
        return [torch.cat(maps)[order] for maps in rounds]

    def _combine(
        self, network: Classifier, name: str, activations: Tensor, gradients: Tensor, positions: int
    ) -> Tensor:
        if self.grid == "pool" and feeds_a_stride(network, name):
            activations, gradients = functional.pool_grid(activations, gradients)
        return type(self).combine(activations, gradients if self.proportional else gradients / positions)


def feeds_a_stride(network: Classifier, layer: str) -> bool:
    """Whether ``layer`` is the last activated layer of its size, and a smaller size follows."""
    order, strides = list(network.activated), network.activated
    if layer not in order or layer == order[-1]:
        return False
    return strides[order[order.index(layer) + 1]] > strides[layer]


class GradCam(GradientCam):
    """Grad-CAM (``functional.grad_cam``)."""

    combine = staticmethod(functional.grad_cam)


class GradCamPlusPlus(GradientCam):
    """Grad-CAM++ (``functional.grad_cam_plus_plus``).

    Its weights sum over the positions of a layer, so that they do not depend on the size of the view.
    """

    combine = staticmethod(functional.grad_cam_plus_plus)
    proportional = False


class NormGrad(GradientCam):
    """NormGrad (``functional.norm_grad``)."""

    combine = staticmethod(functional.norm_grad)


class LayerCam(GradientCam):
    """LayerCAM (``functional.layer_cam``)."""

    combine = staticmethod(functional.layer_cam)


class LayerCamNormal(GradientCam):
    """LayerCAM without the ReLU on gradients (``functional.layer_cam_normal``)."""

    combine = staticmethod(functional.layer_cam_normal)


class ZoomCam(GradientCam):
    """Zoom-CAM (``functional.zoom_cam``): layers are scaled by their minimum and maximum before they are fused.

    Over one layer it is LayerCAM-normal, less the smallest value of the summed views.
    """

    combine = staticmethod(functional.zoom_cam)
    normalise = staticmethod(functional.min_max_scale)


class ScoreCam(LayeredCam):
    """Score-CAM (``functional.score_cam``): one forward pass for each channel of a layer, whatever the classes.

    The masked passes do not depend on the class, so all classes of an image share them.

    Args:
        channels: only the channels with the largest maxima, or None for all, as published. It is another map then.
        chunk: masked images in one pass; bounds the memory.
        options: see ``LayeredCam``.

    Raises:
        ConfigError: an option cannot be.
    """

    def __init__(self, *, channels: int | None = None, chunk: int = 16, **options: Any) -> None:
        super().__init__(**options)
        for key, value in (("channels", channels), ("chunk", chunk)):
            if value is not None and value < 1:
                raise ConfigError(f"cam.{key}={value} must be 1 or more")
        self.channels, self.chunk = channels, chunk

    def layer_maps(self, network: Classifier, images: Tensor, class_ids: ClassIds) -> list[Tensor]:
        """See ``CamMethod.layer_maps``."""
        names = self.tapped(network)
        with frozen(network), torch.no_grad():
            with recorded(network, names) as outputs:
                network.features(images)
            layers = []
            for name in names:
                activations = outputs[name].float()
                maps = [
                    self._image_maps(network, image, activation, ids)
                    for image, activation, ids in zip(images, activations, class_ids, strict=True)
                    if len(ids)
                ]
                layers.append(torch.cat(maps) if maps else activations.new_zeros((0, *activations.shape[2:])))
        return layers

    def _image_maps(self, network: Classifier, image: Tensor, activation: Tensor, ids: Sequence[int]) -> Tensor:
        """``(K, h, w)`` maps of one ``(3, H, W)`` image from its ``(D, h, w)`` activation."""
        if self.channels is not None and self.channels < len(activation):
            activation = activation[activation.amax(dim=(1, 2)).topk(self.channels).indices.sort().values]
        scores = [self._scores(network, image, part) for part in activation.split(self.chunk)]
        wanted = torch.cat(scores)[:, [id - 1 for id in ids]].T
        with torch.autocast(image.device.type, enabled=False):
            return functional.score_cam(activation.expand(len(ids), *activation.shape), wanted)

    def _scores(self, network: Classifier, image: Tensor, channels: Tensor) -> Tensor:
        """Logits ``(D, C)`` of the image masked by each of ``(D, h, w)`` channels."""
        masks = F.interpolate(channels[:, None], size=image.shape[1:], mode="bilinear", align_corners=False)
        masks = functional.min_max_scale(masks[:, 0])[:, None]
        # what a mask hides becomes the mean colour, which is 0 to the network behind its normalisation
        mean = network.mean.to(image)
        masked = mean + masks.to(image) * (image - mean)
        return network(masked.contiguous(memory_format=torch.channels_last)).float()
