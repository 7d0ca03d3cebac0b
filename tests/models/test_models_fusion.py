from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsss.cams.signals import recorded
from wsss.errors import ConfigError
from wsss.models import Classifier, TimmClassifier, Vgg16Classifier
from wsss.models.fusion import StageFusion, multiply
from wsss.training.shells import ClassifierShell

IMAGES = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))


def network(*fused_stages: int) -> Classifier:
    """Strides 2, 4, 8, 8, 8; the same weights whatever is fused."""
    torch.manual_seed(0)
    return tiny.TinyClassifier(num_classes=3, fused_stages=fused_stages).eval()


def stage_outputs(classifier: Classifier, *stages: int) -> list[Tensor]:
    names = [classifier.layer(stage) for stage in stages]
    with torch.no_grad(), recorded(classifier, names) as outputs:
        classifier.features(IMAGES)
    return [outputs[name] for name in names]


# --- the product --------------------------------------------------------------------------------------------------


def test_product_by_hand():
    coarse, fine = torch.tensor([[[[2.0]]]]), torch.tensor([[[[1.0, 3.0], [0.0, -1.0]]]])
    assert multiply([coarse, fine]).tolist() == multiply([fine, coarse]).tolist() == [[[[2, 6], [0, -2]]]]
    assert multiply([coarse]) is coarse


def test_the_coarse_is_resized_bilinearly_with_corners_not_aligned():
    coarse, fine = torch.tensor([[[[0.0, 4.0]]]]), torch.full((1, 1, 1, 4), 2.0)
    assert multiply([coarse, fine]).flatten().tolist() == [0, 2, 6, 8]


def test_a_projection_by_hand():
    """One channel is projected to two: relu(3 x - 1) and relu(-x)."""
    fusion = StageFusion({3: 1}, features=2)
    projection: Any = fusion.projections["3"]
    projection.weight.data = torch.tensor([3.0, -1.0]).view(2, 1, 1, 1)
    projection.bias.data = torch.tensor([-1.0, 0.0])
    last = torch.tensor([5.0, 7.0]).view(1, 2, 1, 1)
    fused = fusion(last, {3: torch.tensor([[[[1.0, 0.0]]]])})
    assert fused.tolist() == [[[[10, 0]], [[0, 0]]]]


# --- in a classifier ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stages", [(2, 5), (5, 3, 2), (4, 5)])
def test_features_are_the_product_of_the_stages(stages: tuple[int, ...]):
    fused = network(*stages)
    shallower = sorted(set(stages) - {5})
    *blocks, last = stage_outputs(fused, *shallower, 5)
    expected, size = last, blocks[0].shape[-2:]
    expected = F.interpolate(expected, size=size, mode="bilinear", align_corners=False)
    for stage, block in zip(shallower, blocks, strict=True):
        factor = fused.fusion.projections[str(stage)](block).relu()  # type: ignore[union-attr]
        expected = expected * F.interpolate(factor, size=size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(fused.features(IMAGES), expected)
    torch.testing.assert_close(fused(IMAGES), fused.head(expected.mean(dim=(2, 3), keepdim=True)).flatten(1))


def test_at_the_start_the_pretrained_features_survive():
    plain, fused = network(), network(3, 4, 5)
    with torch.no_grad():
        torch.testing.assert_close(fused.features(IMAGES), plain.features(IMAGES), rtol=0.1, atol=1e-3)
        assert not torch.equal(fused.features(IMAGES), plain.features(IMAGES))


def test_nothing_fused_is_the_encoder_alone():
    plain = network()
    assert plain.fusion is None
    assert {name.partition(".")[0] for name in plain.state_dict()} == {"encoder", "head"}
    assert torch.equal(plain.features(IMAGES), plain.encoder((IMAGES - 0.5) / 0.25))


@pytest.mark.parametrize("build", [Vgg16Classifier, partial(TimmClassifier, encoder="test_efficientnet")])
def test_real_encoders(build: Any):
    fused = build(num_classes=2, fused_stages=[3, 5]).eval()
    with torch.no_grad():
        assert fused.features(IMAGES).shape[-2:] == stage_outputs(fused, 3)[0].shape[-2:]
        assert fused(IMAGES).shape == (2, 2)


def test_no_hooks_are_left_even_after_an_error():
    fused = network(3, 5)
    fused.features(IMAGES)
    with pytest.raises(RuntimeError):
        fused.features(torch.zeros(1, 3, 0, 0))
    assert not any(module._forward_hooks for module in fused.modules())


# --- gradients ----------------------------------------------------------------------------------------------------


def test_gradients_reach_projections_and_encoder():
    fused = network(2, 3, 5).train()
    fused(IMAGES).sum().backward()
    for name, parameter in fused.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_a_recorded_stage_sees_the_gradient_through_both_paths():
    """y = mean(relu(p x + b) * (w x)) for the input x of the last convolution, which stage 1 (in place) returns."""
    encoder = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 3, 1, bias=False), nn.ReLU(inplace=True))
    fused = Classifier(
        encoder,
        features=3,
        num_classes=1,
        stages={1: "0", 5: "2"},
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        fused_stages=[1, 5],
    )
    projection: Any = fused.fusion.projections["1"]  # type: ignore[union-attr]
    for weight, diagonal in ((encoder[1].weight, 2.0), (projection.weight, 3.0)):
        weight.data = torch.diag(torch.full((3,), diagonal))[:, :, None, None]
    fused.head.weight.data.fill_(1)
    image = torch.tensor([1.0, 0.5, 0.0]).view(1, 3, 1, 1)
    with recorded(fused, ["encoder.0"]) as outputs:
        logit = fused(image)[0, 0]
    [gradient] = torch.autograd.grad(logit, [outputs["encoder.0"]])
    # (3 x + 1) 2 x: 8, 2.5, 0; its derivative 12 x + 2, without its second half where the last ReLU is at zero
    assert logit.item() == 10.5
    assert gradient.flatten().tolist() == [14, 8, 0]


