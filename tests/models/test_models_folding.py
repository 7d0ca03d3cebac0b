from collections.abc import Callable
from functools import partial

import pytest
import tiny
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from wsss.cams.signals import recorded
from wsss.errors import ConfigError
from wsss.models import Classifier, ResNetClassifier, TimmClassifier, fold_batch_norm

IMAGES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))

NETWORKS: dict[str, Callable[[], Classifier]] = {
    "lite0": partial(TimmClassifier, encoder="tf_efficientnet_lite0", num_classes=3),
    "resnet50": partial(ResNetClassifier, depth=50, num_classes=3),
    "tiny": partial(tiny.TinyClassifier, num_classes=3),
    "tiny, fused": partial(tiny.TinyClassifier, num_classes=3, fused_stages=(3, 5), pooling="tap"),
}


def randomised(network: Classifier) -> Classifier:
    """Batch norms that do something."""
    generator = torch.Generator().manual_seed(0)
    for norm in norms(network).values():
        for tensor, low, high in (
            (norm.running_mean, -0.5, 0.5),
            (norm.running_var, 0.5, 2.0),
            (norm.weight.data, 0.5, 1.5),
            (norm.bias.data, -0.3, 0.3),
        ):
            assert tensor is not None
            tensor.uniform_(low, high, generator=generator)
    return network.eval()


def norms(network: nn.Module) -> dict[str, nn.BatchNorm2d]:
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}


def plain(encoder: nn.Module, **stages: str) -> Classifier:
    numbered = {int(key[1:]): name for key, name in stages.items()}
    return randomised(Classifier(encoder, features=3, num_classes=2, stages=numbered, mean=(0.5,) * 3, std=(0.25,) * 3))


def outputs(network: Classifier, *names: str) -> list[Tensor]:
    """Of the named layers, and the logits."""
    with torch.no_grad(), recorded(network, names) as found:
        logits = network(IMAGES)
    return [*(found[name] for name in names), logits]


def assert_same(first: Classifier, second: Classifier, *names: str) -> None:
    """Within 1e-4 of the largest value."""
    for a, b in zip(outputs(first, *names), outputs(second, *names), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4 * b.abs().max().item())


@pytest.mark.parametrize("name", NETWORKS)
def test_everything_folds_and_nothing_changes(name: str):
    network = randomised(NETWORKS[name]()).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    folded = fold_batch_norm(network)
    assert not norms(folded)
    assert [key for key, _ in folded.named_modules()] == [key for key, _ in network.named_modules()]
    assert folded.activated == network.activated
    assert_same(folded, network.eval(), *network.stages.values())
    assert_same(folded, network, *network.activated)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_the_original_keeps_its_mode_and_the_copy_is_in_evaluation():
    network = tiny.TinyClassifier(num_classes=2).train()
    folded = fold_batch_norm(network)
    assert all(module.training for module in network.modules())
    assert not any(module.training for module in folded.modules())
    assert not any(module._forward_hooks for part in (network, folded) for module in part.modules())


def test_by_hand():
    """y = 2 x, then (y - 1) / 2 * 6 + 1 = 6 x - 2."""
    convolution, norm = nn.Conv2d(3, 3, 1, groups=3, bias=False), nn.BatchNorm2d(3, eps=0)
    network = plain(nn.Sequential(convolution, norm))
    for tensor, value in ((convolution.weight, 2), (norm.running_mean, 1), (norm.running_var, 4), (norm.weight, 6)):
        nn.init.constant_(tensor, value)  # type: ignore[arg-type]
    nn.init.ones_(norm.bias)
    folded = fold_batch_norm(network).encoder
    assert folded[0].weight.flatten().tolist() == [6, 6, 6]
    assert folded[0].bias.tolist() == [-2, -2, -2]
    assert type(folded[1]) is nn.Identity


def test_grouped_convolutions_with_a_bias_fold():
    encoder = nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), BatchNormAct2d(6), nn.Conv2d(6, 3, 1), nn.BatchNorm2d(3))
    network = plain(encoder)
    folded = fold_batch_norm(network)
    assert not norms(folded)
    assert_same(folded, network, "encoder.1", "encoder.3")
    assert outputs(folded, "encoder.1")[0].min() == 0


def block(*after: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), *after)


def test_what_is_kept_is_not_folded():
    network = plain(nn.Sequential(block(nn.ReLU()), block(nn.ReLU(inplace=True))))
    folded = fold_batch_norm(network, keep=["encoder.0.0", "encoder.1.1"])
    assert list(norms(folded)) == ["encoder.0.1"]  # a batch norm's own output stays what it was
    assert_same(folded, network, "encoder.0.0", "encoder.1.1")


def test_a_kept_name_may_be_that_of_a_block_around_the_convolution():
    network = plain(nn.Sequential(nn.Sequential(nn.Conv2d(3, 3, 1)), nn.BatchNorm2d(3)))
    assert list(norms(fold_batch_norm(network, keep={"encoder.0"}))) == ["encoder.1"]
    assert not norms(fold_batch_norm(network))


def test_the_output_of_a_stage_is_kept():
    network = plain(block(), s1="0", s5="1")
    folded = fold_batch_norm(network)
    assert list(norms(folded)) == ["encoder.1"]
    assert_same(folded, network, "encoder.0")


class ReadTwice(nn.Module):
    """A plain function reads the convolution's output beside the batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Tensor:
        features = self.convolution(images)
        return features + self.norm(features)


class RunTwice(ReadTwice):
    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.convolution(self.convolution(images)))


class NotDirectly(ReadTwice):
    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.convolution(images).relu_())


@pytest.mark.parametrize("encoder", [ReadTwice(), RunTwice(), NotDirectly(), nn.Sequential(nn.BatchNorm2d(3))])
def test_what_cannot_be_folded_is_left_alone(encoder: nn.Module):
    network = plain(encoder)
    folded = fold_batch_norm(network)
    assert len(norms(folded)) == 1
    assert_same(folded, network)


def test_batch_norm_without_statistics_is_left_alone():
    encoder = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False))
    network = Classifier(encoder, features=3, num_classes=2, stages={}, mean=(0.5,) * 3, std=(0.25,) * 3)
    assert len(norms(fold_batch_norm(network))) == 1


def test_frozen_parameters_and_no_grad_make_no_difference():
    network = plain(block(nn.ReLU())).requires_grad_(False)
    with torch.no_grad():
        folded = fold_batch_norm(network)
    with torch.inference_mode():
        again = fold_batch_norm(network)
    assert not norms(folded)
    assert not norms(again)
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    again(IMAGES.clone().requires_grad_()).sum().backward()


def test_a_kept_module_must_be_there():
    with pytest.raises(ConfigError, match=r"no module 'encoder\.9' in this classifier"):
        fold_batch_norm(plain(block()), keep=["encoder.9"])
