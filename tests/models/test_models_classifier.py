from itertools import pairwise

import pytest
import torch
from torch import nn

from wsss.errors import ConfigError
from wsss.models import Classifier, ResNetClassifier, TimmClassifier, Vgg16Classifier

SIDE = 64


@pytest.fixture(scope="module")
def lite0() -> Classifier:
    return TimmClassifier(encoder="tf_efficientnet_lite0", num_classes=3).eval()


@pytest.fixture(scope="module")
def resnet18() -> Classifier:
    return TimmClassifier(encoder="resnet18", num_classes=3).eval()


@pytest.fixture(scope="module")
def resnet50() -> Classifier:
    return ResNetClassifier(depth=50, num_classes=3).eval()


@pytest.fixture(scope="module")
def resnet101() -> Classifier:
    return ResNetClassifier(depth=101, num_classes=3).eval()


@pytest.fixture(scope="module")
def vgg16() -> Classifier:
    return Vgg16Classifier(num_classes=3).eval()


def plain(encoder: nn.Module, features: int, **stages: str) -> Classifier:
    """Two classes on a hand-made encoder, images normalised by (x - 0.5) / 0.25."""
    numbered = {int(key[1:]): name for key, name in stages.items()}
    return Classifier(encoder, features=features, num_classes=2, stages=numbered, mean=(0.5,) * 3, std=(0.25,) * 3)


def stage_outputs(network: Classifier) -> dict[int, torch.Tensor]:
    """The output of the module that stands for each stage, for one image of noise."""
    outputs, modules = {}, dict(network.named_modules())
    handles = [
        modules[name].register_forward_hook(lambda _m, _i, output, stage=stage: outputs.update({stage: output.clone()}))
        for stage, name in network.stages.items()
    ]
    with torch.no_grad():
        network(torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)))
    for handle in handles:
        handle.remove()
    return outputs


# --- numbers -----------------------------------------------------------------------------------------------------


def test_logits_by_hand() -> None:
    network = plain(nn.Identity(), 3)
    network.head.weight.data = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, -1.0]]).view(2, 3, 1, 1)
    image = torch.tensor([[0.5, 1.0], [0.5, 0.0], [0.25, 0.75]]).view(1, 3, 1, 2)
    assert network.features(image).flatten().tolist() == [0, 2, 0, -2, -1, 1]
    assert network(image).tolist() == [[1, -2]]  # means (1, -1, 0)


def test_logits_are_the_head_of_the_mean(resnet18: Classifier) -> None:
    images = torch.rand(2, 3, SIDE, 96)
    with torch.no_grad():
        features, logits = resnet18.features(images), resnet18(images)
    expected = features.mean(dim=(2, 3)) @ resnet18.head.weight[:, :, 0, 0].T
    assert features.shape == (2, 512, 2, 3)
    torch.testing.assert_close(logits, expected)
    assert resnet18.head.bias is None
    assert logits.shape == (2, 3)


# --- stages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sides", "channels"),
    [
        ("lite0", (32, 16, 8, 4, 2), (96, 144, 240, 672, 1280)),
        ("resnet18", (32, 16, 8, 4, 2), (64, 64, 128, 256, 512)),
        ("resnet50", (32, 16, 8, 4, 4), (64, 256, 512, 1024, 2048)),
        ("resnet101", (32, 16, 8, 4, 4), (64, 256, 512, 1024, 2048)),
        ("vgg16", (64, 32, 16, 8, 4), (64, 128, 256, 512, 512)),
    ],
)
def test_stages(name: str, sides: tuple[int, ...], channels: tuple[int, ...], request: pytest.FixtureRequest) -> None:
    network = request.getfixturevalue(name)
    outputs = stage_outputs(network)
    assert sorted(outputs) == [1, 2, 3, 4, 5]
    for stage, side, width in zip(range(1, 6), sides, channels, strict=True):
        assert outputs[stage].shape == (1, width, side, side), stage
        assert outputs[stage].min() >= 0, f"stage {stage} is no activated tensor"
        assert outputs[stage].max() > 0


@pytest.mark.parametrize("name", ["lite0", "resnet18", "resnet50", "vgg16"])
def test_the_last_stage_is_what_the_head_sees(name: str, request: pytest.FixtureRequest) -> None:
    network = request.getfixturevalue(name)
    image = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(stage_outputs(network)[5], network.features(image))


def test_the_names_of_stages(vgg16: Classifier, resnet50: Classifier, lite0: Classifier) -> None:
    assert vgg16.stages == {1: "encoder.3", 2: "encoder.8", 3: "encoder.15", 4: "encoder.22", 5: "encoder.29"}
    assert [resnet50.layer(stage) for stage in range(2, 6)] == [f"encoder.layer{i}" for i in range(1, 5)]
    # the expansion inside the block that reduces next, not a linear projection
    assert lite0.stages[3] == "encoder.model.blocks.3.0.bn1"
    assert lite0.stages[5] == "encoder.model.bn2"


