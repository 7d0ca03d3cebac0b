"""Losses: by hand at two pixels, then their limits, then literal loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from wsss.errors import ConfigError
from wsss.training.losses import (
    BootstrappedCrossEntropy,
    ClassBalancedCrossEntropy,
    CrossEntropy,
    Loss,
    SymmetricCrossEntropy,
    TrimmedCrossEntropy,
)

ALL: dict[str, Loss] = {
    "plain": CrossEntropy(),
    "balanced": ClassBalancedCrossEntropy(),
    "bootstrapped hard": BootstrappedCrossEntropy(),
    "bootstrapped soft": BootstrappedCrossEntropy(beta=0.95, hard=False),
    "symmetric": SymmetricCrossEntropy(),
    "trimmed": TrimmedCrossEntropy(drop=0.2),
}
every = pytest.mark.parametrize("loss", ALL.values(), ids=list(ALL))


def row(*probabilities: float) -> Tensor:
    """Logits ``(1, 2, 1, n)`` of two classes with these probabilities of class 1."""
    ones = torch.tensor(probabilities)
    return torch.stack([1 - ones, ones]).log().view(1, 2, 1, -1)


def labels(*values: int) -> Tensor:
    return torch.tensor(values).view(1, 1, -1)


def random_batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 4, 5, 6, generator=generator)
    truth = torch.randint(0, 4, (2, 5, 6), generator=generator)
    truth[0, :3] = 255
    return logits, truth


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_cross_entropy_by_hand() -> None:
    """Two pixels count: probabilities 1/2 and 1/4 of the right label; the third is ignored."""
    assert CrossEntropy()(row(0.5, 0.75, 0.01), labels(1, 0, 255)).item() == pytest.approx(
        (math.log(2) + math.log(4)) / 2
    )


def test_the_rare_class_has_half_the_say() -> None:
    """Three pixels of class 0 lose log 2 each, one of class 1 loses log 4."""
    logits, truth = row(0.5, 0.5, 0.5, 0.25), labels(0, 0, 0, 1)
    assert ClassBalancedCrossEntropy(power=1)(logits, truth).item() == pytest.approx((math.log(2) + math.log(4)) / 2)
    weights = 3**-0.5, 1.0
    wanted = (3 * weights[0] * math.log(2) + weights[1] * math.log(4)) / (3 * weights[0] + weights[1])
    assert ClassBalancedCrossEntropy(power=0.5)(logits, truth).item() == pytest.approx(wanted)


def test_bootstrapping_mixes_the_label_with_the_belief() -> None:
    """The label says 1, the network 0 with probability 0.8."""
    logits, truth = row(0.2), labels(1)
    hard = 0.7 * -math.log(0.2) + 0.3 * -math.log(0.8)
    assert BootstrappedCrossEntropy(beta=0.7, hard=True)(logits, truth).item() == pytest.approx(hard)
    entropy = -0.2 * math.log(0.2) - 0.8 * math.log(0.8)
    soft = 0.7 * -math.log(0.2) + 0.3 * entropy
    assert BootstrappedCrossEntropy(beta=0.7, hard=False)(logits, truth).item() == pytest.approx(soft)


def test_the_reverse_cross_entropy_is_bounded() -> None:
    loss = SymmetricCrossEntropy(alpha=0, beta=2, floor=-4)
    assert loss(row(0.25), labels(1)).item() == pytest.approx(2 * 4 * 0.75)
    assert loss(row(1e-12), labels(1)).item() == pytest.approx(8)
    both = SymmetricCrossEntropy(alpha=3, beta=1, floor=-4)(row(0.25), labels(1)).item()
    assert both == pytest.approx(3 * math.log(4) + 4 * 0.75)


def test_the_largest_losses_are_left_out() -> None:
    """Of five pixels that count, a fifth goes: the one at 0.01."""
    logits, truth = row(0.5, 0.01, 0.5, 0.25, 0.5, 0.001), labels(1, 1, 1, 1, 1, 255)
    wanted = (3 * math.log(2) + math.log(4)) / 4
    assert TrimmedCrossEntropy(drop=0.2)(logits, truth).item() == pytest.approx(wanted)


# --- identities -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "loss",
    [
        ClassBalancedCrossEntropy(power=0),
        BootstrappedCrossEntropy(beta=1, hard=True),
        BootstrappedCrossEntropy(beta=1, hard=False),
        SymmetricCrossEntropy(alpha=1, beta=0),
        TrimmedCrossEntropy(drop=0),
    ],
    ids=["balanced", "bootstrapped hard", "bootstrapped soft", "symmetric", "trimmed"],
)
def test_each_has_plain_cross_entropy_as_its_limit(loss: Loss) -> None:
    logits, truth = random_batch()
    torch.testing.assert_close(loss(logits, truth), F.cross_entropy(logits, truth, ignore_index=255))


@every
def test_ignored_pixels_and_their_logits_do_not_count(loss: Loss) -> None:
    logits, truth = random_batch()
    other = logits.clone()
    other.permute(0, 2, 3, 1)[truth == 255] += 7.0 * torch.arange(4)
    assert not torch.equal(other, logits)
    torch.testing.assert_close(loss(other, truth), loss(logits, truth))


@every
def test_a_batch_of_ignored_pixels_teaches_nothing(loss: Loss) -> None:
    """PyTorch's own mean over no pixel is NaN."""
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    truth = torch.full((1, 2, 2), 255)
    assert F.cross_entropy(logits, truth, ignore_index=255).isnan()
    value = loss(logits, truth)
    value.backward()
    assert value.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@every
