from functools import partial
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsss.errors import ConfigError
from wsss.models import Classifier, ResNetClassifier, TimmClassifier, Vgg16Classifier
from wsss.models.boundary import BoundaryNetwork
from wsss.models.structure import hooked

IMAGES = torch.rand(2, 3, 30, 45, generator=torch.Generator().manual_seed(0))


def classifier(**options: Any) -> Classifier:
    torch.manual_seed(0)
    return tiny.TinyClassifier(num_classes=3, **options)


def network(**options: Any) -> BoundaryNetwork:
    """Strides 2, 4, 8, 8, 8."""
    return BoundaryNetwork(classifier=classifier(), **options)


def test_one_logit_by_hand():
    """A stage of four equal maps a cell: normalised to -1 and 1, of which ReLU leaves 0 and 1; 4 * 3 * 1 - 5 = 7."""
    encoder = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.ReLU())
    encoder[0].weight.data.fill_(1 / 3)  # type: ignore[operator, union-attr]
    stages = {1: "1"}
    source = Classifier(encoder, features=4, num_classes=1, stages=stages, mean=(0.0,) * 3, std=(1.0,) * 3)
    net = BoundaryNetwork(classifier=source, stages=[1], channels=4, stride=1)
    net.projections["1"][0].weight.data = torch.eye(4)[:, :, None, None]  # type: ignore[index, union-attr]
    net.head.weight.data.fill_(3)
    net.head.bias.data.fill_(-5)  # type: ignore[union-attr]
    image = torch.tensor([0.2, 0.8]).expand(3, 1, 2)
    assert net(image[None]).tolist() == [[[-5.0, pytest.approx(7, abs=1e-2)]]]
    torch.testing.assert_close(net.boundaries(image), torch.tensor([[-5.0, 7.0]]).sigmoid(), rtol=1e-3, atol=1e-3)


def test_it_is_the_projected_stages_side_by_side():
    net = network(stages=[1, 3, 5], channels=8)
    source = classifier().eval()
    names = {stage: source.get_submodule(source.layer(stage)) for stage in (1, 3, 5)}
    blocks: dict[int, Tensor] = {}
    with hooked(names, lambda stage, _inputs, output: blocks.update({stage: output.detach().clone()})):
        source.features(IMAGES)
    columns = [
        F.interpolate(net.projections[str(stage)](blocks[stage]), size=(8, 12), mode="bilinear", align_corners=False)
        for stage in (1, 3, 5)
    ]
    torch.testing.assert_close(net(IMAGES), net.head(torch.cat(columns, dim=1))[:, 0])


@pytest.mark.parametrize(
    ("stride", "size", "expected"),
    [(4, (32, 64), (8, 16)), (4, (33, 61), (9, 16)), (8, (33, 64), (5, 8)), (1, (16, 17), (16, 17))],
)
def test_size_of_the_grid(stride: int, size: tuple[int, int], expected: tuple[int, int]):
    assert network(stride=stride)(torch.zeros(1, 3, *size)).shape == (1, *expected)


@pytest.mark.parametrize(
    "build",
    [
        Vgg16Classifier,
        partial(ResNetClassifier, depth=50),
        partial(TimmClassifier, encoder="test_efficientnet"),
        partial(TimmClassifier, encoder="test_resnet"),
        partial(tiny.TinyClassifier, fused_stages=[3, 5]),
    ],
)
def test_encoders(build: Any):
    source = build(num_classes=2)
    net = BoundaryNetwork(classifier=source, stages=sorted(source.stages))
    assert net(IMAGES).shape == (2, 8, 12)
    assert len(net.projections) == len(source.stages)


# --- frozen and trained parts ----------------------------------------------------------------------------------------


def test_only_the_new_layers_learn():
    net = network()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.1)
    net.train()
    net(IMAGES).square().sum().backward()
    optimizer.step()
    moved = {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if not name.startswith("encoder.")}


def test_the_encoder_stays_in_evaluation_mode():
    net = network()
    for chosen in (net, net.train(), net.eval().train()):
        assert chosen.training
        assert chosen.head.training
        assert not any(module.training for module in chosen.encoder.modules())
    assert torch.equal(net(IMAGES), net(IMAGES))  # dropout in the encoder would differ
    assert not net.eval().head.training


def test_the_encoder_is_that_of_the_classifier_and_its_head_is_not_kept():
    source = classifier()
    net = BoundaryNetwork(classifier=source)
    assert net.encoder is source.encoder
    assert not any(parameter.requires_grad for parameter in source.encoder.parameters())
    assert {name.partition(".")[0] for name in net.state_dict()} == {"encoder", "projections", "head"}


def test_weights_are_saved_and_read():
    net, other = network(), network()
    with torch.no_grad():
        net.head.weight.mul_(3)
        assert not torch.equal(net(IMAGES), other(IMAGES))
        other.load_state_dict(net.state_dict())
        assert torch.equal(net(IMAGES), other(IMAGES))


def test_no_hooks_are_left_even_after_an_error():
    net = network()
    net(IMAGES)
    with pytest.raises(RuntimeError):
        net(torch.zeros(1, 3, 0, 0))
    assert not any(module._forward_hooks for module in net.modules())


# --- with the mirror image -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [44, 45])
def test_boundaries_of_the_mirror_image_are_mirrored(width: int):
    net, image = network().eval(), IMAGES[0, :, :, :width]
    boundaries = net.boundaries(image)
    assert boundaries.shape == (8, -(-width // 4))
    assert (boundaries >= 0).all()
    assert (boundaries <= 1).all()
    assert not boundaries.requires_grad
    torch.testing.assert_close(net.boundaries(image.flip(-1)), boundaries.flip(-1))
    assert not torch.allclose(net(image[None])[0].sigmoid(), boundaries, atol=1e-5)


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"stages": []}, r"stages=\[\] must name one or more different stages"),
        ({"stages": [3, 3]}, r"stages=\[3, 3\] must name one or more different stages"),
        ({"stages": [1, 7]}, r"no stage 7: this classifier has the stages \[1, 2, 3, 4, 5\]"),
        ({"channels": 30}, r"channels=30 must be a multiple of 4"),
        ({"channels": 0}, r"channels=0 must be a multiple of 4"),
        ({"stride": 0}, r"stride=0 1 or more"),
    ],
)
def test_choices_that_cannot_be(options: dict[str, Any], fault: str):
    with pytest.raises(ConfigError, match=fault):
        network(**options)


def test_a_stage_without_positions_cannot_be_used():
    encoder = nn.Sequential(nn.Flatten(), nn.Unflatten(1, (3, 64, 64)))
    options: dict[str, Any] = {"features": 3, "num_classes": 2, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    with pytest.raises(ConfigError, match=r"stage 1 \(encoder\.0\) gives no feature map"):
        BoundaryNetwork(classifier=Classifier(encoder, stages={1: "0", 5: "1"}, **options), stages=[1, 5])
