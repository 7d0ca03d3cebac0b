import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wsss.errors import Diverged
from wsss.metrics import miou
from wsss.models import Classifier
from wsss.training.losses import CrossEntropy
from wsss.training.schedules import poly
from wsss.training.shells import ClassifierShell, Recipe, SegmenterShell, Shell, to_unit

RECIPE = Recipe(
    epochs=2,
    batch_size=2,
    optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    schedule=partial(poly, power=1.0),
    encoder_lr_factor=0.1,
    frozen_stages=0,
    frozen_batch_norm=False,
    augment=None,
    keep="last",
    validate_every=1,
)


def classifier(num_classes: int = 2) -> Classifier:
    """Two stages of a convolution with batch norm."""
    torch.manual_seed(0)
    encoder = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5), nn.ReLU()),
    )
    stages = {1: "0", 2: "1"}
    return Classifier(encoder, features=5, num_classes=num_classes, stages=stages, mean=(0.5,) * 3, std=(0.25,) * 3)


class Pixels(nn.Module):
    """The logits of a pixel are its colours."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Identity()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        return images * self.scale

    def training_outputs(self, images: Tensor) -> tuple[Tensor, ...]:
        return (self(images),)


class ImageMeans(Pixels):
    """The logits of an image are the means of red and green."""

    def parameters_up_to(self, stage: int) -> list[nn.Parameter]:
        return []

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).mean(dim=(2, 3))[:, :2]


def attached(shell: Shell, steps: int = 10) -> Shell:
    """The shell with what it asks of a trainer."""
    shell.trainer = SimpleNamespace(
        estimated_stepping_batches=steps, sanity_checking=False, current_epoch=0, global_rank=0
    )
    return shell


def logged(shell: Shell) -> dict[str, float]:
    """What the shell logs from now on."""
    values: dict[str, float] = {}
    shell.log = lambda name, value, **_: values.update({name: float(torch.as_tensor(value).detach())})
    return values


# --- steps -------------------------------------------------------------------------------------------------------


def test_to_unit() -> None:
    image = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1)
    assert to_unit(image).flatten().tolist() == pytest.approx([0, 0.2, 1])
    batch = to_unit(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))
    assert batch.is_contiguous(memory_format=torch.channels_last)


def test_the_loss_of_the_classifier() -> None:
    """Logits (1, 0) against tags (1, 1): the mean of ln(1 + 1/e) and ln 2."""
    shell = ClassifierShell(ImageMeans(), RECIPE, seed=0)
    values = logged(shell)
    image = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    image[:, 0] = 255
    loss = shell.training_step({"image": image, "tags": torch.ones(1, 2)}, 0)
    assert loss.item() == pytest.approx((math.log1p(math.exp(-1)) + math.log(2)) / 2)
    shell.on_train_epoch_end()
    assert values == {"train/loss": loss.item()}


def test_the_loss_of_the_segmenter() -> None:
    shell = SegmenterShell(Pixels(), RECIPE, seed=0, loss=CrossEntropy(), truth=None, num_labels=3)
    values = logged(shell)
    batch = {"image": torch.zeros(1, 3, 2, 2, dtype=torch.uint8), "labels": torch.tensor([[[0, 1], [2, 255]]])}
    loss = shell.training_step(batch, 0)
    assert loss.item() == pytest.approx(math.log(3))
    shell.on_train_epoch_end()
    assert values == {"train/loss": pytest.approx(math.log(3))}


def test_the_mean_loss_of_an_epoch_counts_images_and_lies_in_the_checkpoint() -> None:
    """Losses 1 and 4 of one and of two images: 3; the next epoch begins anew."""
    shell, resumed = (attached(ClassifierShell(ImageMeans(), RECIPE, seed=0)) for _ in range(2))
    values, checkpoint = logged(resumed), {}
    shell.on_train_epoch_start()
    shell.checked(torch.tensor(1.0), {"image": torch.zeros(1, 3, 2, 2)})
    shell.on_save_checkpoint(checkpoint)
    shell.checked(torch.tensor(9.0), {"image": torch.zeros(1, 3, 2, 2)})
    resumed.on_load_checkpoint(checkpoint)
    resumed.checked(torch.tensor(4.0), {"image": torch.zeros(2, 3, 2, 2)})
    resumed.on_train_epoch_end()
    assert values == {"train/loss": 3}
    resumed.on_train_epoch_start()
    resumed.checked(torch.tensor(5.0), {"image": torch.zeros(2, 3, 2, 2)})
    resumed.on_train_epoch_end()
    assert values == {"train/loss": 5}


def test_the_loss_is_summed_over_the_outputs_of_the_network() -> None:
    network = Pixels()
    network.training_outputs = lambda images: (network(images), 3 * network(images))
    shell = SegmenterShell(network, RECIPE, seed=0, loss=lambda logits, _: logits.mean(), truth=None, num_labels=3)
    logged(shell)
    batch = {"image": torch.full((1, 3, 2, 2), 51, dtype=torch.uint8), "labels": torch.zeros(1, 2, 2)}
    assert shell.training_step(batch, 0).item() == pytest.approx(0.2 + 0.6)


# --- validation --------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_average_precision_of_the_classifier() -> None:
    """Red ranks class 1 rightly (AP 1); green ranks class 2 last of two (AP 1/2)."""
    shell = attached(ClassifierShell(ImageMeans(), RECIPE, seed=0))
    values = logged(shell)
    for red, green, tags in ((200, 10, [1.0, 1.0]), (20, 100, [0.0, 0.0])):
        image = torch.tensor([red, green, 0], dtype=torch.uint8).view(1, 3, 1, 1)
        shell.validation_step({"image": image, "tags": torch.tensor([tags])}, 0)
    assert shell.average_precisions().tolist() == [1, 0.5]
    shell.on_validation_epoch_end()
    assert values == {"val/map": 0.75}
    assert shell.average_precisions().tolist() == [1, 0.5]  # of the images seen last
    shell.validation_step({"image": image, "tags": torch.tensor([[1.0, 0.0]])}, 0)
    np.testing.assert_array_equal(shell.average_precisions(), [1, np.nan])  # a new pass starts from nothing


def test_miou_of_the_segmenter_is_that_of_the_whole_set() -> None:
    """Two images, two labels. Pixels (truth, predicted): (0,0) 3 times, (0,1) 1, (1,1) 2, (255,.) 2."""
    truth = [np.array([[0, 0, 1, 255]], np.uint8), np.array([[0, 0, 1, 255]], np.uint8)]
    shell = attached(
        SegmenterShell(Pixels(), RECIPE, seed=0, loss=CrossEntropy(), truth=truth.__getitem__, num_labels=2)
    )
    shell.network.forward = lambda images: images[:, :2]
    values = logged(shell)
    for index, predicted in enumerate(([0, 0, 1, 1], [0, 1, 1, 0])):
        image = torch.zeros(1, 3, 1, 4, dtype=torch.uint8)
        image[0, 0], image[0, 1] = 100, 200 * torch.tensor(predicted, dtype=torch.uint8)
        shell.validation_step({"image": image, "index": torch.tensor([index])}, 0)
    shell.on_validation_epoch_end()
    assert values == {"val/miou": pytest.approx((3 / 4 + 2 / 3) / 2)}
    assert values["val/miou"] == pytest.approx(miou(np.array([[3, 1], [0, 2]])))
    assert not shell._confusion.matrix.any()


def test_a_set_without_masks_is_not_measured() -> None:
    shell = attached(SegmenterShell(Pixels(), RECIPE, seed=0, loss=CrossEntropy(), truth=None, num_labels=2))
    values = logged(shell)
    shell.validation_step({"image": torch.zeros(1, 3, 1, 4, dtype=torch.uint8), "index": torch.tensor([0])}, 0)
    shell.on_validation_epoch_end()
    assert values == {}


# --- optimiser ---------------------------------------------------------------------------------------------------


def test_two_groups_with_their_learning_rates() -> None:
    network = classifier()
    shell = attached(ClassifierShell(network, RECIPE, seed=0))
    configured = shell.configure_optimizers()
    pretrained, new = configured["optimizer"].param_groups
    assert {id(p) for p in pretrained["params"]} == {id(p) for p in network.encoder.parameters()}
    assert [id(p) for p in new["params"]] == [id(network.head.weight)]
    assert (pretrained["lr"], new["lr"]) == (pytest.approx(0.01), pytest.approx(0.1))
    assert (pretrained["momentum"], new["momentum"]) == (0.9, 0.9)
    assert configured["lr_scheduler"]["interval"] == "step"


class Biased(nn.Module):
    """Old and new layers with weights, biases and batch norm, and a parameter that is neither."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.scale = nn.Parameter(torch.ones(()))
        self.branches = nn.ModuleList(nn.Conv2d(4, 2, 1, bias=bias) for bias in (True, False))


