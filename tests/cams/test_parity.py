"""The maps are those of independent programs: two libraries, and the formulas of the papers written out as loops.

The libraries see a plain ``nn.Sequential`` around the same encoder, with a linear layer, and images normalised
beforehand. Maps are compared at the resolution of their layer, each divided by its maximum. Where a library computes
something else by convention, the test says what, and compares after removing that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wsss.cams import (
    Cam,
    CamMethod,
    GradCam,
    GradCamPlusPlus,
    GradientCam,
    LayerCam,
    LayerCamNormal,
    NormGrad,
    ScoreCam,
    ZoomCam,
    functional,
    seed_scores,
)
from wsss.cams.signals import class_gradients, frozen, recorded
from wsss.models import Classifier, ResNetClassifier, Vgg16Classifier

TOLERANCE = 1e-5
VIEWS = {"scales": (1.0, 0.5, 1.5, 2.0), "flip": True, "stride": 4}

Combine = Callable[[Tensor, Tensor], Tensor]
Array = np.ndarray[Any, np.dtype[np.float64]]


class Case(NamedTuple):
    """A network with two images that ask for classes of their own, and the stages to look at."""

    network: Classifier
    images: Tensor
    class_ids: list[list[int]]
    stages: list[int]

    @property
    def plain(self) -> nn.Sequential:
        """The same weights without anything of ours between them; takes normalised images."""
        linear = nn.Linear(self.network.head.in_channels, self.network.head.out_channels, bias=False)
        linear.weight.data = self.network.head.weight.data.flatten(1)
        return nn.Sequential(self.network.encoder, nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear).eval()

    @property
    def layers(self) -> list[nn.Module]:
        return [self.network.get_submodule(self.network.stages[stage]) for stage in self.stages]

    @property
    def pairs(self) -> Iterator[tuple[Tensor, int]]:
        """``(1, 3, H, W)`` normalised image and class index, image by image."""
        normalised = (self.images - self.network.mean) / self.network.std
        return ((image[None], id - 1) for image, ids in zip(normalised, self.class_ids, strict=True) for id in ids)


def ready(network: Classifier) -> Classifier:
    """Weights of both signs in the head, more of them positive, so that no class is silent in all of an image."""
    nn.init.normal_(network.head.weight, mean=0.3)
    return network.eval()


def small() -> Case:
    torch.manual_seed(3)
    encoder = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 10, 3, padding=1),
        nn.ReLU(),
    )
    randomise_batch_norms(encoder)
    stages = {1: "1", 2: "4", 5: "6"}
    network = Classifier(encoder, features=10, num_classes=4, stages=stages, mean=(0.5,) * 3, std=(0.25,) * 3)
    return Case(ready(network), torch.rand(2, 3, 24, 36), [[3, 1], [4]], [1, 2, 5])


def vgg16() -> Case:
    torch.manual_seed(4)
    return Case(ready(Vgg16Classifier(num_classes=4)), torch.rand(2, 3, 48, 64), [[3, 1], [2]], [1, 2, 3, 4, 5])


def resnet50() -> Case:
    torch.manual_seed(5)
    network = ResNetClassifier(depth=50, num_classes=4)
    randomise_batch_norms(network)
    return Case(ready(network), torch.rand(2, 3, 48, 64), [[3, 1], [2]], [1, 2, 3, 4, 5])


def randomise_batch_norms(network: nn.Module) -> None:
    """Statistics and affine parameters of a network that has learnt something; as they come they do nothing."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.1)


@pytest.fixture(scope="module", params=[small, vgg16, resnet50], ids=lambda make: make.__name__)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param()


@pytest.fixture(scope="module")
def small_case() -> Case:
    return small()


@pytest.fixture(scope="module")
def grad_cam_library() -> Any:
    return pytest.importorskip("pytorch_grad_cam", reason="the reference library grad-cam is not installed")