def test_half_precision_logits_are_taken_in_full(loss: Loss) -> None:
    value = loss(torch.randn(1, 3, 2, 2, dtype=torch.bfloat16), torch.ones(1, 2, 2, dtype=torch.long))
    assert value.dtype == torch.float32


@every
def test_gradients_stay_finite_at_extreme_logits(loss: Loss) -> None:
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]]).view(1, 2, 1, 2).requires_grad_()
    loss(logits, labels(1, 1)).backward()
    assert logits.grad.isfinite().all()


def test_a_wrong_label_pulls_less_than_under_cross_entropy() -> None:
    """What the robust losses are for: the gradient at a label that the network finds very improbable."""

    def pull(loss: Loss) -> float:
        logits = row(0.9, 0.9, 0.9, 0.9, 0.001).requires_grad_()
        loss(logits, labels(1, 1, 1, 1, 1)).backward()
        return logits.grad[0, 1, 0, 4].abs().item()

    plain = pull(CrossEntropy())
    assert pull(BootstrappedCrossEntropy(beta=0.8, hard=True)) == pytest.approx(0.8 * plain, rel=0.01)
    assert pull(SymmetricCrossEntropy(alpha=0.1, beta=1)) < 0.2 * plain
    assert pull(TrimmedCrossEntropy(drop=0.2)) == 0


# --- literal loops ----------------------------------------------------------------------------------------------------


def literal(name: str, logits: np.ndarray, truth: np.ndarray) -> float:
    pixels = []
    for n, y, x in np.ndindex(truth.shape):
        if truth[n, y, x] != 255:
            p = np.exp(logits[n, :, y, x]) / np.exp(logits[n, :, y, x]).sum()
            pixels.append((int(truth[n, y, x]), p))
    losses = [-math.log(p[k]) for k, p in pixels]
    if name == "balanced":
        weights = [sum(k == other for other, _ in pixels) ** -0.5 for k, _ in pixels]
        return sum(w * v for w, v in zip(weights, losses, strict=True)) / sum(weights)
    if name == "bootstrapped hard":
        return float(np.mean([0.8 * v - 0.2 * math.log(p.max()) for v, (_, p) in zip(losses, pixels, strict=True)]))
    if name == "bootstrapped soft":
        belief = [-(p * np.log(p)).sum() for _, p in pixels]
        return float(np.mean([0.95 * v + 0.05 * b for v, b in zip(losses, belief, strict=True)]))
    if name == "symmetric":
        reverse = [-sum(p[j] * (0.0 if j == k else -4.0) for j in range(len(p))) for k, p in pixels]
        return float(np.mean(losses) + np.mean(reverse))
    if name == "trimmed":
        return float(np.mean(sorted(losses)[: len(losses) - int(0.2 * len(losses))]))
    return float(np.mean(losses))


@pytest.mark.parametrize("name", ALL)
def test_each_agrees_with_a_loop_over_pixels(name: str) -> None:
    logits, truth = random_batch()
    wanted = literal(name, logits.double().numpy(), truth.numpy())
    assert ALL[name](logits, truth).item() == pytest.approx(wanted, rel=1e-5)


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "options", "word"),
    [
        (ClassBalancedCrossEntropy, {"power": 2}, "loss.power=2"),
        (BootstrappedCrossEntropy, {"beta": 1.5}, "loss.beta=1.5"),
        (SymmetricCrossEntropy, {"alpha": -1}, "loss.alpha=-1"),
        (SymmetricCrossEntropy, {"alpha": 0, "beta": 0}, "loss.beta=0"),
        (SymmetricCrossEntropy, {"floor": 0}, "loss.floor=0"),
        (TrimmedCrossEntropy, {"drop": 1.0}, "loss.drop=1.0"),
    ],
)
def test_what_makes_no_loss_is_refused_by_name(loss: type, options: dict[str, float], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        loss(**options)