def group_names(recipe: Recipe) -> list[tuple[float, list[str]]]:
    """Learning rate and names of the parameters of each group."""
    shell = attached(Shell(Biased(), recipe, seed=0))
    names = {id(parameter): name for name, parameter in shell.network.named_parameters()}
    groups = shell.configure_optimizers()["optimizer"].param_groups
    return [(round(group["lr"], 9), [names[id(p)] for p in group["params"]]) for group in groups]


ENCODER = ["encoder.0.weight", "encoder.0.bias", "encoder.1.weight", "encoder.1.bias"]


def test_the_groups_of_deeplab() -> None:
    """1x for the encoder, 10x for new weights, 20x for new biases, of a base rate of 0.01."""
    assert group_names(replace(RECIPE, encoder_lr_factor=0.1, bias_lr_factor=2.0)) == [
        (0.01, ENCODER),
        (0.1, ["scale", "branches.0.weight", "branches.1.weight"]),
        (0.2, ["branches.0.bias"]),
    ]


def test_without_rates_of_their_own_biases_keep_their_place() -> None:
    """The order of the parameters is part of every checkpoint."""
    assert group_names(RECIPE) == [
        (0.01, ENCODER),
        (0.1, ["scale", "branches.0.weight", "branches.0.bias", "branches.1.weight"]),
    ]


