from collections.abc import Iterator
from copy import deepcopy

import pytest
import torch
from one_image import scores_of
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
)
from wsss.errors import ConfigError
from wsss.models import Classifier

CLASSES = [3, 1]
VIEWS = {"scales": (1.0, 0.5, 1.5, 2.0), "flip": True, "stride": 4}


@pytest.fixture(scope="module")
def network() -> Classifier:
    """Two activated stages, the second at half the size; a head with weights of both signs."""
    torch.manual_seed(3)
    encoder = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU()
    )
    network = Classifier(encoder, features=8, num_classes=4, stages={1: "1", 5: "4"}, mean=(0.5,) * 3, std=(0.25,) * 3)
    nn.init.normal_(network.head.weight)
    encoder[3].running_mean.uniform_(-0.3, 0.3)
    return network


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.rand(3, 40, 52, generator=torch.Generator().manual_seed(4))


def with_head(network: Classifier, weights: Tensor) -> Classifier:
    other = deepcopy(network)
    other.head.weight.data = weights
    return other


# --- by hand -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def transparent() -> Classifier:
    """Features are the image itself; class 1 sees red minus green, class 2 blue."""
    network = Classifier(nn.Identity(), features=3, num_classes=2, stages={5: ""}, mean=(0.0,) * 3, std=(1.0,) * 3)
    network.stages[5] = "encoder"
    network.head.weight.data = torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 2.0]]).view(2, 3, 1, 1)
    return network


PIXELS = torch.tensor([[[[1.0, 0.5]], [[0.25, 1.0]], [[0.125, 0.25]]]])


def test_cam_by_hand(transparent: Classifier) -> None:
    [maps] = Cam().layer_maps(transparent, PIXELS, [[2, 1]])
    assert maps.tolist() == [[[0.25, 0.5]], [[0.75, 0]]]


def test_grad_cam_by_hand(transparent: Classifier) -> None:
    [maps] = GradCam().layer_maps(transparent, PIXELS, [[2, 1]])
    assert maps.tolist() == [[[0.25, 0.5]], [[0.75, 0]]]


def test_layer_cam_by_hand(transparent: Classifier) -> None:
    """The negative weight of green is not counted: red alone."""
    [maps] = LayerCam().layer_maps(transparent, PIXELS, [[2, 1]])
    assert maps.tolist() == [[[0.25, 0.5]], [[1, 0.5]]]


def test_the_size_of_the_view_does_not_scale_the_maps(transparent: Classifier) -> None:
    """A constant image: under global average pooling the gradients are 24 times smaller on the larger view."""
    for method in (Cam(), GradCam(), LayerCam()):
        small = method.layer_maps(transparent, torch.full((1, 3, 1, 1), 0.5), [[2]])[0]
        large = method.layer_maps(transparent, torch.full((1, 3, 4, 6), 0.5), [[2]])[0]
        torch.testing.assert_close(large, small.expand(1, 4, 6))


# --- identities --------------------------------------------------------------------------------------------------


def test_grad_cam_on_the_last_layer_is_cam(network: Classifier, image: Tensor) -> None:
    images, class_ids = torch.stack([image, image.flip(-1)]), [[3, 1], [2]]
    [cam], [grad_cam] = (method.layer_maps(network, images, class_ids) for method in (Cam(), GradCam(stages=[5])))
    assert cam.shape == (3, 20, 26)
    assert (cam.amax(dim=(1, 2)) > 0).all()
    torch.testing.assert_close(grad_cam, cam)


def test_layer_cam_on_the_last_layer_is_cam_without_negative_weights(network: Classifier, image: Tensor) -> None:
    clamped = with_head(network, network.head.weight.data.clamp(min=0))
    [cam] = Cam().layer_maps(clamped, image[None], [CLASSES])
    [layer_cam] = LayerCam(stages=[5]).layer_maps(network, image[None], [CLASSES])
    torch.testing.assert_close(layer_cam, cam)


