from itertools import pairwise
from pathlib import Path

import pytest
import timm
import tiny
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from wsss.build import build
from wsss.errors import ConfigError
from wsss.models import LargeFOV, ResNetDeepLabV2, TimmDeepLabV2, deeplab, weights
from wsss.models.deeplab import Aspp, DeepLab, DeepLabV2, thinned_fc6, thinned_fc7

HALF = (0.5, 0.5, 0.5)
LITE0 = "tf_efficientnet_lite0"


def pyramid(scales: tuple[float, ...] = (), *, seed: int = 0) -> DeepLabV2:
    """DeepLab-v2 on an encoder of one layer."""
    torch.manual_seed(seed)
    backbone = nn.Conv2d(3, 4, 9, stride=8, padding=4)
    return DeepLabV2(backbone, features=4, num_labels=3, mean=HALF, std=HALF, scales=scales, rates=(1, 2)).eval()


@pytest.fixture(scope="module")
def large_fov() -> LargeFOV:
    torch.manual_seed(0)
    return LargeFOV(num_labels=21).eval()


@pytest.fixture(scope="module")
def resnet50() -> ResNetDeepLabV2:
    torch.manual_seed(0)
    return ResNetDeepLabV2(num_labels=21, depth=50).eval()


@pytest.fixture(scope="module")
def lite0() -> TimmDeepLabV2:
    torch.manual_seed(0)
    return TimmDeepLabV2(encoder=LITE0, num_labels=21).eval()


NETWORKS = ("large_fov", "resnet50", "lite0")


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> DeepLab:
    return request.getfixturevalue(request.param)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# --- size and place ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(65, 65), (64, 64), (37, 50), (1, 33)])
def test_logits_have_the_size_of_the_image(network: DeepLab, size: tuple[int, int]) -> None:
    with torch.no_grad():
        logits = network(torch.rand(2, 3, *size))
    assert logits.shape == (2, 21, *size)
    assert logits.isfinite().all()


def test_features_have_stride_8(network: DeepLab) -> None:
    """As in the papers, where crops of 321 pixels have 41 features."""
    with torch.no_grad():
        assert network.encoder(torch.rand(1, 3, 81, 65)).shape[2:] == (11, 9)


def test_the_logits_of_a_feature_lie_on_its_pixel() -> None:
    """The encoder takes every eighth pixel, so these come back, and half way there is the mean of two."""
    network = DeepLab(nn.MaxPool2d(1, stride=8), nn.Identity(), mean=HALF, std=HALF)
    image = torch.rand(1, 3, 17, 20)
    logits, expected = network(image), 2 * image - 1
    torch.testing.assert_close(logits[..., ::8, ::8], expected[..., ::8, ::8])
    torch.testing.assert_close(logits[..., 8, 4], (expected[..., 8, 0] + expected[..., 8, 8]) / 2)
    torch.testing.assert_close(logits[..., 8, 18], 0.75 * expected[..., 8, 16])  # a quarter of the way to the padding


