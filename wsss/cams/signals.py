"""Activations and gradients of a network: the only place with autograd. It leaves no trace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from wsss.models.classifier import Classifier
from wsss.models.structure import evaluation, hooked

ClassIds = Sequence[Sequence[int]]
"""For each image of a batch, the classes (1..C) that get a map."""


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Evaluation mode and no parameter gradients inside; every flag as before outside, whatever happens.

    Frozen parameters keep autograd from recording the part of the network below the shallowest wanted layer.
    """
    wanted = [parameter for parameter in network.parameters() if parameter.requires_grad]
    try:
        for parameter in wanted:
            parameter.requires_grad_(False)
        with evaluation(network):
            yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_()


@contextmanager
def recorded(network: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Record the outputs of named modules during the forward passes inside.

    Yields:
        A dict that holds, after a forward pass, one ``(N, C, H, W)`` output per layer. Where autograd is on, the
        shallowest of them starts the graph, so gradients w.r.t. each are available.
    """
    outputs: dict[str, Tensor] = {}

    def record(name: str, _inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        if torch.is_grad_enabled() and not output.requires_grad:
            output = output.detach().requires_grad_()
        outputs[name] = output
        return output.clone()  # the next module may work in place, and the record must stay what it was

    with hooked({layer: network.get_submodule(layer) for layer in layers}, record):
        yield outputs


def layer_outputs(network: Classifier, images: Tensor, layers: Sequence[str]) -> tuple[dict[str, Tensor], Tensor]:
    """Outputs of named layers, ready for gradients, and the features ``(N, D, h, w)`` that follow from them.

    Where the one layer is what pooling sees, gradients go through pooling and head only, and nothing is recorded.
    """
    if len(layers) == 1 and network.is_pooled(layers[0]):
        with torch.no_grad():
            features = network.features(images).detach()
        features.requires_grad_()
        return {layers[0]: features}, features
    with torch.enable_grad(), recorded(network, layers) as outputs:
        features = network.features(images)
    return outputs, features


def class_gradients(
    logits: Tensor, outputs: Sequence[Tensor], class_ids: ClassIds
) -> Iterator[tuple[list[int], Sequence[Tensor]]]:
    """Gradients of class logits w.r.t. layer outputs, for items that may ask for different classes.

    One backward pass serves the k-th class of every item at once, since items do not interact in evaluation mode;
    so a batch costs as many passes as its richest item has classes. One pass is held in memory at a time.

    Args:
        logits: ``(N, C)``.
        outputs: one ``(N, D, h, w)`` tensor a layer, part of the graph of ``logits``.
        class_ids: for each of the N items, the classes in 1..C.

    Yields:
        For k = 0, 1, ...: the items that have a k-th class, and one ``(N, D, h, w)`` gradient a layer, of which only
        the rows of those items mean something. Without any class, one round of no item.
    """
    rounds = max(map(len, class_ids), default=0)
    if not rounds:
        yield [], [output.detach()[:0] for output in outputs]
    for k in range(rounds):
        items = [i for i, ids in enumerate(class_ids) if k < len(ids)]
        with torch.enable_grad():
            score = logits[items, [class_ids[i][k] - 1 for i in items]].sum()
        yield items, torch.autograd.grad(score, outputs, retain_graph=k + 1 < rounds)


def pair_items(class_ids: ClassIds) -> list[int]:
    """The item of each (item, class) pair, item by item.

    >>> pair_items([[3], [], [1, 2]])
    [0, 2, 2]
    """
    return [item for item, ids in enumerate(class_ids) for _ in ids]


def pair_order(class_ids: ClassIds) -> list[int]:
    """Where each (item, class) pair, item by item, stands in the order of ``class_gradients``, round by round.

    >>> pair_order([[3], [], [1, 2]])  # rounds: items 0 and 2, then item 2
    [0, 1, 2]
    >>> pair_order([[3, 4], [1, 2]])  # rounds: items 0 and 1, then items 0 and 1
    [0, 2, 1, 3]
    """
    rounds = range(max(map(len, class_ids), default=0))
    by_round = [(i, k) for k in rounds for i, ids in enumerate(class_ids) if k < len(ids)]
    position = {pair: at for at, pair in enumerate(by_round)}
    return [position[i, k] for i, ids in enumerate(class_ids) for k in range(len(ids))]
