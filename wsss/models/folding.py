"""Batch norms folded into the convolutions before them, for faster inference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from copy import deepcopy
from typing import Any

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from wsss.models.classifier import Classifier
from wsss.models.structure import TRACE_SIDE, ActivationOnly, Call, trace

CONVOLUTIONS = (nn.Conv2d, Conv2dSame)
BATCH_NORMS = (nn.BatchNorm2d, BatchNormAct2d)
"""Exactly these types: a subclass may compute something else, as convolutions with standardised weights do."""


def fold_batch_norm(network: Classifier, *, keep: Collection[str] = ()) -> Classifier:
    """A copy for inference whose batch norms are folded into the convolutions that they directly follow.

    Modules keep their names, so hooks by name still work: a ``BatchNorm2d`` becomes an identity, a ``BatchNormAct2d``
    its activation. The output of a folded convolution is that of its batch norm; all other outputs are as before, up to
    rounding. A pair is left alone where the convolution or the batch norm runs more than once in a forward pass, or
    where anything else, a module or a plain function, reads the convolution's output.

    Args:
        network: untouched.
        keep: names of modules whose own output is wanted, beside those of ``network.stages``: a convolution whose
            output is that of one of them is not folded.

    Returns:
        The copy, in evaluation mode. Its parameters have other names: convolutions gain a bias.

    Raises:
        ConfigError: ``keep`` names a module that is not there.
    """
    kept = {network.layer(name) for name in keep} | set(network.stages.values())
    with torch.inference_mode(False):  # so that a later call can ask the copy for gradients
        folded = deepcopy(network)
        for convolution, norm in _pairs(folded, kept):
            _fold(folded, convolution, norm)
    return folded.eval()


def _pairs(network: Classifier, kept: set[str]) -> list[tuple[str, str]]:
    """Names of the convolutions and batch norms that can be folded."""
    with torch.enable_grad():
        images = network.mean.new_zeros((1, 3, TRACE_SIDE, TRACE_SIDE)).requires_grad_()
        calls = trace(network.encoder, images.clone(), prefix="encoder")  # a leaf cannot be changed in place
    times = Counter(call.name for call in calls)
    readers = _readers(calls[-1].node)
    wanted = {call.given for call in calls if call.name in kept}
    convolutions: dict[Any, Call] = {}
    pairs = []
    for call in calls:
        if type(call.module) in CONVOLUTIONS and times[call.name] == 1 and call.given not in wanted:
            convolutions[call.given] = call
        source = convolutions.get(call.taken)
        if source is None or type(call.module) not in BATCH_NORMS or times[call.name] > 1:
            continue
        if call.module.running_mean is not None and readers[source.node] == 1:
            pairs.append((source.name, call.name))
    return pairs


def _readers(last: Any) -> Counter[Any]:
    """Autograd node -> how many operations on the way to ``last`` read its result; sees functions and modules alike."""
    readers: Counter[Any] = Counter()
    seen, todo = {last}, [last]
    while todo:
        for node, _ in todo.pop().next_functions:
            readers[node] += 1
            if node is not None and node not in seen:
                seen.add(node)
                todo.append(node)
    return readers


def _fold(network: Classifier, convolution_name: str, norm_name: str) -> None:
    convolution: Any = network.get_submodule(convolution_name)
    norm: Any = network.get_submodule(norm_name)
    convolution.weight, convolution.bias = fuse_conv_bn_weights(
        convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    network.set_submodule(norm_name, ActivationOnly(norm) if isinstance(norm, BatchNormAct2d) else nn.Identity())