@pytest.mark.parametrize("name", ["resnet50", LITE0])
def test_dilation_changes_no_feature_of_the_pretrained_network(
    name: str, resnet50: DeepLab, lite0: DeepLab, request: pytest.FixtureRequest
) -> None:
    """Every fourth feature at stride 8 is a feature of the undilated network at stride 32."""
    torch.manual_seed(0)
    image = torch.rand(1, 3, 129, 161)
    if name == LITE0:
        dilated: nn.Module = lite0.encoder
        plain = timm.create_model(name, features_only=True, out_indices=(4,)).eval()
        plain.load_state_dict(dilated.model.state_dict())
    else:
        dilated = resnet50.encoder
        whole = torchvision.models.resnet50().eval()
        whole.load_state_dict(dilated.state_dict(), strict=False)
        plain = nn.Sequential(*list(whole.children())[:-2])
    with torch.no_grad():
        features, expected = dilated(image), plain(image)
    expected = expected[0] if isinstance(expected, list) else expected
    assert expected.shape[2:] == (5, 6)
    torch.testing.assert_close(features[..., ::4, ::4], expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


# --- what the papers describe -----------------------------------------------------------------------------------------


def test_the_layers_of_large_fov(large_fov: LargeFOV) -> None:
    convolutions = [layer for layer in large_fov.encoder.modules() if isinstance(layer, nn.Conv2d)]
    pools = [layer for layer in large_fov.encoder.modules() if isinstance(layer, nn.MaxPool2d)]
    assert [layer.out_channels for layer in convolutions] == [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6 + [1024] * 2
    assert [layer.kernel_size[0] for layer in convolutions] == [3] * 14 + [1]
    assert [layer.dilation[0] for layer in convolutions] == [1] * 10 + [2] * 3 + [12, 1]
    assert [(layer.kernel_size, layer.stride) for layer in pools] == [(3, 2)] * 3 + [(3, 1)] * 2
    average = large_fov.encoder.features[-1]
    assert (type(average), average.kernel_size, average.stride) == (nn.AvgPool2d, 3, 1)
    assert [layer.p for layer in large_fov.modules() if isinstance(layer, nn.Dropout)] == [0.5, 0.5]
    assert large_fov.head.kernel_size == (1, 1)


def test_the_parameters_of_large_fov(large_fov: LargeFOV) -> None:
    """20.5 million (Chen et al. 2015, Table 2); weights and biases of each layer written out."""
    widths = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    convolutions = sum(inputs * outputs * 9 + outputs for inputs, outputs in pairwise(widths))
    assert convolutions == 14_714_688
    fc6, fc7, fc8 = 512 * 1024 * 9 + 1024, 1024 * 1024 + 1024, 1024 * 21 + 21
    assert count(large_fov) == convolutions + fc6 + fc7 + fc8 == 20_505_429
    assert count(large_fov.head) == fc8


def test_fc6_sees_cells_that_lie_twelve_apart(large_fov: LargeFOV) -> None:
    """25 x 25 cells of 8 pixels, which the paper calls a large field of view."""
    features = torch.rand(1, 512, 33, 40, requires_grad=True)
    large_fov.encoder.classifier.fc6(features)[..., 15, 20].sum().backward()
    seen = features.grad[0].abs().sum(dim=0).nonzero()
    assert seen.tolist() == [[row, column] for row in (3, 15, 27) for column in (8, 20, 32)]
    large_fov.zero_grad()


def test_the_dilations_of_resnet(resnet50: DeepLab) -> None:
    """Those of the 3x3 convolutions; the first of a stage has that of the stage before it (see the class)."""
    backbone = resnet50.encoder
    found = [[block.conv2.dilation[0] for block in getattr(backbone, f"layer{stage}")] for stage in (1, 2, 3, 4)]
    assert found == [[1] * 3, [1] * 4, [1] + [2] * 5, [2, 4, 4]]


def test_the_parameters_of_deeplab_v2_on_resnet101() -> None:
    """A stem, 3 + 4 + 23 + 3 blocks of three convolutions with batch norm, a projection a stage, four branches."""
    network = ResNetDeepLabV2(num_labels=21)
    stem, inputs = 3 * 64 * 49 + 2 * 64, 64
    blocks = 0
    for depth, width in ((3, 64), (4, 128), (23, 256), (3, 512)):
        outputs = 4 * width
        blocks += inputs * outputs + 2 * outputs  # the projection beside the first block
        for _ in range(depth):
            blocks += inputs * width + 9 * width * width + width * outputs + 2 * (width + width + outputs)
            inputs = outputs
    branches = 4 * (2048 * 21 * 9 + 21)
    assert stem + blocks == 42_500_160  # 44,549,160 with ImageNet's 2048 * 1000 + 1000
    assert count(network.encoder) == stem + blocks
    assert count(network) == stem + blocks + branches == 44_048_532


def test_the_branches_of_the_pyramid(resnet50: DeepLab) -> None:
    branches = resnet50.head.branches
    assert [branch.dilation for branch in branches] == [(6, 6), (12, 12), (18, 18), (24, 24)]
    assert all(branch.bias is not None and not branch.bias.any() for branch in branches)
    for branch in branches:
        assert branch.weight.std().item() == pytest.approx(0.01, rel=0.02)
        assert branch.weight.mean().item() == pytest.approx(0, abs=1e-4)


def test_branches_are_summed_by_hand() -> None:
    """Weights 1 in the middle and 10 at the right: 2 x itself, and ten times what lies 1 and 2 cells to the right."""
    head = Aspp(1, 1, rates=(1, 2))
    for branch in head.branches:
        with torch.no_grad():
            branch.weight.zero_()
            branch.weight[..., 1, 1], branch.weight[..., 1, 2] = 1, 10
    row = torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]])
    assert head(row).flatten().tolist() == [2 + 20 + 30, 4 + 30 + 40, 6 + 40, 8]


def test_branches_are_summed() -> None:
    torch.manual_seed(0)
    head, features = Aspp(5, 3, rates=(6, 12, 18, 24)), torch.rand(2, 5, 30, 40)
    for branch in head.branches:
        nn.init.normal_(branch.bias)
    expected = sum(
        F.conv2d(features, branch.weight, branch.bias, padding=rate, dilation=rate)
        for branch, rate in zip(head.branches, (6, 12, 18, 24), strict=True)
    )
    torch.testing.assert_close(head(features), expected)


# --- several scales ---------------------------------------------------------------------------------------------------