def test_the_parts_before_a_stage_and_the_new_layers():
    fused = network(3, 5)
    encoder = {id(parameter) for parameter in fused.encoder.parameters()}
    assert [id(p) for p in fused.parameters_up_to(5)] == [id(p) for p in fused.encoder.parameters()]
    recipe = SimpleNamespace(
        frozen_stages=2,
        frozen_batch_norm_weights=False,
        encoder_lr_factor=0.1,
        bias_lr_factor=1.0,
        optimizer=partial(torch.optim.SGD, lr=1.0),
        schedule=lambda _step, _steps: 1.0,
    )
    shell = ClassifierShell(fused, recipe, seed=0)  # type: ignore[arg-type]
    shell.trainer = SimpleNamespace(estimated_stepping_batches=4)  # type: ignore[assignment]
    pretrained, new = shell.configure_optimizers()["optimizer"].param_groups
    assert (pretrained["lr"], new["lr"]) == (0.1, 1.0)
    assert {id(p) for p in pretrained["params"]} < encoder
    assert [id(p) for p in new["params"]] == [
        id(p)
        for p in (fused.head.weight, *fused.fusion.parameters())  # type: ignore[union-attr]
    ]


# --- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stages", "fault"),
    [
        ((3, 4), r"classifier\.fused_stages=\[3, 4\] must hold the last stage, 5, and one more at least"),
        ((5,), r"classifier\.fused_stages=\[5\] must hold the last stage, 5, and one more at least"),
        ((3, 3, 5), r"fused_stages=\[3, 3, 5\] must name different ones of the stages \[1, 2, 3, 4, 5\]"),
        ((5, 9), r"fused_stages=\[5, 9\] must name different ones of the stages"),
        (("layer3", 5), r"must name different ones of the stages"),
    ],
)
def test_choices_that_cannot_be(stages: tuple[int, ...], fault: str):
    with pytest.raises(ConfigError, match=fault):
        network(*stages)


def test_a_stage_without_positions_cannot_be_fused():
    encoder = nn.Sequential(nn.Flatten(), nn.Unflatten(1, (3, 64, 64)))
    options: dict[str, Any] = {"features": 3, "num_classes": 2, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    with pytest.raises(ConfigError, match=r"stage 1 \(encoder\.0\) gives no feature map to fuse"):
        Classifier(encoder, stages={1: "0", 5: "1"}, fused_stages=[1, 5], **options)
