"""What the option files of conf/recipe and conf/trainer promise, and the settings that are refused."""

import re

import pytest
import tiny
import torch
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf
from torch import nn

from wsss.config import RecipeConfig, TrainerConfig, check
from wsss.errors import ConfigError
from wsss.stages.context import build_recipe
from wsss.training.shells import Recipe, Shell


class Network(nn.Module):
    """An encoder and a head with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)


def recipe(name: str, *overrides: str) -> Recipe:
    config = tiny.composed(f"recipe/segmenter={name}", *overrides)
    check(config)
    return build_recipe(config, "segmenter")


def rates(chosen: Recipe, steps: int) -> list[float]:
    """The learning rates of the groups at the start of a training of ``steps``."""
    shell = Shell(Network(), chosen, seed=0)
    shell.trainer = type("Trainer", (), {"estimated_stepping_batches": steps})()
    return [group["lr"] for group in shell.configure_optimizers()["optimizer"].param_groups]


def test_deeplab_v2() -> None:
    chosen = recipe("deeplabv2")
    assert (chosen.epochs, chosen.iterations, chosen.batch_size, chosen.accumulate) == (None, 20000, 5, 1)
    assert rates(chosen, 20000) == pytest.approx([2.5e-4, 2.5e-3, 5e-3])
    assert chosen.schedule(10000, 20000) == 0.5**0.9
    optimizer = chosen.optimizer([{"params": [nn.Parameter(torch.zeros(1))]}])
    assert isinstance(optimizer, torch.optim.SGD)
    assert (optimizer.defaults["momentum"], optimizer.defaults["weight_decay"]) == (0.9, 5e-4)
    assert chosen.frozen_batch_norm
    assert (chosen.augment.size, chosen.augment.scale, chosen.augment.fit) == (321, (0.5, 1.5), False)


def test_deeplab_largefov() -> None:
    chosen = recipe("deeplab_largefov")
    assert (chosen.iterations, chosen.batch_size) == (16000, 10)
    assert rates(chosen, 16000) == pytest.approx([1e-3, 1e-2, 2e-2])
    assert [chosen.schedule(step, 16000) for step in (0, 11999, 12000)] == [1, 1, 0.1]
    assert (chosen.augment.size, chosen.augment.scale, chosen.augment.fit) == (321, (1.0, 1.0), False)


def test_upernet_on_swin() -> None:
    chosen = recipe("upernet_swin")
    assert (chosen.iterations, chosen.batch_size, chosen.augment.size) == (40000, 16, 512)
    assert rates(chosen, 40000) == pytest.approx([6e-5, 6e-5])
    assert isinstance(chosen.optimizer([{"params": [nn.Parameter(torch.zeros(1))]}]), torch.optim.AdamW)


def test_the_default_recipe_is_as_it_was() -> None:
    chosen = recipe("adamw")
    assert (chosen.epochs, chosen.iterations, chosen.batch_size, chosen.accumulate) == (12, None, 8, 1)
    assert rates(chosen, 100) == pytest.approx([3e-4, 1e-3])
    assert chosen.augment.fit


def test_half_a_batch_twice_is_an_override() -> None:
    chosen = recipe("deeplabv2", "recipe.segmenter.accumulate=2")
    assert (chosen.batch_size, chosen.accumulate) == (5, 2)


@pytest.mark.parametrize("name", ["adamw", "deeplabv2", "deeplabv2_coco", "deeplab_largefov", "upernet_swin"])
def test_every_key_of_a_recipe_reaches_the_training(name: str) -> None:
    values = OmegaConf.to_container(tiny.composed(f"recipe/segmenter={name}").recipe.segmenter)
    built = recipe(name)
    assert set(values) == set(RecipeConfig.__dataclass_fields__) == set(Recipe.__dataclass_fields__)
    plain = {key: value for key, value in values.items() if not isinstance(value, dict) and key != "keep"}
    assert plain == {key: getattr(built, key) for key in plain}


# --- mistakes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ["recipe.segmenter.iterations=100"],
            "recipe.segmenter.epochs=12 and recipe.segmenter.iterations=100: set one",
        ),
        (["recipe.classifier.epochs=null"], "recipe.classifier.epochs=None and recipe.classifier.iterations=None"),
        (["recipe.segmenter.epochs=0"], "recipe.segmenter.epochs=0 must be 1 or more"),
        (["recipe/segmenter=deeplabv2", "recipe.segmenter.iterations=0"], "recipe.segmenter.iterations=0 must be 1"),
        (["recipe.segmenter.accumulate=0"], "recipe.segmenter.accumulate=0 must be 1 or more"),
        (["recipe.segmenter.bias_lr_factor=-1"], "recipe.segmenter.bias_lr_factor=-1.0 must be 0 or more"),
        (["trainer.checkpoint_every=0"], "trainer.checkpoint_every=0 must be 1 or more optimizer steps, or null"),
    ],
)
def test_settings_that_make_no_sense(overrides: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        check(tiny.composed(*overrides))


def test_one_of_epochs_and_iterations_is_enough() -> None:
    check(tiny.composed("recipe.segmenter.epochs=null", "recipe.segmenter.iterations=100"))


def test_a_schedule_that_refuses_its_settings_is_told_where_it_is_built() -> None:
    config = tiny.composed("recipe/segmenter=deeplab_largefov", "recipe.segmenter.schedule.milestones=[12000]")
    with pytest.raises(ConfigError, match=r"recipe.segmenter.schedule: milestones=\[12000\] must be fractions"):
        build_recipe(config, "segmenter")


def test_half_an_iteration_is_refused_when_the_configuration_is_composed() -> None:
    with pytest.raises(ConfigCompositionException, match=r"1\.5"):
        tiny.composed("recipe.segmenter.iterations=1.5")


@pytest.mark.parametrize("name", ["cpu", "default", "gpu", "gpu_amp"])
def test_every_trainer_says_how_it_computes(name: str) -> None:
    trainer = tiny.composed(f"trainer={name}").trainer
    assert (trainer.channels_last, trainer.compile, trainer.checkpoint_every) == (True, False, 500)
    assert set(trainer) == set(TrainerConfig.__dataclass_fields__)
