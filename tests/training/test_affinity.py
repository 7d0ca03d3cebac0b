import math
from collections.abc import Iterator
from functools import partial
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor
from torch.nn import functional as F

from wsss.errors import Diverged
from wsss.models.boundary import BoundaryNetwork
from wsss.refine.random_walk import half_plane
from wsss.training.affinity import AffinityShell, affinity_loss, deciding_counts, labels_at_centres
from wsss.training.schedules import poly
from wsss.training.shells import Recipe, to_unit

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(2, 6, 7, generator=GENERATOR, dtype=torch.float64)
LABELS = torch.tensor([0, 0, 1, 2, 255])[torch.randint(0, 5, (2, 6, 7), generator=GENERATOR)]
RECIPE = Recipe(
    epochs=1,
    batch_size=2,
    optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    schedule=partial(poly, power=1.0),
    encoder_lr_factor=0.1,
    frozen_stages=0,
    frozen_batch_norm=False,
    augment=None,  # type: ignore[arg-type]
    keep="last",
    validate_every=1,
)


def row(*values: float) -> Tensor:
    return torch.tensor([[values]])


# --- the loss by hand ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ((0, 0), math.log(4) / 2),  # a boundary of 3/4 leaves an affinity of 1/4
        ((5, 5), math.log(4) / 2),
        ((0, 5), math.log(4 / 3)),
        ((4, 5), math.log(4 / 3)),
        ((255, 5), 0),
        ((255, 255), 0),
    ],
)
def test_one_pair(labels, expected):
    """The boundary is 3/4 in one of the two cells and 1/2 in the other."""
    for logits in (row(0.0, math.log(3)), row(math.log(3), 0.0)):
        assert affinity_loss(logits, row(*labels)).item() == pytest.approx(expected)


def test_three_cells():
    """The pairs of (0, 0, 1): one of background, decided by the second cell; two different ones, by the third."""
    loss = affinity_loss(row(-1.0, 0.0, 2.0), row(0, 0, 1))
    assert loss.item() == pytest.approx(math.log(2) / 2 + math.log(1 + math.exp(-2)))


def test_an_ignored_cell_is_no_end_of_a_pair_but_lies_on_the_line():
    loss = affinity_loss(row(-1.0, 2.0, 0.0), row(0, 255, 0))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(2)) / 2)


def test_each_kind_of_pairs_counts_as_a_whole():
    """Fifteen pairs of background, one of foreground, twelve different ones; all logits are equal."""
    loss = affinity_loss(torch.zeros(1, 1, 8), row(0, 0, 0, 0, 0, 0, 3, 3))
    assert loss.item() == pytest.approx((0.5 + 0.5 + 1) * math.log(2))


def test_images_of_a_batch_are_not_paired():
    labels = torch.tensor([[[0, 0]], [[1, 1]]])
    assert affinity_loss(torch.zeros(2, 1, 2), labels).item() == pytest.approx(math.log(2))


# --- against a loop over pairs ---------------------------------------------------------------------------------------


def pairs(height: int, width: int, radius: int) -> Iterator[tuple[int, int, int, int]]:
    cells = list(product(range(height), range(width)))
    for i, (y, x) in enumerate(cells):
        for v, u in cells[i + 1 :]:
            if np.hypot(v - y, u - x) < radius:
                yield y, x, v, u


def looped(logits: Tensor, labels: Tensor, radius: int) -> Tensor:
    """The definition in probabilities, pair by pair."""
    terms: dict[str, list[Tensor]] = {"background": [], "foreground": [], "different": []}
    for boundary, label in zip(logits.sigmoid(), labels, strict=True):
        for y, x, v, u in pairs(*label.shape, radius):
            line = [
                boundary[b, a]
                for b, a in product(range(y, v + 1), range(min(x, u), max(x, u) + 1))
                if ((v - y) * (a - x) - (u - x) * (b - y)) ** 2 < (v - y) ** 2 + (u - x) ** 2
            ]
            affinity = 1 - torch.stack(line).max()
            one, other = int(label[y, x]), int(label[v, u])
            if 255 in (one, other):
                continue
            if one != other:
                terms["different"].append(-(1 - affinity).log())
            else:
                terms["foreground" if one else "background"].append(-affinity.log())
    means = {kind: torch.stack(values).mean() for kind, values in terms.items()}
    return means["background"] / 2 + means["foreground"] / 2 + means["different"]


@pytest.mark.parametrize("radius", [2, 4, 10])
def test_the_loss_and_its_gradient_are_those_of_a_loop(radius):
    fast, slow = LOGITS.clone().requires_grad_(), LOGITS.clone().requires_grad_()
    loss, expected = affinity_loss(fast, LABELS, radius=radius), looped(slow, LABELS, radius)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(fast.grad, slow.grad)


def test_every_pair_is_decided_once():
    ranks = torch.randperm(84, generator=torch.Generator().manual_seed(0)).view(2, 6, 7)
    counts = deciding_counts(ranks, LABELS, radius=4)
    expected = [0, 0, 0]
    for label in LABELS:
        for y, x, v, u in pairs(6, 7, 4):
            one, other = int(label[y, x]), int(label[v, u])
            if 255 not in (one, other):
                expected[2 if one != other else int(one > 0)] += 1
    assert counts.sum(dim=1).tolist() == expected
    all_known = deciding_counts(ranks, torch.zeros_like(LABELS), radius=4)
    assert all_known.sum() == 2 * sum((6 - dy) * (7 - abs(dx)) for dy, dx in half_plane(4))


