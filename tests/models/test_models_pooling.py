import pytest
import torch
from torch import Tensor, nn

from wsss.errors import ConfigError
from wsss.models import Classifier
from wsss.models.pooling import global_average, thresholded_average


def channel(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(1, 1, 1, -1)


def pixels(**options: object) -> Classifier:
    """The features are the colours."""
    stages: dict[int, str] = {}
    return Classifier(
        nn.Identity(),
        features=3,
        num_classes=2,
        stages=stages,
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        **options,  # type: ignore[arg-type]
    )


def test_by_hand():
    features = channel(0, 1, 5, 10)
    assert global_average(features).tolist() == [[4]]
    assert thresholded_average(features, threshold=0.05).item() == pytest.approx(16 / 3)  # those above 0.5
    assert thresholded_average(features, threshold=0.1).item() == 7.5  # 1 is not above 1
    assert thresholded_average(features, threshold=0.5).item() == 10
    assert thresholded_average(features, threshold=0.99).item() == 10


def test_each_channel_of_each_item_has_its_own_threshold():
    features = torch.tensor([[[1.0, 9.0], [1.0, 3.0]], [[8.0, 8.0], [0.0, 0.0]]])[..., None]
    assert thresholded_average(features, threshold=0.25).tolist() == [[9, 2], [8, 0]]


def test_threshold_zero_is_the_mean_of_the_positive_values():
    features = torch.rand(2, 3, 5, 4, generator=torch.Generator().manual_seed(0)) - 0.5
    features = features.relu()
    expected = [[values[values > 0].mean().item() for values in item] for item in features.flatten(2)]
    torch.testing.assert_close(thresholded_average(features, threshold=0), torch.tensor(expected))
    positive = features + 0.1
    torch.testing.assert_close(thresholded_average(positive, threshold=0), global_average(positive))


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_channel_without_a_value_above_gives_zero_and_no_gradient(value: float):
    features = torch.full((1, 2, 2, 2), value, requires_grad=True)
    pooled = thresholded_average(features, threshold=0.05)
    pooled.sum().backward()
    assert pooled.tolist() == [[0, 0]]
    assert features.grad is not None
    assert features.grad.eq(0).all()


def test_the_gradient_is_shared_by_the_values_above():
    features = channel(0, 1, 5, 10).requires_grad_()
    thresholded_average(features, threshold=0.1).sum().backward()
    assert features.grad is not None
    assert features.grad.flatten().tolist() == [0, 0, 0.5, 0.5]  # nothing through the maximum


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("threshold", [0.0, 0.05])
def test_what_is_not_finite_stays_so(value: float, threshold: float):
    assert not thresholded_average(channel(0, 1, value), threshold=threshold).isfinite()


def test_a_classifier_pools_by_threshold_in_training_and_test():
    network = pixels(pooling="tap", tap_threshold=0.5)
    network.head.weight.data = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, -1.0]]).view(2, 3, 1, 1)
    image = torch.tensor([[0.25, 1.0], [0.5, 0.75], [0.0, 0.0]]).view(1, 3, 1, 2)
    assert network.pool(image).tolist() == [[1, 0.625, 0]]
    for training in (True, False):
        assert network.train(training)(image).tolist() == [[1, 1.25]]


def test_the_default_is_global_average():
    image = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    network = pixels(tap_threshold=0.5)
    assert torch.equal(network.pool(image), image.mean(dim=(2, 3)))
    assert torch.equal(network(image), network.head(image.mean(dim=(2, 3), keepdim=True)).flatten(1))


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"pooling": "max"}, r"classifier\.pooling='max' is unknown; choose gap or tap"),
        ({"pooling": "tap", "tap_threshold": 1.0}, r"classifier\.tap_threshold=1\.0 must lie in \[0,1\)"),
        ({"tap_threshold": -0.1}, r"classifier\.tap_threshold=-0\.1 must lie in \[0,1\)"),
        ({"pooling": "tap", "tap_threshold": float("nan")}, "must lie in"),
    ],
)
def test_choices_that_cannot_be(options: dict[str, object], fault: str):
    with pytest.raises(ConfigError, match=fault):
        pixels(**options)
