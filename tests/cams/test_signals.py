from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from wsss.cams.signals import class_gradients, frozen, pair_items, pair_order, recorded


@pytest.fixture
def network() -> nn.Sequential:
    """Two layers with batch norm, half frozen, half in evaluation mode: flags that must come back."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3, stride=2, padding=1), nn.ReLU()
    )
    network[1].eval()
    network[0].weight.requires_grad_(False)
    network[3].weight.grad = torch.full_like(network[3].weight, 7.0)
    return network


def state(network: nn.Module) -> tuple:
    return (
        [module.training for module in network.modules()],
        [parameter.requires_grad for parameter in network.parameters()],
        [None if parameter.grad is None else parameter.grad.clone() for parameter in network.parameters()],
        [len(module._forward_hooks) + len(module._backward_hooks) for module in network.modules()],
    )


def same(before: tuple, after: tuple) -> bool:
    gradients = all(
        (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))
        for a, b in zip(before[2], after[2], strict=True)
    )
    return gradients and (before[0], before[1], before[3]) == (after[0], after[1], after[3])


def logits_of(features: Tensor) -> Tensor:
    """Three logits of five channels."""
    pooled = features.mean(dim=(2, 3))
    return torch.stack([pooled[:, 0] * 2, pooled[:, 1:3].sum(1), -pooled[:, 3] * pooled[:, 4]], dim=1)


def pair_gradients(logits: Tensor, outputs: Sequence[Tensor], class_ids: Sequence[Sequence[int]]) -> list[Tensor]:
    """The rounds of ``class_gradients``, pair by pair."""
    rounds = [
        [gradient[items] for gradient in gradients] for items, gradients in class_gradients(logits, outputs, class_ids)
    ]
    return [torch.cat(layer)[pair_order(class_ids)] for layer in zip(*rounds, strict=True)]


# --- frozen ------------------------------------------------------------------------------------------------------


def test_frozen_switches_everything_off_and_back(network: nn.Sequential) -> None:
    before = state(network)
    assert len(set(before[0])) == len(set(before[1])) == 2
    with frozen(network):
        assert not any(module.training for module in network.modules())
        assert not any(parameter.requires_grad for parameter in network.parameters())
    assert same(before, state(network))


def test_flags_come_back_after_an_exception(network: nn.Sequential) -> None:
    before = state(network)
    with pytest.raises(RuntimeError, match="3 channels"), frozen(network), recorded(network, ["0", "4"]):
        network(torch.rand(1, 1, 8, 8))
    assert same(before, state(network))


# --- recorded ----------------------------------------------------------------------------------------------------


def test_recorded_outputs_are_those_of_the_layers(network: nn.Sequential) -> None:
    images = torch.rand(2, 3, 8, 8)
    with frozen(network), recorded(network, ["4", "2"]) as outputs:
        result = network(images)
    assert set(outputs) == {"2", "4"}
    torch.testing.assert_close(outputs["2"], network.eval()[:3](images))
    torch.testing.assert_close(outputs["4"], result)


def test_the_shallowest_layer_starts_the_graph(network: nn.Sequential) -> None:
    images = torch.rand(1, 3, 8, 8, requires_grad=False)
    with frozen(network), torch.enable_grad(), recorded(network, ["2", "4"]) as outputs:
        network(images)
    assert outputs["2"].is_leaf
    assert outputs["2"].requires_grad
    assert outputs["4"].grad_fn is not None


def test_nothing_is_recorded_for_autograd_where_it_is_off(network: nn.Sequential) -> None:
    with torch.no_grad(), recorded(network, ["2"]) as outputs:
        network(torch.rand(1, 3, 8, 8))
    assert not outputs["2"].requires_grad


def test_hooks_are_gone_after_use_and_after_an_exception(network: nn.Sequential) -> None:
    with recorded(network, ["0", "2"]):
        assert state(network)[3] == [0, 1, 0, 1, 0, 0]
    assert not any(state(network)[3])
    with pytest.raises(ZeroDivisionError), recorded(network, ["0", "2"]):
        raise ZeroDivisionError
    assert not any(state(network)[3])


def test_an_unknown_layer_leaves_no_hook_of_the_known_ones(network: nn.Sequential) -> None:
    with pytest.raises(AttributeError), recorded(network, ["0", "none"]):
        pass
    assert not any(state(network)[3])


@pytest.mark.parametrize("layers", [["0"], ["0", "2"]])
def test_a_layer_before_one_that_works_in_place(layers: list[str]) -> None:
    """The record of a layer holds what it gave out, and its gradient, although the next one overwrites its input."""
    torch.manual_seed(0)
    images = torch.rand(1, 3, 6, 6)
    results = []
    for inplace in (False, True):
        torch.manual_seed(1)
        network = nn.Sequential(
            nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(inplace), nn.Conv2d(5, 5, 3, padding=1), nn.ReLU(inplace)
        )
        with frozen(network), recorded(network, layers) as outputs:
            logits = logits_of(network(images))
            gradients = pair_gradients(logits, [outputs[layer] for layer in layers], [[1, 3]])
        results.append([*(outputs[layer].detach() for layer in layers), *gradients])
    assert results[0][0].min() < 0
    for plain, inplace in zip(*results, strict=True):
        torch.testing.assert_close(plain, inplace)


# --- class_gradients ---------------------------------------------------------------------------------------------


def test_gradients_by_hand() -> None:
    """y_1 = 2 a, y_2 = a b: gradients (2, 0) and (b, a)."""
    outputs = torch.tensor([[3.0, 5.0], [7.0, 11.0]]).view(2, 2, 1, 1).requires_grad_()
    a, b = outputs[:, 0, 0, 0], outputs[:, 1, 0, 0]
    logits = torch.stack([2 * a, a * b], dim=1)
    [gradients] = pair_gradients(logits, [outputs], [[2], [1, 2]])
    assert gradients.flatten(1).tolist() == [[5, 3], [2, 0], [11, 7]]


def test_items_with_other_classes_equal_one_by_one(network: nn.Sequential) -> None:
    images, class_ids = torch.rand(4, 3, 8, 8), [[3, 1], [], [2], [1, 2, 3]]
    with frozen(network), recorded(network, ["2", "4"]) as outputs:
        logits = logits_of(network(images))
        together = pair_gradients(logits, [outputs["2"], outputs["4"]], class_ids)
    assert [tuple(layer.shape) for layer in together] == [(6, 4, 8, 8), (6, 5, 4, 4)]
    pairs = [(item, id) for item, ids in enumerate(class_ids) for id in ids]
    for pair, (item, id) in enumerate(pairs):
        with frozen(network), recorded(network, ["2", "4"]) as outputs:
            logits = logits_of(network(images[item : item + 1]))
        alone = torch.autograd.grad(logits[0, id - 1], [outputs["2"], outputs["4"]])
        for layer, gradient in zip(together, alone, strict=True):
            torch.testing.assert_close(layer[pair], gradient[0])


def test_a_class_may_come_twice() -> None:
    outputs = torch.ones(1, 2, 1, 1, requires_grad=True)
    [gradients] = pair_gradients(outputs.flatten(1) * 3, [outputs], [[2, 2]])
    assert gradients.flatten(1).tolist() == [[0, 3], [0, 3]]


@pytest.mark.parametrize("class_ids", [[[], []], []])
def test_no_class_at_all(class_ids: list) -> None:
    outputs = torch.ones(len(class_ids), 2, 3, 4, requires_grad=True)
    [gradients] = pair_gradients(outputs.mean(dim=(2, 3)), [outputs], class_ids)
    assert gradients.shape == (0, 2, 3, 4)


def test_parameters_get_no_gradient(network: nn.Sequential) -> None:
    before = state(network)
    with frozen(network), recorded(network, ["2"]) as outputs:
        logits = logits_of(network(torch.rand(1, 3, 8, 8)))
        assert list(class_gradients(logits, [outputs["2"]], [[1]]))
    assert outputs["2"].grad is None
    assert same(before, state(network))


def test_pair_items() -> None:
    assert pair_items([]) == pair_items([[], []]) == []
    assert pair_items([[4, 9], [], [1]]) == [0, 0, 2]