# --- edges -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [torch.full((1, 4, 4), 255), torch.tensor([[[255, 255], [255, 3]]])])
def test_without_pairs_it_is_zero_with_a_gradient(labels):
    logits = torch.randn(1, 4, 4, requires_grad=True)
    loss = affinity_loss(logits, labels if labels.shape[1] == 4 else F.pad(labels, (0, 2, 0, 2), value=255))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros(1, 4, 4))


def test_without_different_pairs_the_others_count():
    logits = torch.zeros(1, 2, 2, requires_grad=True)
    loss = affinity_loss(logits, torch.zeros(1, 2, 2, dtype=torch.int64))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2) / 2)
    assert logits.grad.sum() > 0


@pytest.mark.parametrize("value", [-1e4, 1e4])
def test_extreme_logits_have_a_finite_loss_and_gradient(value):
    logits = torch.full((2, 6, 7), value, requires_grad=True)
    loss = affinity_loss(logits, LABELS)
    loss.backward()
    assert loss.item() == pytest.approx(1e4)
    assert logits.grad.isfinite().all()
    assert logits.grad.abs().sum() > 0.5


def test_half_precision_is_computed_in_single():
    loss = affinity_loss(LOGITS.bfloat16(), LABELS)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, affinity_loss(LOGITS.bfloat16().float(), LABELS))


def test_labels_at_centres():
    labels = torch.arange(8 * 12).view(1, 8, 12)
    assert labels_at_centres(labels, (2, 3)).tolist() == [[[26, 30, 34], [74, 78, 82]]]
    assert torch.equal(labels_at_centres(labels, (8, 12)), labels)
    odd = torch.randint(0, 256, (2, 33, 61), generator=GENERATOR)
    expected = F.interpolate(odd[None].float(), size=(9, 16), mode="nearest-exact")[0].long()
    assert torch.equal(labels_at_centres(odd, (9, 16)), expected)


@pytest.mark.parametrize(
    ("logits", "labels", "radius", "fault"),
    [
        (LOGITS[0], LABELS, 5, r"expected logits \(N, h, w\) and labels \(N, H, W\), got \(6, 7\) and \(2, 6, 7\)"),
        (LOGITS, LABELS[:1], 5, r"got \(2, 6, 7\) and \(1, 6, 7\)"),
        (LOGITS, LABELS, 1, "expected a radius of 2 or more"),
    ],
)
def test_what_does_not_fit(logits, labels, radius, fault):
    with pytest.raises(ValueError, match=fault):
        affinity_loss(logits, labels, radius=radius)


# --- what it teaches -------------------------------------------------------------------------------------------------


def test_it_finds_the_boundary_inside_of_what_is_ignored():
    """Two halves with an unknown strip between: the boundary runs through the strip, where no cell has a label."""
    labels = torch.zeros(1, 6, 11, dtype=torch.int64)
    labels[..., 4:7], labels[..., 7:] = 255, 1
    logits = torch.zeros(1, 6, 11, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.5)
    for _ in range(60):
        optimizer.zero_grad()
        affinity_loss(logits, labels, radius=6).backward()
        optimizer.step()
    boundaries = logits.detach().sigmoid()
    assert boundaries[..., :4].max() < 0.05
    assert boundaries[..., 7:].max() < 0.05
    assert (boundaries[..., 4:7].amax(dim=-1) > 0.9).all()


# --- the shell -------------------------------------------------------------------------------------------------------


def shell(**options: int) -> AffinityShell:
    torch.manual_seed(0)
    made = AffinityShell(BoundaryNetwork(classifier=tiny.TinyClassifier(num_classes=2)), RECIPE, seed=0, **options)
    made.trainer = SimpleNamespace(  # type: ignore[assignment]
        estimated_stepping_batches=4, sanity_checking=False, current_epoch=0, global_rank=0
    )
    made.log = lambda *_arguments, **_options: None  # type: ignore[method-assign]
    return made


def batch() -> dict[str, Tensor]:
    images = torch.randint(0, 256, (2, 3, 24, 28), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return {"image": images, "labels": LABELS.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)}


def test_a_step_is_the_loss_of_the_batch():
    one = shell(radius=3)
    logits = one.network(to_unit(batch()["image"]))
    assert one.training_step(batch(), 0).item() == pytest.approx(affinity_loss(logits, LABELS, radius=3).item())
    one.validation_step(batch(), 0)


def test_only_the_new_layers_are_trained():
    """The group of the frozen encoder is empty; its batch norm keeps still even after Lightning's own ``train()``."""
    one = shell()
    before = {name: tensor.clone() for name, tensor in one.network.state_dict().items()}
    optimizer = one.configure_optimizers()["optimizer"]
    pretrained, new = optimizer.param_groups
    assert pretrained["params"] == []
    assert len(new["params"]) == 5 * 3 + 2
    one.train()
    one.on_train_epoch_start()
    for step in range(2):
        optimizer.zero_grad()
        one.training_step(batch(), step).backward()
        optimizer.step()
        one.train()
        one.on_validation_end()
    moved = {name for name, tensor in one.network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if not name.startswith("encoder.")}


def test_a_loss_that_is_no_number_ends_the_training():
    one = shell()
    one.network.head.bias.data.fill_(float("nan"))  # type: ignore[union-attr]
    with pytest.raises(Diverged, match="the training loss is nan in epoch 1"):
        one.training_step(batch(), 0)
