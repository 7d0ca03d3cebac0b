"""Losses of the segmenter: plain cross entropy, and forms of it that believe wrong labels less.

Each is called with logits ``(N, C+1, H, W)`` and labels ``(N, H, W)`` int64 of which 255 is ignored. It gives a float32
scalar: zero, with a gradient, where every pixel is ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from wsss.errors import ConfigError
from wsss.types import IGNORE

Loss = Callable[[Tensor, Tensor], Tensor]


class CrossEntropy:
    """Mean over the pixels that are not ignored of -log p_y, the probability of the label."""

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch."""
        total = F.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="sum")
        return total / (labels != IGNORE).sum().clamp(min=1)


class ClassBalancedCrossEntropy:
    """Cross entropy in which every class of the batch has a say, however few its pixels.

    A pixel whose label has n pixels in the batch weighs n^-power, and the weights sum to one.

    Args:
        power: 0 is plain cross entropy; 1 is the mean over the classes of the batch of their mean losses.

    Raises:
        ConfigError: the power is not in [0,1].
    """

    def __init__(self, *, power: float = 0.5) -> None:
        _require("power", power, 0 <= power <= 1, "from 0 to 1")
        self.power = power

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch."""
        counts = torch.bincount(labels.flatten(), minlength=IGNORE + 1)[: logits.shape[1]]
        weights = torch.where(counts > 0, counts.clamp(min=1).float() ** -self.power, 0.0)
        total = F.cross_entropy(logits.float(), labels, weight=weights, ignore_index=IGNORE, reduction="sum")
        return total / (weights * counts).sum().clamp(min=torch.finfo(torch.float32).tiny)


class BootstrappedCrossEntropy:
    """Cross entropy against a mixture of the label and the network's own belief (Reed et al., ICLR 2015 workshop).

    The target is beta * label + (1 - beta) * belief. The belief is p itself (soft, equation 6; nothing stops its
    gradient) or its most probable class (hard, equation 7).

    Args:
        beta: trust in the labels; the paper has 0.8 for hard and 0.95 for soft targets.
        hard: which belief.

    Raises:
        ConfigError: beta is not in [0,1].
    """

    def __init__(self, *, beta: float = 0.8, hard: bool = True) -> None:
        _require("beta", beta, 0 <= beta <= 1, "from 0 to 1")
        self.beta, self.hard = beta, hard

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch."""
        pixels = _pixels(logits, labels)
        if self.hard:
            belief = -pixels.log_probabilities.max(dim=1).values
        else:
            belief = -(pixels.log_probabilities.exp() * pixels.log_probabilities).sum(dim=1)
        return pixels.mean(self.beta * pixels.cross_entropy + (1 - self.beta) * belief)


class SymmetricCrossEntropy:
    """Cross entropy plus its reverse, which cannot grow without bound at a wrong label (Wang et al., ICCV 2019).

    alpha * CE + beta * RCE (equation 6), where RCE = -sum_k p_k log q_k and log 0 of the label's distribution q is
    ``floor``: RCE = -floor * (1 - p_y).

    Args:
        alpha: weight of the cross entropy; the paper has 0.1 on CIFAR-10 and 6 on CIFAR-100.
        beta: weight of the reverse one.
        floor: what stands for log 0, below 0.

    Raises:
        ConfigError: a weight is negative or both are 0, or the floor is not below 0.
    """

    def __init__(self, *, alpha: float = 1.0, beta: float = 1.0, floor: float = -4.0) -> None:
        _require("alpha", alpha, alpha >= 0, "0 or more")
        _require("beta", beta, beta >= 0 and alpha + beta > 0, "0 or more, and not 0 where alpha is")
        _require("floor", floor, floor < 0, "below 0")
        self.alpha, self.beta, self.floor = alpha, beta, floor

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch."""
        pixels = _pixels(logits, labels)
        reverse = -self.floor * (1 - torch.exp(-pixels.cross_entropy))
        return pixels.mean(self.alpha * pixels.cross_entropy + self.beta * reverse)


class TrimmedCrossEntropy:
    """Cross entropy without the pixels of the batch whose labels the network finds least probable.

    Wrong labels are learnt late, so that a large loss is a sign of one (the small-loss rule; Han et al., NeurIPS 2018).
    The rule needs no schedule as long as ``drop`` is small: early on, the pixels left out are nearly random.

    Args:
        drop: the part of the pixels left out.

    Raises:
        ConfigError: it is not in [0,1).
    """

    def __init__(self, *, drop: float = 0.1) -> None:
        _require("drop", drop, 0 <= drop < 1, "from 0 to below 1")
        self.drop = drop

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch."""
        losses = F.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="none")[labels != IGNORE]
        kept = len(losses) - int(self.drop * len(losses))
        if kept < len(losses):
            losses = losses.topk(kept, largest=False, sorted=False).values
        return losses.mean() if kept else logits.sum() * 0.0


class _Pixels(NamedTuple):
    """The pixels of a batch.

    Attributes:
        log_probabilities: ``(N, C+1, H, W)`` float32.
        cross_entropy: ``(N, H, W)``, 0 where ignored.
        counted: ``(N, H, W)`` bool.
    """

    log_probabilities: Tensor
    cross_entropy: Tensor
    counted: Tensor

    def mean(self, values: Tensor) -> Tensor:
        """The mean of ``(N, H, W)`` values over the pixels that count."""
        return (values * self.counted).sum() / self.counted.sum().clamp(min=1)


def _pixels(logits: Tensor, labels: Tensor) -> _Pixels:
    log_probabilities = logits.float().log_softmax(dim=1)
    losses = F.nll_loss(log_probabilities, labels, ignore_index=IGNORE, reduction="none")
    return _Pixels(log_probabilities, losses, labels != IGNORE)


def _require(name: str, value: float, holds: bool, expected: str) -> None:
    if not holds:
        raise ConfigError(f"loss.{name}={value} must be {expected}")