def test_what_is_equal_in_one_view_is_equal_in_many(network: Classifier, image: Tensor) -> None:
    """Gradients shrink with the number of positions, so views of other sizes must be made comparable."""
    clamped = with_head(network, network.head.weight.data.clamp(min=0))
    cam = scores_of(Cam(), network, image, CLASSES, **VIEWS)
    positive = scores_of(Cam(), clamped, image, CLASSES, **VIEWS)
    assert not torch.allclose(cam, positive, atol=0.01)
    for method, expected in ((GradCam(), cam), (LayerCam(), positive)):
        torch.testing.assert_close(scores_of(method, network, image, CLASSES, **VIEWS), expected, atol=1e-5, rtol=0)


def test_layers_are_fused_after_the_views(network: Classifier, image: Tensor) -> None:
    """Each layer's views first, then the layers: what one layer at a time gives, and its fusion."""
    alone = [scores_of(LayerCam(stages=[stage]), network, image, CLASSES, **VIEWS) for stage in (1, 5)]
    for fusion, combine in (("max", torch.maximum), ("product", torch.mul), ("mean", lambda a, b: (a + b) / 2)):
        both = scores_of(LayerCam(stages=[1, 5], fusion=fusion), network, image, CLASSES, **VIEWS)
        torch.testing.assert_close(both, functional.scale_to_peak(combine(*alone)))