def test_the_depths_of_resnet(resnet50: Classifier, resnet101: Classifier) -> None:
    assert [len(network.encoder.layer3) for network in (resnet50, resnet101)] == [6, 23]
    assert resnet101.stages == resnet50.stages


def test_a_stage_may_be_the_whole_encoder() -> None:
    network = plain(nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU()), 2, s5="")
    assert network.layer(5) == "encoder"
    assert len(network.parameters_up_to(5)) == 2


def test_stride_16_by_dilation() -> None:
    network = TimmClassifier(encoder="resnet18", num_classes=3, output_stride=16).eval()
    assert [output.shape[-1] for _, output in sorted(stage_outputs(network).items())] == [32, 16, 8, 4, 4]


def test_an_encoder_without_a_stage_of_stride_two() -> None:
    network = TimmClassifier(encoder="test_convnext", num_classes=3).eval()
    assert sorted(network.stages) == [2, 3, 4, 5]
    assert [output.shape[-1] for _, output in sorted(stage_outputs(network).items())] == [16, 8, 4, 2]


def test_a_convolution_after_the_last_block_is_the_last_stage() -> None:
    network = TimmClassifier(encoder="ghostnet_050", num_classes=3).eval()
    image = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(stage_outputs(network)[5], network.features(image))


def test_building_leaves_no_hooks_and_training_mode() -> None:
    network = TimmClassifier(encoder="test_efficientnet", num_classes=3)
    assert all(module.training for module in network.modules())
    assert not any(module._forward_hooks for module in network.modules())


def test_layer_takes_names_and_refuses_what_is_not_there() -> None:
    network = plain(nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU()), 2, s5="1")
    assert network.layer(5) == network.layer("encoder.1") == "encoder.1"
    assert network.layer("encoder.0") == "encoder.0"
    with pytest.raises(ConfigError, match=r"no stage 3: this classifier has the stages \[5\]"):
        network.layer(3)
    with pytest.raises(
        ConfigError, match=r"no module 'encoder\.2' in this classifier; its stages are {5: 'encoder.1'}"
    ):
        network.layer("encoder.2")


# --- parameters --------------------------------------------------------------------------------------------------


def test_parameters_up_to_by_hand() -> None:
    """An activation stands for stage 1, so that the convolution before it belongs to the stage; a block for stage 2."""
    encoder = nn.Sequential(
        nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU()), nn.Conv2d(4, 4, 1)
    )
    network = plain(encoder, 4, s1="1", s2="2", s3="3")
    counts = [sum(p.numel() for p in network.parameters_up_to(stage)) for stage in range(4)]
    assert counts == [0, 3 * 2 + 2, 8 + 2 * 4 + 4, 20 + 4 * 4 + 4]
    assert network.parameters_up_to(1)[0] is encoder[0].weight


@pytest.mark.parametrize("name", ["lite0", "resnet18", "resnet50", "vgg16"])
def test_parameters_up_to_grow_and_end_with_the_encoder(name: str, request: pytest.FixtureRequest) -> None:
    network = request.getfixturevalue(name)
    lists = [network.parameters_up_to(stage) for stage in range(6)]
    counts = [len(parameters) for parameters in lists]
    assert counts[0] == 0
    assert counts == sorted(set(counts))
    assert counts[5] == len(list(network.encoder.parameters()))
    for fewer, more in pairwise(lists):
        assert all(a is b for a, b in zip(fewer, more, strict=False))


def test_stages_of_resnet50_own_their_blocks(resnet50: Classifier) -> None:
    assert len(resnet50.parameters_up_to(1)) == 3  # the stem: a convolution and a batch norm
    names = {id(parameter): name for name, parameter in resnet50.named_parameters()}
    assert {names[id(p)].split(".")[1] for p in resnet50.parameters_up_to(2)} == {"conv1", "bn1", "layer1"}


# --- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoder", "output_stride", "fault"),
    [
        ("no_such", 32, "timm cannot build no_such with output_stride=32"),
        ("resnet18", 7, "timm cannot build resnet18 with output_stride=7"),
        ("test_vit", 32, r"test_vit gives features of shape \(1, 17, 64\); choose a convolutional encoder"),
        ("levit_conv_128s", 32, "levit_conv_128s gives no feature map .*; choose a convolutional encoder"),
    ],
)
def test_encoders_that_cannot_be(encoder: str, output_stride: int, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        TimmClassifier(encoder=encoder, num_classes=2, output_stride=output_stride)


def test_a_depth_that_resnet_has_not() -> None:
    with pytest.raises(ConfigError, match=r"classifier\.depth=34 is none of \[50, 101\]"):
        ResNetClassifier(depth=34, num_classes=2)


def test_torchvision_has_no_bundle() -> None:
    with pytest.raises(ConfigError, match=r"no bundled weights for torchvision networks.*weights=imagenet"):
        ResNetClassifier(depth=50, num_classes=2, weights="bundled")