@pytest.fixture(scope="module")
def torchcam_methods() -> Any:
    return pytest.importorskip("torchcam.methods", reason="the reference library torchcam is not installed")


# --- ours and theirs, layer by layer -------------------------------------------------------------------------------


def signals(case: Case) -> list[tuple[Tensor, Tensor]]:
    """Activations and gradients of the logit per stage, ``(P, C, h, w)`` each, image by image."""
    network, names = case.network, [case.network.stages[stage] for stage in case.stages]
    found = []
    for image, ids in zip(case.images, case.class_ids, strict=True):
        with frozen(network), recorded(network, names) as outputs:
            logits = network(image[None])
        taps = [outputs[name] for name in names]
        gradients = [gradient for _, gradient in class_gradients(logits, taps, [ids])]
        found.append(
            [
                (tap.detach().expand(len(ids), -1, -1, -1), torch.cat([item[at] for item in gradients]))
                for at, tap in enumerate(taps)
            ]
        )
    return [
        (torch.cat([item[at][0] for item in found]), torch.cat([item[at][1] for item in found]))
        for at in range(len(names))
    ]


def by_functions(case: Case, combine: Combine) -> list[Tensor]:
    return [combine(activations, gradients) for activations, gradients in signals(case)]


def by_method(case: Case, method: CamMethod) -> list[Tensor]:
    return method.layer_maps(case.network, case.images, case.class_ids)


def grad_cam_maps(case: Case, library_class: Any) -> list[Tensor]:
    """Maps of pytorch-grad-cam, one call a pair, as they are before it resizes them to the image."""
    plain, rounds = case.plain, []
    for image, index in case.pairs:
        with library_class(plain, case.layers) as cam:
            raw, inner = [], cam.get_cam_image
            cam.get_cam_image = lambda *args, raw=raw, inner=inner: raw.append(inner(*args)) or raw[-1]
            cam(image, [lambda output, index=index: output[index]])
        rounds.append([torch.from_numpy(maps).relu() for maps in raw])
    return [torch.cat(maps) for maps in zip(*rounds, strict=True)]


def torchcam_maps(case: Case, library_class: Any, **options: Any) -> list[Tensor]:
    """Maps of torchcam, one call a pair, not normalised."""
    plain, rounds = case.plain, []
    for image, index in case.pairs:
        with library_class(plain, case.layers, **options) as extractor:
            scores = plain(image)
            rounds.append([maps.detach().relu() for maps in extractor(index, scores, normalized=False)])
    return [torch.cat(maps) for maps in zip(*rounds, strict=True)]


def assert_same_maps(ours: list[Tensor], theirs: list[Tensor], tolerance: float = TOLERANCE) -> None:
    """Equal up to a factor for each map; a silent map would show nothing."""
    assert len(ours) == len(theirs) > 0
    for mine, reference in zip(ours, theirs, strict=True):
        assert mine.shape == reference.shape
        assert (reference.amax(dim=(1, 2)) > 0).all()
        difference = functional.scale_to_peak(mine) - functional.scale_to_peak(reference.float())
        assert difference.abs().max() <= tolerance


@pytest.mark.parametrize(
    ("library_class", "ours"),
    [
        ("GradCAM", [(functional.grad_cam, GradCam)]),
        ("LayerCAM", [(functional.layer_cam, LayerCam)]),
        # a ReLU on each product: LayerCAM, since activations are not negative
        ("GradCAMElementWise", [(functional.layer_cam, LayerCam)]),
        # the products as they are
        ("HiResCAM", [(functional.layer_cam_normal, LayerCamNormal), (functional.zoom_cam, ZoomCam)]),
    ],
)
def test_pytorch_grad_cam(
    case: Case, grad_cam_library: Any, library_class: str, ours: list[tuple[Combine, type[GradientCam]]]
) -> None:
    theirs = grad_cam_maps(case, getattr(grad_cam_library, library_class))
    for combine, method in ours:
        assert_same_maps(by_functions(case, combine), theirs)
        assert_same_maps(by_method(case, method(stages=case.stages)), theirs)


