from collections.abc import Sequence

import pytest
import torch
from one_image import scores_of
from torch import Tensor, nn

from wsss.cams import Cam, CamMethod, GradCam, LayerCam, seed_scores
from wsss.cams.functional import scale_to_peak
from wsss.models import Classifier


class Colours(CamMethod):
    """The map of class c is channel c - 1 of the view, times a factor that depends on the view's height."""

    def __init__(self, factors: dict[int, float] | None = None, layers: int = 1) -> None:
        self.factors, self.layers, self.seen = factors, layers, []

    def layer_maps(self, network: Classifier, images: Tensor, class_ids: Sequence[Sequence[int]]) -> list[Tensor]:
        self.seen.append(images)
        factor = self.factors[images.shape[-2]] if self.factors else 1.0
        maps = torch.stack([images[i, id - 1] for i, ids in enumerate(class_ids) for id in ids])
        return [maps * factor] * self.layers

    def fuse(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        assert len(maps) == self.layers
        assert all(tuple(layer.shape[1:]) == size for layer in maps)
        return scale_to_peak(maps[0])


class Constant(Colours):
    """The same value everywhere."""

    def __init__(self, value: float) -> None:
        self.value = value

    def layer_maps(self, network: Classifier, images: Tensor, class_ids: Sequence[Sequence[int]]) -> list[Tensor]:
        return [torch.full((sum(map(len, class_ids)), 2, 2), self.value)]

    def fuse(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        return maps[0]


@pytest.fixture(scope="module")
def network() -> Classifier:
    torch.manual_seed(5)
    encoder = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.ReLU()
    )
    network = Classifier(encoder, features=8, num_classes=3, stages={1: "1", 5: "3"}, mean=(0.5,) * 3, std=(0.25,) * 3)
    nn.init.normal_(network.head.weight)
    network.head.weight.data[2] = -1  # class 3: a silent map, since features are not negative
    return network


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.rand(3, 37, 50, generator=torch.Generator().manual_seed(6))


METHODS = [Cam(), GradCam(), LayerCam(stages=[5, 1], tanh_layers=[1])]


# --- by hand -----------------------------------------------------------------------------------------------------


def ramp(width: int = 40) -> Tensor:
    """Red rises from left to right, green falls, blue is dark."""
    red = torch.linspace(0, 1, width).expand(32, width)
    return torch.stack([red, 1 - red, torch.zeros_like(red)])


def test_one_view_is_the_map_itself() -> None:
    scores = scores_of(Colours(), None, ramp(), [1], scales=(1.0,), flip=False, stride=1)
    torch.testing.assert_close(scores[0], ramp()[0])


def test_the_mirrored_view_is_mirrored_back() -> None:
    """Without that, a ramp and its mirror image would add up to a constant."""
    method = Colours()
    scores = scores_of(method, None, ramp(), [2, 1], scales=(1.0,), flip=True, stride=1)
    torch.testing.assert_close(scores, ramp()[[1, 0]])
    [seen] = method.seen
    assert torch.equal(seen[1], seen[0].flip(-1))


def test_views_are_added_before_the_one_normalisation() -> None:
    """The larger view shows red and counts three times; the smaller one only sees what is left of it."""
    image = torch.zeros(3, 32, 40)
    image[0, :, :20], image[0, :, 20:] = 1.0, 0.5
    single = scores_of(Colours({32: 1.0}), None, image, [1], scales=(1.0,), flip=False, stride=4)
    both = Colours({32: 1.0, 64: 3.0})
    scores = scores_of(both, None, image, [1], scales=(1.0, 2.0), flip=False, stride=4)
    larger = scores_of(Colours({64: 3.0}), None, image, [1], scales=(2.0,), flip=False, stride=4)
    total = single + 3 * larger
    torch.testing.assert_close(scores, total / total.max())


def test_the_sizes_of_views() -> None:
    method = Colours()
    scores_of(method, None, torch.rand(3, 70, 101), [1], scales=(1.0, 0.5, 1.5, 0.3), flip=True, stride=4)
    assert [tuple(images.shape) for images in method.seen] == [
        (2, 3, 70, 101),
        (2, 3, 35, 50),  # 50.5 rounds to the even number
        (2, 3, 105, 152),
        (2, 3, 32, 32),  # no side below 32
    ]
    assert all(images.min() >= 0 and images.max() <= 1 for images in method.seen)


def test_an_image_of_a_few_pixels_is_enlarged_at_every_scale() -> None:
    """Encoders of stride 16 or 32 have no position left on 12 pixels."""
    method = Colours()
    scores = scores_of(method, None, torch.rand(3, 12, 40), [1], scales=(1.0, 0.5), flip=False, stride=4)
    assert [tuple(images.shape[-2:]) for images in method.seen] == [(32, 40), (32, 32)]
    assert scores.shape == (1, 3, 10)


def test_a_view_of_the_size_of_the_image_is_the_image(image: Tensor) -> None:
    method = Colours()
    scores_of(method, None, image, [1], scales=(1.0,), flip=False, stride=4)
    assert torch.equal(method.seen[0][0], image)


def test_layers_stay_apart_until_they_are_fused(image: Tensor) -> None:
    scores = scores_of(Colours(layers=3), None, image, [1, 2], scales=(1.0, 2.0), flip=True, stride=4)
    assert scores.shape == (2, 10, 13)


# --- contracts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_scores_lie_in_the_unit_interval_and_reach_one(network: Classifier, image: Tensor, method: CamMethod) -> None:
    scores = scores_of(method, network, image, [1, 2], scales=(1.0, 0.5, 2.0), flip=True, stride=4)
    assert scores.dtype == torch.float32
    assert scores.min() >= 0
    assert scores.amax(dim=(1, 2)).tolist() == [1, 1]
    assert not scores.requires_grad


@pytest.mark.parametrize("method", [Cam(), GradCam(), LayerCam()])
def test_a_silent_class_stays_silent_beside_others(network: Classifier, image: Tensor, method: CamMethod) -> None:
    """All weights of class 3 are negative."""
    scores = scores_of(method, network, image, [3, 1], scales=(1.0, 0.5, 2.0), flip=True, stride=4)
    assert scores.amax(dim=(1, 2)).tolist() == [0, 1]


@pytest.mark.parametrize("method", METHODS)
def test_a_mirrored_image_has_mirrored_seeds(network: Classifier, image: Tensor, method: CamMethod) -> None:
    """The network itself is not symmetric: its second layer takes every other column."""
    options = {"scales": (1.0, 0.5, 1.5), "stride": 4}
    seeds, mirrored = (
        scores_of(method, network, view, [1, 2], flip=True, **options) for view in (image, image.flip(-1))
    )
    torch.testing.assert_close(mirrored, seeds.flip(-1), atol=1e-5, rtol=0)
    plain, other = (scores_of(method, network, view, [1, 2], flip=False, **options) for view in (image, image.flip(-1)))
    assert not torch.allclose(other, plain.flip(-1), atol=1e-2)


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_classes_is_kept(network: Classifier, image: Tensor, method: CamMethod) -> None:
    options = {"scales": (1.0, 0.5), "flip": True, "stride": 4}
    both = scores_of(method, network, image, [2, 1], **options)
    for scores, id in zip(both, (2, 1), strict=True):
        torch.testing.assert_close(scores, scores_of(method, network, image, [id], **options)[0], atol=1e-5, rtol=0)
    assert not torch.allclose(both[0], both[1], atol=0.1)


def test_an_image_without_classes_needs_no_forward_pass(image: Tensor) -> None:
    method = Colours()
    scores = scores_of(method, None, image, [], scales=(1.0,), flip=True, stride=4)
    assert (scores.shape, scores.dtype) == ((0, 10, 13), torch.float32)
    assert not method.seen


@pytest.mark.parametrize(
    ("stride", "size"), [(1, (37, 50)), (2, (19, 25)), (4, (10, 13)), (8, (5, 7)), (37, (1, 2)), (64, (1, 1))]
)
def test_the_grid_is_rounded_up(image: Tensor, stride: int, size: tuple[int, int]) -> None:
    assert scores_of(Colours(), None, image, [1], scales=(1.0,), flip=False, stride=stride).shape == (1, *size)
    assert scores_of(Colours(), None, image, [], scales=(1.0,), flip=False, stride=stride).shape == (0, *size)


def test_what_rounding_adds_to_one_is_cut(image: Tensor) -> None:
    """Readers refuse scores above 1."""
    scores = scores_of(Constant(1.0000002), None, image, [1], scales=(1.0,), flip=False, stride=4)
    assert scores.unique().tolist() == [1]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(image: Tensor, value: float) -> None:
    with pytest.raises(FloatingPointError, match="NaN or infinity"):
        scores_of(Constant(value), None, image, [1], scales=(1.0,), flip=False, stride=4)


# --- many images ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_images_of_other_sizes_and_classes_equal_one_by_one(
    network: Classifier, image: Tensor, method: CamMethod
) -> None:
    images = [image, image[:, :, :40], image.flip(1), image[:, :, :40] * 0.5, image[:, :33]]
    class_ids = [[1, 2], [2], [1], [], [2, 3, 1]]
    views = {"scales": (1.0, 0.5, 1.5), "flip": True, "stride": 4}
    together = seed_scores(method, network, images, class_ids, **views)
    assert [len(scores) for scores in together] == [2, 1, 1, 0, 3]
    for scores, item, ids in zip(together, images, class_ids, strict=True):
        torch.testing.assert_close(scores, scores_of(method, network, item, ids, **views), atol=1e-5, rtol=0)


def test_images_of_one_size_share_a_forward_pass() -> None:
    method = Colours()
    images = [torch.rand(3, 32, 40), torch.rand(3, 36, 40), torch.rand(3, 32, 40)]
    seed_scores(method, None, images, [[1], [1], [2, 3]], scales=(1.0,), flip=True, stride=4)
    assert [len(images) for images in method.seen] == [4, 2]


def test_the_image_whose_map_is_not_finite_is_told() -> None:
    images = [torch.rand(3, 32, 32), torch.full((3, 32, 32), torch.nan)]
    with pytest.raises(FloatingPointError) as caught:
        seed_scores(Colours(), None, images, [[1], [1]], scales=(1.0,), flip=False, stride=4)
    assert caught.value.args[1] == 1