def test_without_scales_there_is_one_output() -> None:
    network, images = pyramid(), torch.rand(2, 3, 20, 33)
    (output,) = network.training_outputs(images)
    assert torch.equal(output, network(images))


def test_the_maximum_over_scales() -> None:
    """See the image in each size, bring the logits back, take the largest."""
    images = torch.rand(2, 3, 40, 33)
    single, several = pyramid(), pyramid((0.5, 0.75))
    expected = [single(images)]
    for size in ((20, 17), (30, 25)):  # 16.5 and 24.75 rounded
        smaller = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
        expected.append(F.interpolate(single(smaller), size=(40, 33), mode="bilinear", align_corners=False))
    expected.append(torch.maximum(torch.maximum(expected[0], expected[1]), expected[2]))
    outputs = several.training_outputs(images)
    assert len(outputs) == 4
    for output, wanted in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output, wanted)
    assert torch.equal(several(images), outputs[-1])
    assert not torch.equal(outputs[-1], outputs[0])


def test_the_scales_share_all_parameters() -> None:
    assert pyramid((0.5, 0.75)).state_dict().keys() == pyramid().state_dict().keys()


@pytest.mark.parametrize(
    ("options", "fault"),
    [({"scales": (0.5, 0)}, r"segmenter.scales=\[0.5, 0\]"), ({"rates": ()}, r"segmenter.rates=\[\]")],
)
def test_scales_and_rates_that_cannot_be(options: dict, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        DeepLabV2(nn.Identity(), **{"features": 3, "num_labels": 2, "mean": HALF, "std": HALF, **options})


# --- training ---------------------------------------------------------------------------------------------------------


def test_encoder_and_head_hold_each_parameter_once(network: DeepLab) -> None:
    encoder, head = ({id(parameter) for parameter in part.parameters()} for part in (network.encoder, network.head))
    assert encoder
    assert head
    assert not encoder & head
    assert encoder | head == {id(parameter) for parameter in network.parameters()}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_gradient_reaches_every_parameter(name: str, request: pytest.FixtureRequest) -> None:
    network = request.getfixturevalue(name)
    torch.manual_seed(0)
    images = torch.rand(2, 3, 65, 65)
    network.train()
    try:
        logits = sum(network.training_outputs(images))
        F.cross_entropy(logits, torch.randint(0, 21, logits.shape[::2] + logits.shape[3:])).backward()
        silent = [key for key, value in network.named_parameters() if value.grad is None or not value.grad.any()]
    finally:
        network.zero_grad()
        network.eval()
    assert not silent


def test_the_same_seed_gives_the_same_network_and_outputs() -> None:
    images = torch.rand(1, 3, 40, 40)
    one, same, other = (pyramid((0.5,), seed=seed)(images) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


# --- weights ----------------------------------------------------------------------------------------------------------


def test_which_weights_of_fc6_are_kept() -> None:
    """A weight is told by the number of its output, then by that of its input (channel, row, column)."""
    outputs = thinned_fc6(torch.arange(4096)[:, None].expand(-1, 25088))
    assert outputs.shape == (1024, 512, 3, 3)
    assert outputs[:, 7, 1, 2].tolist() == list(range(0, 4096, 4))
    inputs = thinned_fc6(torch.arange(25088)[None].expand(4096, -1))
    assert inputs[5, 0].tolist() == [[0, 3, 6], [21, 24, 27], [42, 45, 48]]
    assert inputs[5, 511].tolist() == [[511 * 49 + 7 * row + column for column in (0, 3, 6)] for row in (0, 3, 6)]


def test_which_weights_of_fc7_are_kept() -> None:
    kept = thinned_fc7(torch.arange(4096 * 4096).view(4096, 4096))
    assert kept.shape == (1024, 1024, 1, 1)
    assert kept[0, :3].flatten().tolist() == [0, 4, 8]
    assert kept[2, 1].item() == 8 * 4096 + 4


def vgg16_state() -> dict[str, Tensor]:
    """As torchvision's, with one row for all rows of fc6 and fc7: half a gigabyte less."""
    torch.manual_seed(0)
    with torch.device("meta"):
        expected = torchvision.models.vgg16().state_dict()
    return {
        name: torch.randn(tensor.shape[1:]).expand(tensor.shape) if tensor.ndim == 2 else torch.randn(tensor.shape)
        for name, tensor in expected.items()
    }


def test_the_weights_of_vgg16_reach_their_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    state = vgg16_state()
    monkeypatch.setattr(weights, "file_state", {"vgg16.pth": state}.__getitem__)
    loaded = LargeFOV(num_labels=3, weights="vgg16.pth").encoder.state_dict()
    shared = [name for name in state if name.startswith("features.")]
    assert len(shared) == 26
    assert all(torch.equal(loaded.pop(name), state[name]) for name in shared)
    assert torch.equal(loaded.pop("classifier.fc6.weight"), thinned_fc6(state["classifier.0.weight"]))
    assert torch.equal(loaded.pop("classifier.fc6.bias"), state["classifier.0.bias"][::4])
    assert torch.equal(loaded.pop("classifier.fc7.weight"), thinned_fc7(state["classifier.3.weight"]))
    assert torch.equal(loaded.pop("classifier.fc7.bias"), state["classifier.3.bias"][::4])
    assert not loaded


@pytest.mark.parametrize("change", ["missing", "left over", "shape"])
def test_weights_that_are_not_those_of_vgg16(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    state = vgg16_state()
    tensor = state.pop("features.28.weight")
    if change != "missing":
        state["features.28.weight" if change == "shape" else "features.28.mask"] = tensor[:1]
    monkeypatch.setattr(weights, "file_state", {"other.pth": state}.__getitem__)
    with pytest.raises(ConfigError, match=r"other.pth are not those of torchvision's VGG16: .* features.28.weight"):
        LargeFOV(num_labels=3, weights="other.pth")


def test_the_weights_of_resnet_reach_their_layers(tmp_path: Path) -> None:
    torch.manual_seed(1)
    whole = torchvision.models.resnet50()
    save_file(whole.state_dict(), tmp_path / "resnet50.safetensors")
    network = ResNetDeepLabV2(num_labels=3, depth=50, weights=str(tmp_path / "resnet50.safetensors"))
    loaded, state = network.encoder.state_dict(), whole.state_dict()
    assert set(state) - set(loaded) == {"fc.weight", "fc.bias"}
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.items())


def test_imagenet_weights_are_downloaded_for_the_right_network(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def told(fetch: object, name: str) -> dict[str, Tensor]:
        asked.append(name)
        raise ConfigError("no network")

    monkeypatch.setattr(weights, "download", told)
    for make in (LargeFOV, ResNetDeepLabV2):
        with pytest.raises(ConfigError, match="no network"):
            make(num_labels=3, weights="imagenet")
    assert asked == ["VGG16_Weights.IMAGENET1K_V1", "ResNet101_Weights.IMAGENET1K_V1"]


def test_bundled_weights_reach_the_encoder() -> None:
    network = TimmDeepLabV2(encoder=LITE0, num_labels=3, weights="bundled")
    state, loaded = weights.bundled_state(LITE0), network.encoder.model.state_dict()
    assert len(loaded) > 200
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.items())
    assert network.mean.flatten().tolist() == network.std.flatten().tolist() == [0.5] * 3


@pytest.mark.parametrize(
    ("make", "options", "fault"),
    [
        (ResNetDeepLabV2, {"depth": 34}, r"segmenter.depth=34 is none of \[50, 101\]"),
        (ResNetDeepLabV2, {"weights": "bundled"}, "no bundled weights for torchvision networks"),
        (LargeFOV, {"weights": "bundled"}, "no bundled weights for torchvision networks"),
        (LargeFOV, {"weights": "/no/such/file.pth"}, "no weights at /no/such/file.pth"),
        (TimmDeepLabV2, {"encoder": "no_such"}, r"timm cannot build no_such with stride 8 \(Unknown model"),
        (TimmDeepLabV2, {"encoder": "vgg16"}, r"timm cannot build vgg16 with stride 8 \(it cannot be dilated\)"),
        (TimmDeepLabV2, {"encoder": "test_vit"}, "choose a ResNet, a MobileNetV2 or an EfficientNet"),
        (TimmDeepLabV2, {"encoder": "test_resnet", "weights": "bundled"}, "no bundled weights for test_resnet"),
    ],
)
def test_networks_that_cannot_be(make: type[DeepLab], options: dict, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        make(num_labels=2, **options)


def test_resnet_weights_of_another_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    state = torchvision.models.resnet18().state_dict()
    monkeypatch.setattr(weights, "file_state", {"resnet18.pth": state}.__getitem__)
    with pytest.raises(ConfigError, match=r"the weights resnet18\.pth do not fit ResNet"):
        ResNetDeepLabV2(num_labels=2, depth=50, weights="resnet18.pth")


def test_an_option_with_scales() -> None:
    overrides = ("segmenter=deeplabv2_efficientnet_lite0", "segmenter.scales=[0.5,0.75]", "segmenter.rates=[6,12]")
    network = build(tiny.composed(*overrides), "segmenter", num_labels=4, weights=None).eval()
    assert isinstance(network, deeplab.TimmDeepLabV2)
    with torch.no_grad():
        outputs = network.training_outputs(torch.rand(1, 3, 33, 40))
    assert [output.shape for output in outputs] == [(1, 4, 33, 40)] * 4
    assert len(network.head.branches) == 2