# --- references --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "combine"), [(LayerCam, "layer"), (GradCam, "grad")])
def test_inner_layer_against_autograd_without_hooks(
    network: Classifier, image: Tensor, method: type[CamMethod], combine: str
) -> None:
    network.eval()
    encoder, weights = network.encoder, network.head.weight[:, :, 0, 0]
    inner = encoder[:2]((image[None] - 0.5) / 0.25).detach().requires_grad_()
    last = encoder[2:](inner)
    expected = []
    for id in CLASSES:
        logit = last.mean(dim=(2, 3))[0] @ weights[id - 1]
        [gradient] = torch.autograd.grad(logit, inner, retain_graph=True)
        gradient = gradient * (last.shape[2] * last.shape[3])
        factor = gradient.clamp(min=0) if combine == "layer" else gradient.mean(dim=(2, 3), keepdim=True)
        expected.append((factor * inner).sum(dim=1)[0].clamp(min=0).detach())
    [maps] = method(stages=[1]).layer_maps(network, image[None], [CLASSES])
    torch.testing.assert_close(maps, torch.stack(expected))
    scores = scores_of(method(stages=[1]), network, image, CLASSES, scales=(1.0,), flip=False, stride=1)
    peaks = torch.stack(expected).amax(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(scores, torch.stack(expected) / peaks)


def test_maps_come_layer_by_layer(network: Classifier, image: Tensor) -> None:
    both = LayerCam(stages=[5, 1]).layer_maps(network, image[None], [CLASSES])
    for maps, layer, shape in zip(both, (5, 1), ((2, 20, 26), (2, 40, 52)), strict=True):
        assert maps.shape == shape
        assert not maps.requires_grad
        torch.testing.assert_close(maps, LayerCam(layers=[layer]).layer_maps(network, image[None], [CLASSES])[0])


METHODS = [
    Cam(),
    Cam(clamp_negative_weights=True),
    GradCam(),
    GradCam(stages=[1, 5]),
    GradCamPlusPlus(stages=[1, 5]),
    NormGrad(stages=[1, 5]),
    LayerCam(stages=[1, 5]),
    LayerCamNormal(stages=[1, 5], fusion="mean"),
    ZoomCam(layers="all"),
    LayerCam(stages=[1, 5], grid="pool"),
    ScoreCam(stages=[1, 5], chunk=3),
]


@pytest.mark.parametrize("method", METHODS)
def test_images_with_other_classes_equal_one_by_one(network: Classifier, image: Tensor, method: CamMethod) -> None:
    images, class_ids = torch.stack([image, 1 - image, image.flip(-1)]), [[4], [], [1, 2]]
    together = method.layer_maps(network, images, class_ids)
    alone = [method.layer_maps(network, images[i : i + 1], [ids]) for i, ids in enumerate(class_ids)]
    for layer, maps in enumerate(together):
        torch.testing.assert_close(maps, torch.cat([item[layer] for item in alone]))


@pytest.mark.parametrize("method", METHODS)
def test_a_network_in_training_gives_the_same_maps_and_stays_in_training(
    network: Classifier, image: Tensor, method: CamMethod
) -> None:
    expected = method.layer_maps(network.eval(), image[None], [CLASSES])
    statistics = network.encoder[3].running_mean.clone()
    with torch.no_grad():  # as inside a prediction loop
        maps = method.layer_maps(network.train(), image[None], [CLASSES])
    for a, b in zip(maps, expected, strict=True):
        torch.testing.assert_close(a, b)
    assert torch.equal(network.encoder[3].running_mean, statistics)
    assert all(module.training for module in network.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_left_behind_by_an_exception_in_the_network(
    network: Classifier, image: Tensor, method: CamMethod, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last layer fails, after the first ones were recorded."""

    def fail(features: Tensor) -> Tensor:
        raise ZeroDivisionError

    method.tapped(network)  # what is known of the network is known
    network.train()
    network.head.weight.grad = torch.full_like(network.head.weight, 7.0)
    monkeypatch.setattr(network.encoder[4], "forward", fail)
    with pytest.raises(ZeroDivisionError):
        method.layer_maps(network, image[None], [CLASSES])
    assert all(module.training for module in network.modules())
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert (network.head.weight.grad == 7).all()
    assert not any(module._forward_hooks or module._backward_hooks for module in network.modules())
    network.head.weight.grad = None


@pytest.mark.parametrize("method", [item for item in METHODS if isinstance(item, GradientCam)])
def test_views_of_every_gradient_method_are_comparable(transparent: Classifier, method: GradientCam) -> None:
    """A constant image of any size gives the same map: gradients shrink with the number of positions, maps do not."""
    method = type(method)()
    small = method.layer_maps(transparent, torch.full((1, 3, 2, 2), 0.5), [[2]])[0]
    large = method.layer_maps(transparent, torch.full((1, 3, 4, 6), 0.5), [[2]])[0]
    torch.testing.assert_close(large, small[:, :1, :1].expand(1, 4, 6))
    assert large.min() > 0


def test_the_last_layer_needs_no_backward_pass_through_the_encoder(network: Classifier, image: Tensor) -> None:
    """Stage 5 alone takes a short cut, which gives what the long way gives."""
    for method in (GradCam, GradCamPlusPlus, LayerCam, NormGrad):
        short = method(stages=[5]).layer_maps(network, image[None], [CLASSES])[0]
        long = method(stages=[1, 5]).layer_maps(network, image[None], [CLASSES])[1]
        torch.testing.assert_close(short, long)


# --- layers --------------------------------------------------------------------------------------------------------


def test_all_layers_are_the_activated_ones(network: Classifier, image: Tensor) -> None:
    assert ZoomCam(layers="all").tapped(network) == ["encoder.1", "encoder.4"]
    by_name = LayerCam(layers=["encoder.1", "encoder.4"]).layer_maps(network, image[None], [CLASSES])
    for maps, other in zip(LayerCam(layers="all").layer_maps(network, image[None], [CLASSES]), by_name, strict=True):
        assert torch.equal(maps, other)


def test_zoom_cam_over_one_layer_is_layer_cam_normal_scaled_to_its_range(network: Classifier, image: Tensor) -> None:
    normal = LayerCamNormal(stages=[1]).layer_maps(network, image[None], [CLASSES])
    zoom = ZoomCam(stages=[1])
    maps = zoom.layer_maps(network, image[None], [CLASSES])
    assert torch.equal(maps[0], normal[0])
    torch.testing.assert_close(zoom.fuse(maps, (40, 52)), functional.min_max_scale(normal[0]))


@pytest.fixture(scope="module")
def strided() -> Classifier:
    """Two layers of full size, then one of half the size made by a convolution that sees every other position."""
    torch.manual_seed(7)
    encoder = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 8, 1, stride=2),
        nn.ReLU(),
    )
    network = Classifier(encoder, features=8, num_classes=4, stages={1: "3", 5: "5"}, mean=(0.5,) * 3, std=(0.25,) * 3)
    nn.init.normal_(network.head.weight)
    return network


def test_the_grid_and_its_remedies(strided: Classifier, image: Tensor) -> None:
    """Three of four positions get no gradient at stage 1."""
    keep, before, pool = (
        LayerCam(stages=[1], grid=grid).layer_maps(strided, image[None], [[1]])[0][0]
        for grid in ("keep", "before", "pool")
    )
    assert not keep[1::2].any()
    assert not keep[:, 1::2].any()
    assert keep[::2, ::2].any()
    assert LayerCam(stages=[1], grid="before").tapped(strided) == ["encoder.1"]
    assert before[1::2].any()
    assert before[:, 1::2].any()
    assert pool.shape == (20, 26)
    assert (pool > 0).float().mean() > 0.9 * (keep[::2, ::2] > 0).float().mean()


def test_the_last_layer_needs_no_remedy(strided: Classifier, image: Tensor) -> None:
    expected = LayerCam(stages=[5]).layer_maps(strided, image[None], [[1]])[0]
    for grid in ("before", "pool"):
        assert torch.equal(LayerCam(stages=[5], grid=grid).layer_maps(strided, image[None], [[1]])[0], expected)


def test_a_layer_with_none_before_it_cannot_be_avoided(network: Classifier) -> None:
    with pytest.raises(ConfigError, match=r"encoder.1 is the only activated layer of its size. Use cam.grid=pool"):
        LayerCam(stages=[1], grid="before").check(network)


# --- Score-CAM -----------------------------------------------------------------------------------------------------


def test_score_cam_by_hand(transparent: Classifier) -> None:
    """Each colour, stretched to [0,1], masks the image; the scores of class 2 are twice the mean of the blue left."""
    red, green, blue = PIXELS[0, :, 0]
    masks = [(channel - channel.min()) / (channel.max() - channel.min()) for channel in (red, green, blue)]
    scores = torch.stack([2 * (mask * blue).mean() for mask in masks])
    expected = (scores.softmax(0)[:, None] * PIXELS[0, :, 0]).sum(0)
    for chunk in (1, 2, 16):
        [maps] = ScoreCam(chunk=chunk).layer_maps(transparent, PIXELS, [[2]])
        torch.testing.assert_close(maps, expected.view(1, 1, 2))


def test_score_cam_of_the_strongest_channels(transparent: Classifier) -> None:
    """Red and green have the maxima; blue is left out."""
    [maps] = ScoreCam(channels=2).layer_maps(transparent, PIXELS, [[2, 1]])
    assert maps.shape == (2, 1, 2)
    assert (maps[0] >= torch.minimum(PIXELS[0, 0], PIXELS[0, 1])).all()


def test_score_cam_masks_towards_the_mean_colour(network: Classifier, image: Tensor) -> None:
    """Behind the network's normalisation, what is masked is 0, as in the published method."""
    seen = []
    handle = network.encoder.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    ScoreCam(stages=[5], chunk=8).layer_maps(network, image[None], [CLASSES])
    handle.remove()
    whole, masked = seen
    share = masked / whole  # the mask itself, equal in all colours
    torch.testing.assert_close(share[:, 0], share[:, 1], atol=1e-3, rtol=1e-3)
    assert share.min() > -1e-3
    assert share.max() < 1 + 1e-3


@pytest.mark.parametrize("options", [{"channels": 0}, {"chunk": 0}])
def test_score_cam_settings_that_cannot_be(options: dict) -> None:
    with pytest.raises(ConfigError, match="must be 1 or more"):
        ScoreCam(**options)


# --- half precision ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_maps_in_half_precision_are_close_and_come_in_full(
    network: Classifier, image: Tensor, method: CamMethod
) -> None:
    full = method.layer_maps(network, image[None], [CLASSES])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = method.layer_maps(network, image[None], [CLASSES])
    for maps, expected in zip(half, full, strict=True):
        assert maps.dtype == torch.float32
        difference = (functional.scale_to_peak(maps) - functional.scale_to_peak(expected)).abs()
        assert difference.mean() < 0.01  # a unit close to the kink of its ReLU may fall on the other side
        assert (difference > 0.1).float().mean() < 0.01


# --- fusion ------------------------------------------------------------------------------------------------------

SHALLOW, DEEP = torch.tensor([[[8.0, 4.0, 0.0]]]), torch.tensor([[[0.0, 5.0, 10.0]]])


def test_fuse_scales_each_layer_before_it_compares_them() -> None:
    assert LayerCam(stages=[1, 5]).fuse([SHALLOW, DEEP], (1, 3)).tolist() == [[[1, 0.5, 1]]]
    assert LayerCam(stages=[1, 5], fusion="mean").fuse([SHALLOW, DEEP], (1, 3)).tolist() == [[[1, 1, 1]]]
    assert LayerCam(stages=[1, 5], fusion="product").fuse([SHALLOW, DEEP], (1, 3)).tolist() == [[[0, 1, 0]]]


def test_tanh_layers_alone_go_through_tanh() -> None:
    """tanh(2) = 0.9640 and tanh(1) = 0.7616, in the first layer only."""
    fused = LayerCam(stages=[1, 5], tanh_layers=[1]).fuse([SHALLOW, DEEP], (1, 3))
    torch.testing.assert_close(fused, torch.tensor([[[0.9640276, 0.7615942, 1]]]))
    fused = LayerCam(stages=[1, 5], tanh_layers=[1], gamma=1.0).fuse([SHALLOW, DEEP], (1, 3))
    torch.testing.assert_close(fused, torch.tensor([[[0.7615942, 0.5, 1]]]))


def test_cam_fuses_its_one_layer() -> None:
    assert Cam().fuse([SHALLOW], (1, 3)).tolist() == functional.scale_to_peak(SHALLOW).tolist() == [[[1, 0.5, 0]]]


# --- contracts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"stages": []}, r"neither cam.stages \(1 to 5\) nor cam.layers"),
        ({"stages": [5], "layers": ["a"]}, "both cam.stages and cam.layers name layers: set one of them to null"),
        ({"layers": "some"}, "cam.layers=some must be a list, all, or null"),
        ({"stages": 5}, "cam.stages=5 must be a list or null, for example"),
        ({"tanh_layers": "abc"}, "cam.tanh_layers=abc must be a list or null"),
        ({"layers": ["a"], "tanh_layers": [1]}, r"cam.tanh_layers names \[1\]: .* with cam.layers some of those"),
        ({"layers": "all", "tanh_layers": ["a"]}, "with cam.layers=all nothing"),
        ({"stages": [5, 4, 5]}, r"cam.stages=\[5, 4, 5\] names a layer twice"),
        ({"tanh_layers": [4, 9]}, r"cam.tanh_layers names \[9\]: with cam.stages it holds stages"),
        ({"grid": "mend"}, "cam.grid='mend' is unknown; choose keep, before or pool"),
        ({"fusion": "sum"}, "cam.fusion='sum' is unknown; choose max, mean or product"),
        ({"gamma": 0}, "cam.gamma=0 must be above 0"),
    ],
)
def test_settings_that_cannot_be(options: dict, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        LayerCam(**options)


def test_check_finds_missing_layers_before_any_work(network: Classifier) -> None:
    Cam().check(network)
    LayerCam(layers=["encoder.3"]).check(network)
    with pytest.raises(ConfigError, match=r"no stage 2: this classifier has the stages \[1, 5\]"):
        LayerCam(stages=[5, 2]).check(network)


def test_check_refuses_modules_that_give_no_map(network: Classifier) -> None:
    LayerCam(layers=["encoder.0"]).check(network)
    with pytest.raises(ConfigError, match=r"the module head does not give one feature map .* encoder.[14]"):
        LayerCam(layers=["head"]).check(network)


def test_a_grid_is_known_of_activated_layers_alone(network: Classifier) -> None:
    LayerCam(layers=["encoder.3"]).check(network)
    with pytest.raises(ConfigError, match=r"cam.grid=pool: encoder.3 is not among the layers \['encoder.1', "):
        LayerCam(layers=["encoder.3"], grid="pool").check(network)


def test_describe_says_which_tensor_a_stage_stands_for(network: Classifier) -> None:
    assert Cam().describe(network) == {"name": "Cam"}
    described = LayerCam(stages=[5, 1]).describe(network)
    assert described == {"name": "LayerCam", "layers": {"5": "encoder.4", "1": "encoder.1"}}


def test_methods_that_learn_nothing_read_no_image(network: Classifier) -> None:
    def images() -> Iterator[tuple[Tensor, list[int]]]:
        raise AssertionError("an image was read")
        yield

    assert GradCam().fit(network, images()) == {}