@pytest.mark.parametrize(
    ("library_class", "combine", "method"),
    [("GradCAM", functional.grad_cam, GradCam), ("LayerCAM", functional.layer_cam, LayerCam)],
)
def test_torchcam(
    case: Case, torchcam_methods: Any, library_class: str, combine: Combine, method: type[GradientCam]
) -> None:
    theirs = torchcam_maps(case, getattr(torchcam_methods, library_class))
    assert_same_maps(by_functions(case, combine), theirs)
    assert_same_maps(by_method(case, method(stages=case.stages)), theirs)


def test_torchcam_cam(case: Case, torchcam_methods: Any) -> None:
    """Theirs is without the ReLU, which the helper adds."""
    last = case._replace(stages=case.stages[-1:])
    assert_same_maps(by_method(last, Cam()), torchcam_maps(last, torchcam_methods.CAM, fc_layer="3"))


# --- Grad-CAM++ --------------------------------------------------------------------------------------------------


def test_pytorch_grad_cam_plus_plus(case: Case, grad_cam_library: Any) -> None:
    """Theirs adds 1e-6 to the denominator of alpha; large logits, and so large gradients, make that vanish.

    Weights then are almost steps where a gradient changes its sign, and a batch of images, which rounds otherwise,
    shows: the method is held to the tolerance at ordinary logits, against the function that the library confirms.
    """
    loud = case._replace(network=deepcopy(case.network))
    loud.network.head.weight.data *= 1e6
    theirs = grad_cam_maps(loud, grad_cam_library.GradCAMPlusPlus)
    assert_same_maps(by_functions(loud, functional.grad_cam_plus_plus), theirs)
    assert_same_maps(by_method(loud, GradCamPlusPlus(stages=case.stages)), theirs, tolerance=1e-4)
    method = GradCamPlusPlus(stages=case.stages)
    assert_same_maps(by_method(case, method), by_functions(case, functional.grad_cam_plus_plus))


def test_pytorch_grad_cam_plus_plus_differs_by_its_epsilon_alone(case: Case, grad_cam_library: Any) -> None:
    theirs = grad_cam_maps(case, grad_cam_library.GradCAMPlusPlus)

    def with_epsilon(activations: Tensor, gradients: Tensor) -> Tensor:
        totals = activations.sum(dim=(2, 3), keepdim=True)
        alpha = gradients**2 / (2 * gradients**2 + totals * gradients**3 + 1e-6)
        return functional.cam(activations, (alpha * gradients.relu()).sum(dim=(2, 3)))

    assert_same_maps(by_functions(case, with_epsilon), theirs)


def test_torchcam_grad_cam_plus_plus_never_divides(case: Case, torchcam_methods: Any) -> None:
    """No reference: torchcam 0.5 divides a copy of alpha and drops it: alpha stays g^2, a weight is a sum of relu(g)^3.

    Nor would the denominator be that of the paper: it has sum_ab(A_ab g_ab^3) where the paper has sum_ab(A_ab) g^3.
    """
    theirs = torchcam_maps(case, torchcam_methods.GradCAMpp)

    def undivided(activations: Tensor, gradients: Tensor) -> Tensor:
        return functional.cam(activations, gradients.relu().pow(3).sum(dim=(2, 3)))

    assert_same_maps(by_functions(case, undivided), theirs)


# --- Score-CAM ---------------------------------------------------------------------------------------------------


def affordable(case: Case) -> Case:
    """One small image and a layer of few channels, since each channel costs a forward pass.

    The logits are brought to a size at which a softmax over them neither picks one channel nor takes all alike.
    """
    images, class_ids = case.images[:1, :, :32, :40], case.class_ids[:1]
    network = deepcopy(case.network)
    with torch.no_grad():
        network.head.weight.data /= network(images).abs().max() / 3
    return Case(
        network, images, class_ids, [1] if isinstance(network, Vgg16Classifier | ResNetClassifier) else case.stages
    )


