from collections.abc import Iterator
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from wsss.cams import Cam, CamMethod, GradCam, LayerCam, functional, seed_scores
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
    [cam], [grad_cam] = (method.layer_maps(network, images, class_ids) for method in (Cam(), GradCam(layers=[5])))
    assert cam.shape == (3, 20, 26)
    assert (cam.amax(dim=(1, 2)) > 0).all()
    torch.testing.assert_close(grad_cam, cam)


def test_layer_cam_on_the_last_layer_is_cam_without_negative_weights(network: Classifier, image: Tensor) -> None:
    clamped = with_head(network, network.head.weight.data.clamp(min=0))
    [cam] = Cam().layer_maps(clamped, image[None], [CLASSES])
    [layer_cam] = LayerCam(layers=[5]).layer_maps(network, image[None], [CLASSES])
    torch.testing.assert_close(layer_cam, cam)


def test_what_is_equal_in_one_view_is_equal_in_many(network: Classifier, image: Tensor) -> None:
    """Gradients shrink with the number of positions, so views of other sizes must be made comparable."""
    clamped = with_head(network, network.head.weight.data.clamp(min=0))
    cam = seed_scores(Cam(), network, image, CLASSES, **VIEWS)
    positive = seed_scores(Cam(), clamped, image, CLASSES, **VIEWS)
    assert not torch.allclose(cam, positive, atol=0.01)
    for method, expected in ((GradCam(), cam), (LayerCam(), positive)):
        torch.testing.assert_close(seed_scores(method, network, image, CLASSES, **VIEWS), expected, atol=1e-5, rtol=0)


def test_layers_are_fused_after_the_views(network: Classifier, image: Tensor) -> None:
    """With the same layer twice, every fusion but the product changes nothing."""
    once = seed_scores(LayerCam(layers=[1]), network, image, CLASSES, **VIEWS)
    for fusion in ("max", "mean"):
        twice = seed_scores(LayerCam(layers=[1, "encoder.1"], fusion=fusion), network, image, CLASSES, **VIEWS)
        torch.testing.assert_close(twice, once)
    squared = seed_scores(LayerCam(layers=[1, "encoder.1"], fusion="product"), network, image, CLASSES, **VIEWS)
    torch.testing.assert_close(squared, once.square())


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
    [maps] = method(layers=[1]).layer_maps(network, image[None], [CLASSES])
    torch.testing.assert_close(maps, torch.stack(expected))
    scores = seed_scores(method(layers=[1]), network, image, CLASSES, scales=(1.0,), flip=False, stride=1)
    peaks = torch.stack(expected).amax(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(scores, torch.stack(expected) / peaks)


def test_maps_come_layer_by_layer(network: Classifier, image: Tensor) -> None:
    both = LayerCam(layers=[5, 1]).layer_maps(network, image[None], [CLASSES])
    for maps, layer, shape in zip(both, (5, 1), ((2, 20, 26), (2, 40, 52)), strict=True):
        assert maps.shape == shape
        assert not maps.requires_grad
        torch.testing.assert_close(maps, LayerCam(layers=[layer]).layer_maps(network, image[None], [CLASSES])[0])


@pytest.mark.parametrize("method", [Cam(), GradCam(), LayerCam(layers=[1, 5])])
def test_images_with_other_classes_equal_one_by_one(network: Classifier, image: Tensor, method: CamMethod) -> None:
    images, class_ids = torch.stack([image, 1 - image, image.flip(-1)]), [[4], [], [1, 2]]
    together = method.layer_maps(network, images, class_ids)
    alone = [method.layer_maps(network, images[i : i + 1], [ids]) for i, ids in enumerate(class_ids)]
    for layer, maps in enumerate(together):
        torch.testing.assert_close(maps, torch.cat([item[layer] for item in alone]))


@pytest.mark.parametrize("method", [Cam(), GradCam(), LayerCam(layers=[1, 5])])
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


# --- fusion ------------------------------------------------------------------------------------------------------

SHALLOW, DEEP = torch.tensor([[[8.0, 4.0, 0.0]]]), torch.tensor([[[0.0, 5.0, 10.0]]])


def test_fuse_scales_each_layer_before_it_compares_them() -> None:
    assert LayerCam(layers=[1, 5]).fuse([SHALLOW, DEEP], (1, 3)).tolist() == [[[1, 0.5, 1]]]
    assert LayerCam(layers=[1, 5], fusion="mean").fuse([SHALLOW, DEEP], (1, 3)).tolist() == [[[1, 1, 1]]]
    assert LayerCam(layers=[1, 5], fusion="product").fuse([SHALLOW, DEEP], (1, 3)).tolist() == [[[0, 1, 0]]]


def test_tanh_layers_alone_go_through_tanh() -> None:
    """tanh(2) = 0.9640 and tanh(1) = 0.7616, in the first layer only."""
    fused = LayerCam(layers=[1, 5], tanh_layers=[1]).fuse([SHALLOW, DEEP], (1, 3))
    torch.testing.assert_close(fused, torch.tensor([[[0.9640276, 0.7615942, 1]]]))
    fused = LayerCam(layers=[1, 5], tanh_layers=[1], gamma=1.0).fuse([SHALLOW, DEEP], (1, 3))
    torch.testing.assert_close(fused, torch.tensor([[[0.7615942, 0.5, 1]]]))


def test_cam_fuses_its_one_layer() -> None:
    assert Cam().fuse([SHALLOW], (1, 3)).tolist() == functional.scale_to_peak(SHALLOW).tolist() == [[[1, 0.5, 0]]]


# --- contracts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"layers": []}, "cam.layers is empty"),
        (
            {"layers": [5, 4], "tanh_layers": [4, 3]},
            r"cam.tanh_layers names \[3\], which cam.layers=\[5, 4\] does not hold",
        ),
        ({"fusion": "sum"}, "cam.fusion='sum' is unknown; choose max, mean or product"),
        ({"gamma": 0}, "cam.gamma=0 must be above 0"),
    ],
)
def test_settings_that_cannot_be(options: dict, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        LayerCam(**options)


def test_check_finds_missing_layers_before_any_work(network: Classifier) -> None:
    Cam().check(network)
    LayerCam(layers=[1, "encoder.3"]).check(network)
    with pytest.raises(ConfigError, match=r"no stage 2: this classifier has the stages \[1, 5\]"):
        LayerCam(layers=[5, 2]).check(network)


def test_describe_says_which_tensor_a_stage_stands_for(network: Classifier) -> None:
    assert Cam().describe(network) == {"name": "Cam"}
    described = LayerCam(layers=[5, 1]).describe(network)
    assert described == {"name": "LayerCam", "layers": {"5": "encoder.4", "1": "encoder.1"}}


def test_methods_that_learn_nothing_read_no_image(network: Classifier) -> None:
    def images() -> Iterator[tuple[Tensor, list[int]]]:
        raise AssertionError("an image was read")
        yield

    assert GradCam().fit(network, images()) == {}
