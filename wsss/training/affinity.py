"""Learning class boundaries from confident labels: the loss on pairs of cells, and its Lightning shell (IRN)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from wsss.data.loading import Batch
from wsss.models.boundary import BoundaryNetwork
from wsss.refine.random_walk import half_plane, path, window
from wsss.training.shells import Recipe, Shell, to_unit
from wsss.types import BACKGROUND, IGNORE

_BACKGROUND, _FOREGROUND, _DIFFERENT, _KINDS = 0, 1, 2, 3


class AffinityShell(Shell):
    """Training of a ``BoundaryNetwork`` by :func:`affinity_loss`; the validation split is not looked at.

    Batches hold ``image``, ``(N, 3, H, W)`` uint8, and ``labels``, ``(N, H, W)`` int64. No metric is logged: the recipe
    keeps the last weights.

    Args:
        network: its encoder is frozen already.
        recipe: how to train it.
        seed: of the run.
        radius: pairs nearer than this count, in cells.
    """

    metric, settings = "loss", "recipe.affinity"
    network: BoundaryNetwork

    def __init__(self, network: BoundaryNetwork, recipe: Recipe, *, seed: int, radius: int = 10) -> None:
        super().__init__(network, recipe, seed=seed)
        self.radius = radius

    def training_step(self, batch: Batch, _index: int) -> Tensor:
        """One step."""
        loss = affinity_loss(self.network(to_unit(batch["image"])), batch["labels"], radius=self.radius)
        return self.checked(loss, batch)

    def validation_step(self, _batch: Batch, _index: int) -> None:
        """Nothing is measured."""


def affinity_loss(logits: Tensor, labels: Tensor, *, radius: int = 10) -> Tensor:
    """Boundary loss on pairs of cells (IRN; Ahn, Cho and Kwak, CVPR 2019, section 4).

    Two cells nearer than ``radius`` have the affinity a = 1 - max of the boundary probabilities on the line between
    them, both included. The loss is half the mean of -log a over pairs of background, plus half the mean over pairs of
    one foreground class, plus the mean of -log(1 - a) over pairs of different labels. A pair with an ignored cell does
    not count, a mean over no pairs is 0.

    The largest probability is that of the largest logit z, so that -log a = softplus(z) and -log(1 - a) = softplus(-z):
    finite with a gradient for all finite logits. Each pair depends on one cell alone, the one with the largest logit
    (of equals the last in the order of rows); it suffices to count how often a cell decides, and no pair is part of
    the graph.

    Args:
        logits: ``(N, h, w)`` of a boundary.
        labels: ``(N, H, W)`` integers, 0 background, 255 ignored; each cell takes the label at its centre.
        radius: in cells, 2 or more.

    Returns:
        A scalar, float32 or better.

    Raises:
        ValueError: logits and labels do not fit together, or the radius is too small.
    """
    if logits.ndim != 3 or labels.ndim != 3 or len(logits) != len(labels):
        raise ValueError(
            f"expected logits (N, h, w) and labels (N, H, W), got {tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    values = logits.flatten() if logits.dtype == torch.float64 else logits.float().flatten()
    cells = labels_at_centres(labels, (logits.shape[1], logits.shape[2]))
    order = values.detach().argsort(stable=True)
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order), device=order.device)
    decided = deciding_counts(ranks.view(logits.shape), cells, radius=radius).to(values)
    shares = decided / decided.sum(dim=1, keepdim=True).clamp(min=1)
    ordered = values[order]
    together = (shares[_BACKGROUND] + shares[_FOREGROUND]) / 2
    return (together * F.softplus(ordered) + shares[_DIFFERENT] * F.softplus(-ordered)).sum()


def labels_at_centres(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Labels ``(N, H, W)`` at the centres of ``(h, w)`` cells that share the image, ``(N, h, w)``."""
    rows, columns = (
        ((torch.arange(new, device=labels.device) + 0.5) * (old / new)).long().clamp(max=old - 1)
        for new, old in zip(size, labels.shape[-2:], strict=True)
    )
    return labels[:, rows][:, :, columns]


@torch.no_grad()
def deciding_counts(ranks: Tensor, labels: Tensor, *, radius: int) -> Tensor:
    """How many pairs each cell decides, being the one of the highest rank on the line between the two.

    Args:
        ranks: ``(N, h, w)`` int64, a permutation of 0..Nhw-1.
        labels: ``(N, h, w)`` integers, 255 ignored.
        radius: pairs nearer than this count, each once.

    Returns:
        ``(3, Nhw)`` int64 by rank: pairs of background, of one foreground class, of different labels.
    """
    total, size = ranks.numel(), (ranks.shape[1], ranks.shape[2])
    # the batch last: long runs in memory, and half the width, make the maxima three times as fast
    by_cell = ranks.permute(1, 2, 0).to(torch.int32 if total < 2**31 else torch.int64).contiguous()
    cells = labels.permute(1, 2, 0).contiguous()
    counts = ranks.new_zeros((_KINDS + 1) * total)
    known, background = cells != IGNORE, cells == BACKGROUND
    for shift in half_plane(radius):
        first, second = window(0, 0, shift, size), window(*shift, shift, size)
        if not cells[first].numel():
            continue
        highest = by_cell[first].clone()
        for y, x in path(*shift):
            torch.maximum(highest, by_cell[window(y, x, shift, size)], out=highest)
        kind = torch.where(background[first], _BACKGROUND, _FOREGROUND)
        kind[cells[first] != cells[second]] = _DIFFERENT
        kind[~(known[first] & known[second])] = _KINDS
        position = kind.mul_(total).add_(highest).flatten()
        counts.scatter_add_(0, position, torch.ones_like(position))
    return counts.view(_KINDS + 1, total)[:_KINDS]