def test_pytorch_grad_cam_score_cam(case: Case, grad_cam_library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Theirs aligns the corners when it brings a mask to the size of the image; ours, as everywhere here, does not."""
    monkeypatch.setattr(
        nn, "UpsamplingBilinear2d", lambda size: nn.Upsample(size=size, mode="bilinear", align_corners=False)
    )
    scored = affordable(case)
    theirs = grad_cam_maps(scored, grad_cam_library.ScoreCAM)
    assert_same_maps(by_method(scored, ScoreCam(stages=scored.stages, chunk=7)), theirs)


def test_torchcam_score_cam(case: Case, torchcam_methods: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Theirs scales a mask to [0,1] before it brings it to the size of the image; the paper, and ours, after."""
    upsample = torchcam_methods.ScoreCAM._upsample

    def upsample_and_scale(self: Any, masks: Tensor) -> Tensor:
        return functional.min_max_scale(upsample(self, masks)[:, 0])[:, None]

    monkeypatch.setattr(torchcam_methods.ScoreCAM, "_upsample", upsample_and_scale)
    scored = affordable(case)
    theirs = torchcam_maps(scored, torchcam_methods.ScoreCAM)
    assert_same_maps(by_method(scored, ScoreCam(stages=scored.stages, chunk=7)), theirs)


def test_score_cam_without_a_difference_of_convention(
    small_case: Case, grad_cam_library: Any, torchcam_methods: Any
) -> None:
    """A layer of the size of the image: no mask is resized."""
    first = small_case._replace(stages=[1])
    ours = by_method(first, ScoreCam(stages=[1]))
    assert_same_maps(ours, grad_cam_maps(first, grad_cam_library.ScoreCAM))
    assert_same_maps(ours, torchcam_maps(first, torchcam_methods.ScoreCAM))


# --- several layers as one ---------------------------------------------------------------------------------------


def test_pytorch_grad_cam_mean_of_layers(case: Case, grad_cam_library: Any) -> None:
    """What a call returns: each layer scaled by minimum and maximum, resized to the image, averaged, scaled again.

    That is Zoom-CAM with a mean for the maximum (on HiResCAM's maps), but for the minimum of the average.
    """
    size = (case.images.shape[-2], case.images.shape[-1])
    with grad_cam_library.HiResCAM(case.plain, case.layers) as cam:
        theirs = [cam(image, [lambda output, index=index: output[index]]) for image, index in case.pairs]
    method = ZoomCam(stages=case.stages, fusion="mean")
    ours = functional.min_max_scale(method.fuse(by_method(case, method), size))
    assert_same_maps([ours], [torch.from_numpy(np.concatenate(theirs))])


def test_torchcam_maximum_of_layers(case: Case, torchcam_methods: Any) -> None:
    """Theirs sends every layer through tanh, and subtracts the minimum of each first."""
    size, theirs = (case.images.shape[-2], case.images.shape[-1]), []
    with torchcam_methods.LayerCAM(case.plain, case.layers) as extractor:
        for image, index in case.pairs:
            maps = extractor(index, extractor.model(image))
            theirs.append(extractor.fuse_cams([layer.detach() for layer in maps], size))
    method = LayerCam(stages=case.stages, tanh_layers=case.stages)
    maps = [functional.min_max_scale(layer) for layer in by_method(case, method)]
    assert_same_maps([method.fuse(maps, size)], [torch.cat(theirs)])


# --- the papers' formulas as loops ---------------------------------------------------------------------------------


def loop_grad_cam_plus_plus(activation: Array, gradient: Array) -> Array:
    """LayerCAM paper, Eqs. 4-5; alpha is 0 where its denominator is."""
    channels, height, width = activation.shape
    total = np.zeros((height, width))
    for k in range(channels):
        weight = 0.0
        for i in range(height):
            for j in range(width):
                g = gradient[k, i, j]
                denominator = 2 * g**2 + sum(activation[k, a, b] for a in range(height) for b in range(width)) * g**3
                alpha = g**2 / denominator if denominator != 0 else 0.0
                weight += alpha * max(g, 0)
        total += weight * activation[k]
    return np.maximum(total, 0)


def loop_norm_grad(activation: Array, gradient: Array) -> Array:
    """Norms over the channels, at each position."""
    channels, height, width = activation.shape
    result = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            norms = [math.sqrt(sum(signal[k, i, j] ** 2 for k in range(channels))) for signal in (activation, gradient)]
            result[i, j] = norms[0] * norms[1]
    return result


def loop_products(activation: Array, gradient: Array, *, clamp: bool) -> Array:
    """LayerCAM paper, Eqs. 6-8; without ``clamp`` the ReLU on gradients is left out (Zoom-CAM, Eq. 9)."""
    channels, height, width = activation.shape
    result = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            for k in range(channels):
                g = gradient[k, i, j]
                result[i, j] += (max(g, 0) if clamp else g) * activation[k, i, j]
            result[i, j] = max(result[i, j], 0)
    return result


def loop_layer_cam(activation: Array, gradient: Array) -> Array:
    return loop_products(activation, gradient, clamp=True)


def loop_zoom_cam(activation: Array, gradient: Array) -> Array:
    return loop_products(activation, gradient, clamp=False)


FORMULAS = [
    (functional.grad_cam_plus_plus, loop_grad_cam_plus_plus),
    (functional.norm_grad, loop_norm_grad),
    (functional.layer_cam, loop_layer_cam),
    (functional.layer_cam_normal, loop_zoom_cam),
    (functional.zoom_cam, loop_zoom_cam),
]


def by_formula(formula: Callable[[Array, Array], Array], activations: Tensor, gradients: Tensor) -> Tensor:
    items = zip(activations.double().numpy(), gradients.double().numpy(), strict=True)
    return torch.stack([torch.from_numpy(formula(*item)) for item in items])


@pytest.mark.parametrize(("combine", "formula"), FORMULAS)
@pytest.mark.parametrize("negative", [False, True], ids=["activated", "not activated"])
def test_formula(combine: Combine, formula: Callable[[Array, Array], Array], negative: bool) -> None:
    generator = torch.Generator().manual_seed(6)
    activations = torch.randn(3, 5, 4, 6, generator=generator)
    activations = activations if negative else activations.relu()
    gradients = torch.randn(3, 5, 4, 6, generator=generator) * (torch.rand(3, 5, 4, 6, generator=generator) > 0.2)
    expected = by_formula(formula, activations, gradients)
    assert (expected.amax(dim=(1, 2)) > 0).all()
    torch.testing.assert_close(combine(activations, gradients).double(), expected, atol=1e-4, rtol=1e-4)


def test_grad_cam_plus_plus_where_the_denominator_is_zero() -> None:
    """First channel: 2 g^2 + 2 g^3 is 0 for g = -1 and g = 0. Second: 2 g^2 - 2 g^3 is 0 for g = 1."""
    activations = torch.tensor([[[[2.0, 0.0, 0.0]], [[0.0, -2.0, 0.0]]]])
    gradients = torch.tensor([[[[-1.0, 0.0, 2.0]], [[1.0, -1.0, 0.5]]]])
    expected = by_formula(loop_grad_cam_plus_plus, activations, gradients)
    assert (expected > 0).any()
    torch.testing.assert_close(functional.grad_cam_plus_plus(activations, gradients).double(), expected)


# --- several views -----------------------------------------------------------------------------------------------


class LayerCamOfTheLogit(LayerCam):
    """LayerCAM without the factor that makes views comparable: the gradients are those of the logit itself."""

    proportional = False


class GradCamOfTheLogit(GradCam):
    """Likewise, Grad-CAM."""

    proportional = False


@pytest.mark.parametrize(
    ("reference", "method", "unscaled"),
    [
        (Cam(clamp_negative_weights=True), LayerCam, LayerCamOfTheLogit),
        (Cam(), GradCam, GradCamOfTheLogit),
    ],
    ids=["NWC and LayerCAM", "CAM and Grad-CAM"],
)
@pytest.mark.parametrize("case", [small, resnet50], indirect=True, ids=lambda make: make.__name__)
def test_what_is_one_map_in_one_view_is_one_in_many(
    case: Case, reference: CamMethod, method: type[GradientCam], unscaled: type[GradientCam]
) -> None:
    """Global average pooling, a linear head and an activated last layer: the gradient there is a weight over H W.

    Without the factor H W the gradients of small views are the largest, and their maps drown the others.
    """
    image = torch.rand(3, 64, 80, generator=torch.Generator().manual_seed(8))

    def seeds(method: CamMethod, **views: Any) -> Tensor:
        [scores] = seed_scores(method, case.network, [image], [[3, 1]], **(VIEWS | views))
        return scores

    expected = seeds(reference)
    assert (expected.amax(dim=(1, 2)) == 1).all()
    assert (seeds(method(stages=[5])) - expected).abs().max() <= 1e-4
    without = unscaled(stages=[5])
    assert (seeds(without) - expected).abs().max() > 0.05
    one_view = {"scales": (1.0,), "flip": False}
    assert (seeds(without, **one_view) - seeds(reference, **one_view)).abs().max() <= 1e-4


# --- several images ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [
        Cam(),
        GradCam(stages=[2, 5]),
        GradCamPlusPlus(stages=[2, 5]),
        NormGrad(stages=[2, 5]),
        LayerCam(stages=[1, 2, 5], tanh_layers=[1]),
        LayerCam(stages=[1, 2], grid="pool"),
        ZoomCam(layers="all"),
        ScoreCam(stages=[5], chunk=4),
    ],
    ids=lambda method: type(method).__name__,
)
def test_images_of_many_sizes_and_classes_equal_one_by_one(small_case: Case, method: CamMethod) -> None:
    generator = torch.Generator().manual_seed(7)
    sizes = [(40, 52), (33, 47), (40, 52), (40, 52), (33, 47), (52, 40)]
    images = [torch.rand(3, *size, generator=generator) for size in sizes]
    class_ids = [[2], [4, 1, 3], [1, 3], [], [4], [3, 2]]
    network = small_case.network
    together = seed_scores(method, network, images, class_ids, **VIEWS)
    alone = [
        scores
        for image, ids in zip(images, class_ids, strict=True)
        for scores in seed_scores(method, network, [image], [ids], **VIEWS)
    ]
    assert [len(scores) for scores in together] == [1, 3, 2, 0, 1, 2]
    for mine, reference in zip(together, alone, strict=True):
        torch.testing.assert_close(mine, reference, atol=TOLERANCE, rtol=0)


# --- half precision ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [
        Cam(),
        GradCam(stages=[1, 2, 5]),
        GradCamPlusPlus(stages=[1, 2, 5]),
        NormGrad(stages=[1, 2, 5]),
        LayerCam(stages=[1, 2, 5]),
        LayerCamNormal(stages=[1, 2, 5]),
        ZoomCam(stages=[1, 2, 5]),
        ScoreCam(stages=[1, 2, 5]),
    ],
    ids=lambda method: type(method).__name__,
)
def test_half_precision(small_case: Case, method: CamMethod) -> None:
    """bfloat16 keeps two to three digits, and where an activation near 0 changes sides its gradient comes or goes."""
    full = by_method(small_case, method)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = by_method(small_case, method)
    for mine, reference in zip(half, full, strict=True):
        assert mine.dtype == torch.float32
        for pair in zip(functional.scale_to_peak(mine), functional.scale_to_peak(reference), strict=True):
            assert torch.corrcoef(torch.stack(pair).flatten(1))[0, 1] > 0.99
            assert (pair[0] - pair[1]).abs().max() <= 0.1
