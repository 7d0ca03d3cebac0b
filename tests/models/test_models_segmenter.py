import pytest
import torch
from torch import Tensor, nn

from wsss.errors import ConfigError
from wsss.models import Segmenter, weights
from wsss.models.segmenter import predict_labels


@pytest.fixture(scope="module")
def network() -> Segmenter:
    return Segmenter(architecture="DeepLabV3Plus", encoder="tu-test_efficientnet", num_labels=4).eval()


class Recorder(nn.Module):
    """Gives its input back as logits, and keeps it."""

    def forward(self, images: Tensor) -> Tensor:
        self.seen = images
        return images


class Pointwise(nn.Module):
    """Logits that depend on the pixel alone, so that a mirrored image has the mirrored logits."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(images[:, :1]), 4 * images[:, :2] - 2], dim=1)


class Leaning(Pointwise):
    """Prefers label 2 on the right: not symmetric."""

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        logits[:, 2] += torch.linspace(-3, 3, images.shape[-1])
        return logits


class ByWidth(nn.Module):
    """Gives the same probabilities everywhere, chosen by the width of the view."""

    def __init__(self, probabilities: dict[int, tuple[float, ...]]) -> None:
        super().__init__()
        self.probabilities = probabilities

    def forward(self, images: Tensor) -> Tensor:
        row = torch.tensor(self.probabilities[images.shape[-1]]).log()
        return row.view(1, -1, 1, 1).expand(len(images), -1, *images.shape[-2:])


# --- the network -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (37, 50), (33, 31), (1, 65)])
def test_logits_have_the_size_of_the_image(network: Segmenter, size: tuple[int, int]) -> None:
    with torch.no_grad():
        assert network(torch.rand(2, 3, *size)).shape == (2, 4, *size)


def test_padding_is_zero_after_normalisation_and_cut_again() -> None:
    network = Segmenter(architecture="DeepLabV3Plus", encoder="tu-test_efficientnet", num_labels=3)
    recorder = network.network = Recorder()
    image = torch.ones(1, 3, 3, 33)
    logits = network(image)
    assert recorder.seen.shape == (1, 3, 32, 64)
    inside = ((1 - network.mean) / network.std).expand(1, 3, 3, 33)
    torch.testing.assert_close(logits, inside)
    assert not recorder.seen[..., 3:, :].any()
    assert not recorder.seen[..., 33:].any()


def test_a_size_without_padding_is_passed_on_unchanged(network: Segmenter) -> None:
    image = torch.rand(1, 3, 32, 64)
    with torch.no_grad():
        direct = network.network((image - network.mean) / network.std)
        torch.testing.assert_close(network(image), direct)


def test_bundled_weights_reach_the_encoder() -> None:
    network = Segmenter(
        architecture="DeepLabV3Plus", encoder="tu-tf_efficientnet_lite0", num_labels=2, weights="bundled"
    )
    state = weights.bundled_state("tf_efficientnet_lite0")
    loaded = network.encoder.model.state_dict()
    assert len(loaded) > 200
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.items())
    assert network.mean.flatten().tolist() == network.std.flatten().tolist() == [0.5] * 3


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"architecture": "DeepLabV4"}, "no architecture 'DeepLabV4'"),
        ({"encoder": "no_such"}, "DeepLabV3Plus cannot be built on no_such"),
        ({"encoder": "tu-no_such"}, "DeepLabV3Plus cannot be built on tu-no_such"),
        ({"colour": "red"}, "DeepLabV3Plus cannot be built on resnet18: it has no option 'colour'"),
        ({"encoder": "tu-test_resnet", "colour": "red"}, "DeepLabV3Plus cannot be built on tu-test_resnet: .*colour"),
        ({"weights": "bundled"}, "no bundled weights for resnet18; they belong to tu-tf_efficientnet_lite0/1/2"),
        ({"encoder": "tu-test_resnet", "weights": "bundled"}, "no bundled weights for test_resnet"),
    ],
)
def test_networks_that_cannot_be(options: dict, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        Segmenter(**{"architecture": "DeepLabV3Plus", "encoder": "resnet18", "num_labels": 2, **options})


def test_weights_that_lack_a_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "timm_state", lambda encoder, source: {})
    with pytest.raises(ConfigError, match=r"the weights some.pth lack \S+ of the encoder tu-test_resnet"):
        Segmenter(architecture="DeepLabV3Plus", encoder="tu-test_resnet", num_labels=2, weights="some.pth")


# --- prediction --------------------------------------------------------------------------------------------------


def test_labels_by_hand() -> None:
    """Logits are (0, 4 r - 2, 4 g - 2): red above one half is label 1, green 2, both low 0."""
    image = torch.tensor([[[1.0, 0.1, 0.2]], [[0.0, 0.9, 0.2]], [[0.0, 0.0, 0.0]]])
    labels = predict_labels(Pointwise(), image)
    assert labels.tolist() == [[1, 2, 0]]
    assert labels.dtype == torch.uint8


def test_a_symmetric_network_gains_nothing_from_flips() -> None:
    image = torch.rand(3, 33, 41)
    assert torch.equal(predict_labels(Pointwise(), image, flip=True), predict_labels(Pointwise(), image))


def test_with_flips_a_mirrored_image_has_mirrored_labels() -> None:
    image = torch.rand(3, 40, 33)
    scales = (0.8, 1.0, 1.5)
    plain, flipped = (predict_labels(Leaning(), image, scales=scales, flip=flip) for flip in (False, True))
    assert torch.equal(predict_labels(Leaning(), image.flip(-1), scales=scales, flip=True), flipped.flip(-1))
    assert not torch.equal(predict_labels(Leaning(), image.flip(-1), scales=scales), plain.flip(-1))


def test_probabilities_are_averaged_over_scales() -> None:
    """Each sum is beside its line. Averaged logits would be pulled down by the one view that rules a label out."""
    network = ByWidth({64: (0.6, 0.3, 0.1), 32: (0.05, 0.5, 0.45), 96: (0.001, 0.2, 0.799)})
    image = torch.rand(3, 64, 64)
    assert predict_labels(network, image).unique().tolist() == [0]
    assert predict_labels(network, image, scales=(0.5,)).unique().tolist() == [1]
    assert predict_labels(network, image, scales=(1.0, 0.5)).unique().tolist() == [1]  # 0.65, 0.8, 0.55
    assert predict_labels(network, image, scales=(1.0, 0.5, 1.5)).unique().tolist() == [2]  # 0.651, 1.0, 1.349
    # 1.201, 0.8, 0.999; by logits it would be label 1, since the last view all but rules 0 out
    assert predict_labels(network, image, scales=(1.0, 1.0, 1.5)).unique().tolist() == [0]


def test_scales_keep_the_size_and_the_place() -> None:
    image = torch.zeros(3, 40, 60)
    image[0, :, 30:] = 1
    labels = predict_labels(Pointwise(), image, scales=(1.0, 0.8, 1.5), flip=True)
    assert labels.shape == (40, 60)
    assert not labels[:, :29].any()
    assert (labels[:, 31:] == 1).all()


def test_a_view_has_at_least_32_pixels_a_side() -> None:
    network = ByWidth({32: (1.0, 0.0)})
    assert predict_labels(network, torch.rand(3, 40, 40), scales=(0.1,)).shape == (40, 40)


def test_no_scale_at_all() -> None:
    with pytest.raises(ValueError, match="at least one scale"):
        predict_labels(Pointwise(), torch.rand(3, 40, 40), scales=())
