"""Activations and gradients of a network. The only place with hooks and autograd; it leaves no trace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Evaluation mode and no parameter gradients inside; every flag as before outside, whatever happens.

    Frozen parameters keep autograd from recording the part of the network below the shallowest wanted layer.
    """
    training = {module: module.training for module in network.modules()}
    wanted = {parameter: parameter.requires_grad for parameter in network.parameters()}
    try:
        network.eval().requires_grad_(False)
        yield
    finally:
        for module, flag in training.items():
            module.training = flag
        for parameter, flag in wanted.items():
            parameter.requires_grad_(flag)


@contextmanager
def recorded(network: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Record the outputs of named modules during the forward passes inside.

    Yields:
        A dict that holds, after a forward pass, one ``(N, C, H, W)`` output per layer. Where autograd is on, the
        shallowest of them starts the graph, so gradients w.r.t. each are available.
    """
    outputs: dict[str, Tensor] = {}

    def record(name: str, output: Tensor) -> Tensor:
        if torch.is_grad_enabled() and not output.requires_grad:
            output = output.detach().requires_grad_()
        outputs[name] = output
        return output.clone()  # the next module may work in place, and the record must stay what it was

    modules = dict(network.named_modules())
    with ExitStack() as hooks:
        for layer in layers:
            handle = modules[layer].register_forward_hook(lambda _m, _i, output, name=layer: record(name, output))
            hooks.callback(handle.remove)
        yield outputs


def class_gradients(logits: Tensor, outputs: Sequence[Tensor], class_ids: Sequence[Sequence[int]]) -> list[Tensor]:
    """Gradients of class logits w.r.t. layer outputs, for items that may ask for different classes.

    One backward pass serves the k-th class of every item at once, since items do not interact in evaluation mode;
    so a batch costs as many passes as its richest item has classes.

    Args:
        logits: ``(N, C)``.
        outputs: one ``(N, D, h, w)`` tensor a layer, part of the graph of ``logits``.
        class_ids: for each of the N items, the classes in 1..C.

    Returns:
        One ``(P, D, h, w)`` tensor a layer, where P counts the (item, class) pairs, item by item.
    """
    rounds = max(map(len, class_ids), default=0)
    if not rounds:
        return [output.new_zeros((0, *output.shape[1:])) for output in outputs]
    by_round = []
    for k in range(rounds):
        items = [i for i, ids in enumerate(class_ids) if k < len(ids)]
        score = logits[items, [class_ids[i][k] - 1 for i in items]].sum()
        by_round.append(torch.autograd.grad(score, outputs, retain_graph=k + 1 < rounds))
    pairs = [(i, k) for i, ids in enumerate(class_ids) for k in range(len(ids))]
    return [torch.stack([by_round[k][layer][i] for i, k in pairs]) for layer in range(len(outputs))]


def pair_items(class_ids: Sequence[Sequence[int]]) -> list[int]:
    """The item of each (item, class) pair, item by item.

    >>> pair_items([[3], [], [1, 2]])
    [0, 2, 2]
    """
    return [item for item, ids in enumerate(class_ids) for _ in ids]
