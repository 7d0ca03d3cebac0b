import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsss.models import Classifier, ResNetClassifier, TimmClassifier, Vgg16Classifier
from wsss.models.structure import is_activated, outputs_of, trace


def plain(encoder: nn.Module, features: int, **stages: str) -> Classifier:
    numbered = {int(key[1:]): name for key, name in stages.items()}
    return Classifier(encoder, features=features, num_classes=2, stages=numbered, mean=(0.5,) * 3, std=(0.25,) * 3)


# --- activated layers ---------------------------------------------------------------------------------------------


def test_vgg16_has_its_thirteen_relus():
    network = Vgg16Classifier(num_classes=2)
    numbers = (1, 3, 6, 8, 11, 13, 15, 18, 20, 22, 25, 27, 29)
    strides = (1, 1, 2, 2, 4, 4, 4, 8, 8, 8, 16, 16, 16)
    expected = [(f"encoder.{number}", stride) for number, stride in zip(numbers, strides, strict=True)]
    assert list(network.activated.items()) == expected


def test_resnet_has_its_stem_and_blocks():
    """Its one ReLU runs three times a block, in place; the last block's tensor goes by the stage's name."""
    network = ResNetClassifier(depth=50, num_classes=2)
    expected = [("encoder.relu", 2)]
    for layer, (blocks, stride) in enumerate(((3, 4), (4, 8), (6, 16), (3, 16)), start=1):
        expected += [(f"encoder.layer{layer}.{block}", stride) for block in range(blocks - 1)]
        expected += [(f"encoder.layer{layer}", stride)]
    assert list(network.activated.items()) == expected


def test_lite0_has_every_activated_batch_norm():
    network = TimmClassifier(encoder="tf_efficientnet_lite0", num_classes=2)
    assert list(network.activated) == [
        name
        for name, module in network.named_modules()
        if name.rpartition(".")[2] in ("bn1", "bn2") and activates(module)
    ]
    assert len(network.activated) == 2 + 1 + 2 * 15  # stem and head, one in the first block, two in each other
    strides = list(network.activated.values())
    assert strides == sorted(strides)
    assert [network.activated[network.stages[stage]] for stage in range(1, 6)] == [2, 4, 8, 16, 32]


def activates(module: nn.Module) -> bool:
    return not isinstance(getattr(module, "act", nn.Identity()), nn.Identity)


def test_gates_have_no_positions():
    network = TimmClassifier(encoder="efficientnet_b0", num_classes=2)
    assert not [name for name in network.activated if ".se." in name]
    assert set(network.stages.values()) <= set(network.activated)
    assert len(network.activated) == 33


def test_layers_with_channels_last_do_not_count():
    assert TimmClassifier(encoder="test_convnext", num_classes=2).activated == {}


@pytest.mark.parametrize("inplace", [False, True])
def test_one_name_a_tensor(inplace: bool):
    """The ReLU, unless a stage goes by the name of a block around it; not the batch norm that it overwrites."""
    blocks = [
        nn.Sequential(nn.Conv2d(3, 3, 3, stride=2, padding=1), nn.BatchNorm2d(3), nn.ReLU(inplace)) for _ in range(2)
    ]
    network = plain(nn.Sequential(*blocks, nn.Dropout2d()), 3, s1="0")
    assert network.activated == {"encoder.0": 2, "encoder.1.2": 4}


class Residual(nn.Module):
    """Adds in place to an activated tensor: it is the same object, but no activated tensor any more."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.first, self.shared = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.ReLU(inplace=True)

    def forward(self, images: Tensor) -> Tensor:
        features = self.first(self.convolution(images))
        features += self.convolution(images)
        return self.shared(self.shared(features) - 1)


def test_changes_in_place_and_layers_that_run_twice():
    network = plain(nn.Sequential(Residual(), Residual().first), 3)
    assert network.activated == {"encoder.0.first": 1, "encoder.0": 1, "encoder.1": 1}


def test_strides_are_powers_of_two():
    """Without padding, 64 pixels become 31, 29 and 14."""
    layers = [nn.Conv2d(3, 3, 3, stride=2), nn.ReLU(), nn.Conv2d(3, 3, 3), nn.ReLU(), nn.Conv2d(3, 3, 3, 2), nn.ReLU()]
    assert list(plain(nn.Sequential(*layers), 3).activated.values()) == [2, 2, 4]


# --- traces -------------------------------------------------------------------------------------------------------


class Faulty(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        raise ValueError("no")


@pytest.mark.parametrize("last", [nn.ReLU(), Faulty()])
def test_a_trace_leaves_flags_statistics_and_hooks_as_they_were(last: nn.Module):
    encoder = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), last)
    network = plain(encoder, 3)
    encoder[1].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    try:
        assert network.activated == {"encoder.2": 1}
    except ValueError:
        assert isinstance(last, Faulty)
    assert [module.training for module in encoder] == [True, False, True]
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())
    assert not any(parameter.grad is not None for parameter in network.parameters())


def test_a_trace_in_the_order_of_execution():
    module = nn.Sequential(nn.ReLU(inplace=True), nn.Identity())
    calls = trace(module, torch.ones(1, 3, 2, 2), prefix="encoder")
    assert [call.name for call in calls] == ["encoder.0", "encoder.1", "encoder"]
    assert calls[0].given == calls[1].taken == calls[1].given == calls[2].given
    assert [is_activated(call.module) for call in calls] == [True, False, False]


def test_collected_outputs_are_part_of_the_graph_and_safe_from_changes_in_place():
    module = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(inplace=True))
    with outputs_of({"first": module[0]}) as outputs:
        module(torch.ones(1, 1, 2, 2))
    expected = F.conv2d(torch.ones(1, 1, 2, 2), module[0].weight, module[0].bias)
    torch.testing.assert_close(outputs["first"], expected)
    assert outputs["first"].requires_grad
    assert not any(part._forward_hooks for part in module)
