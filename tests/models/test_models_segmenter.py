import pytest
import timm
import tiny
import torch
from torch import Tensor, nn

from wsss.build import build
from wsss.cli import CONF
from wsss.errors import ConfigError
from wsss.models import SegmentationNetwork, Segmenter, weights

OPTIONS = sorted(path.stem for path in (CONF / "segmenter").glob("*.yaml"))
SWIN = "swin_tiny_patch4_window7_224"


@pytest.fixture(scope="module")
def network() -> Segmenter:
    return Segmenter(architecture="DeepLabV3Plus", encoder="tu-test_efficientnet", num_labels=4).eval()


@pytest.fixture(scope="module")
def swin() -> SegmentationNetwork:
    return build(tiny.composed("segmenter=upernet_swin"), "segmenter", num_labels=4, weights=None).eval()


class Recorder(nn.Module):
    """Gives its input back as logits, and keeps it."""

    def forward(self, images: Tensor) -> Tensor:
        self.seen = images
        return images


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


def test_the_outputs_of_a_training_step_are_the_logits(network: Segmenter) -> None:
    images = torch.rand(2, 3, 33, 40)
    with torch.no_grad():
        (output,) = network.training_outputs(images)
        assert torch.equal(output, network(images))


def test_the_weights_of_swin_reach_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm names the stages of the whole Swin layers.0, those of its feature extractor layers_0."""
    torch.manual_seed(1)
    state = timm.create_model(SWIN).state_dict()
    monkeypatch.setattr(weights, "file_state", {"swin.pth": state}.__getitem__)
    network = Segmenter(architecture="UPerNet", encoder=f"tu-{SWIN}", num_labels=2, weights="swin.pth")
    loaded = network.encoder.model.state_dict()
    assert len(loaded) > 150
    assert all(torch.equal(tensor, state[name.replace("layers_", "layers.")]) for name, tensor in loaded.items())


@pytest.mark.parametrize("size", [(64, 64), (97, 130), (224, 224)])
def test_swin_takes_images_of_any_size(swin: SegmentationNetwork, size: tuple[int, int]) -> None:
    with torch.no_grad():
        logits = swin(torch.rand(1, 3, *size))
    assert logits.shape == (1, 4, *size)
    assert logits.isfinite().all()


def test_the_last_stage_of_swin_has_shifted_windows(swin: SegmentationNetwork) -> None:
    assert [block.shift_size for block in swin.encoder.model.layers_3.blocks] == [(0, 0), (3, 3)]


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_gives_logits_at_an_odd_size(name: str) -> None:
    network = build(tiny.composed(f"segmenter={name}"), "segmenter", num_labels=4, weights=None).eval()
    assert isinstance(network, SegmentationNetwork)
    encoder = {id(parameter) for parameter in network.encoder.parameters()}
    assert 0 < len(encoder) < len(list(network.parameters()))
    with torch.no_grad():
        (logits,) = network.training_outputs(torch.rand(1, 3, 50, 67))
    assert logits.shape == (1, 4, 50, 67)
    assert logits.isfinite().all()