def test_new_layers_without_biases_make_two_groups() -> None:
    shell = attached(ClassifierShell(classifier(), replace(RECIPE, bias_lr_factor=2.0), seed=0))
    assert [group["lr"] for group in shell.configure_optimizers()["optimizer"].param_groups] == [
        pytest.approx(0.01),
        pytest.approx(0.1),
    ]


def test_one_schedule_for_both_groups() -> None:
    shell = attached(ClassifierShell(classifier(), RECIPE, seed=0), steps=4)
    configured = shell.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(5):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    expected = [[0.01 * factor, 0.1 * factor] for factor in (1, 0.75, 0.5, 0.25, 0)]
    np.testing.assert_allclose(rates, expected, atol=1e-12)


def test_the_state_of_the_schedule_holds_no_code() -> None:
    """Checkpoints are read with weights_only=True."""
    shell = attached(ClassifierShell(classifier(), RECIPE, seed=0))
    state = shell.configure_optimizers()["lr_scheduler"]["scheduler"].state_dict()
    assert not any(callable(item) for item in state["lr_lambdas"])


# --- frozen layers -----------------------------------------------------------------------------------------------


def trained(recipe: Recipe, change: Callable[[nn.Module], Any] = lambda network: None) -> tuple[dict, dict]:
    """The weights before and after three steps, with a look at the validation split between them."""
    network = classifier()
    change(network)
    shell = attached(ClassifierShell(network, recipe, seed=0))
    logged(shell)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    optimizer = shell.configure_optimizers()["optimizer"]
    generator = torch.Generator().manual_seed(2)
    network.train()
    shell.on_train_epoch_start()
    for step in range(3):
        image = torch.randint(0, 256, (2, 3, 8, 8), generator=generator, dtype=torch.uint8)
        optimizer.zero_grad()
        shell.training_step({"image": image, "tags": torch.tensor([[1.0, 0.0], [0.0, 1.0]])}, step).backward()
        optimizer.step()
        network.train()  # what a loop does after validation
        shell.on_validation_end()
    return before, network.state_dict()


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name.removeprefix("encoder.") for name in before if not torch.equal(before[name], after[name])}


WEIGHTS = {f"{stage}.{name}" for stage in (0, 1) for name in ("0.weight", "1.weight", "1.bias")}
STATISTICS = {f"{s}.1.{name}" for s in (0, 1) for name in ("running_mean", "running_var", "num_batches_tracked")}


def test_without_freezing_everything_moves() -> None:
    assert moved(*trained(RECIPE)) == WEIGHTS | STATISTICS | {"head.weight"}


def test_frozen_batch_norm_keeps_its_statistics_and_learns_its_weights() -> None:
    assert moved(*trained(replace(RECIPE, frozen_batch_norm=True))) == WEIGHTS | {"head.weight"}


def test_frozen_weights_of_batch_norm_do_not_move_either() -> None:
    recipe = replace(RECIPE, frozen_batch_norm=True, frozen_batch_norm_weights=True)
    assert moved(*trained(recipe)) == {"0.0.weight", "1.0.weight", "head.weight"}


def test_frozen_stages_do_not_move_at_all() -> None:
    """Neither do the statistics of their batch norm, which need no gradient to drift."""
    second = {name for name in WEIGHTS | STATISTICS if name.startswith("1.")}
    assert moved(*trained(replace(RECIPE, frozen_stages=1))) == second | {"head.weight"}
    assert moved(*trained(replace(RECIPE, frozen_stages=2))) == {"head.weight"}


def test_frozen_parameters_are_not_given_to_the_optimiser() -> None:
    """Weight decay would move them without any gradient."""
    shell = attached(ClassifierShell(classifier(), replace(RECIPE, frozen_stages=1), seed=0))
    pretrained, new = shell.configure_optimizers()["optimizer"].param_groups
    assert len(pretrained["params"]) == 3
    assert len(new["params"]) == 1


# --- random numbers ----------------------------------------------------------------------------------------------


def test_every_step_draws_its_own_numbers_whatever_was_drawn_before() -> None:
    def draw(seed: int, epoch: int, step: int, rank: int) -> float:
        shell = attached(ClassifierShell(classifier(), RECIPE, seed=seed))
        shell.trainer.current_epoch, shell.trainer.global_rank = epoch, rank
        torch.rand(step + epoch)
        shell.on_train_batch_start({}, step)
        return torch.rand(()).item()

    first = draw(0, 0, 0, 0)
    torch.rand(7)
    assert draw(0, 0, 0, 0) == first
    assert len({first, draw(1, 0, 0, 0), draw(0, 1, 0, 0), draw(0, 0, 1, 0), draw(0, 0, 0, 1)}) == 5


def test_a_loss_that_is_no_number_ends_the_training():
    shell = SimpleNamespace(current_epoch=2, settings="recipe.affinity")
    with pytest.raises(Diverged, match=r"Lower the learning rate \(recipe.affinity.optimizer.lr\)"):
        Shell.checked(shell, torch.tensor(float("nan")), {})
