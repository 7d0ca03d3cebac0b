import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wsss.artifacts import Artifact
from wsss.config import TrainerConfig
from wsss.data import Augment, DataModule
from wsss.models import Classifier
from wsss.training.fit import fit
from wsss.training.schedules import poly
from wsss.training.shells import ClassifierShell, Recipe
from wsss.types import Sample

EPOCHS = 3
RECIPE = Recipe(
    epochs=EPOCHS,
    batch_size=4,
    optimizer=partial(torch.optim.AdamW, lr=0.02),
    schedule=poly,
    encoder_lr_factor=0.5,
    frozen_stages=0,
    frozen_batch_norm=False,
    augment=Augment(size=16, scale=(0.8, 1.5), jitter=0.2),
    keep="last",
    validate_every=1,
)
BEST = replace(RECIPE, keep="best_val")
State = dict[str, Tensor]


class Noise:
    """A data set in memory: eight training images, two of validation."""

    classes, train, val = ("cat", "dog"), "train", "val"

    def ids(self, split: str) -> tuple[str, ...]:
        return tuple("01234567" if split == self.train else "89")

    def class_ids(self, id: str) -> tuple[int, ...]:
        return (int(id) % 2 + 1,)

    def image(self, id: str) -> np.ndarray:
        return np.random.default_rng(int(id)).integers(0, 256, (20, 24, 3), dtype=np.uint8)

    def sample(self, id: str) -> Sample:
        return Sample(id, self.image(id), self.class_ids(id))


class Killed(Exception):
    """Stands for the end of the process."""


class Watched(ClassifierShell):
    """Keeps the weights of each epoch, reports given numbers as mAP, and may be killed in the middle of an epoch."""

    def __init__(
        self, recipe: Recipe, *, kill: int | None = None, values: tuple[float, ...] | None = None, **options: Any
    ) -> None:
        super().__init__(network(), recipe, seed=11)
        self.kill, self.values, self.epochs = kill, values, {}

    def training_step(self, batch: State, index: int) -> Tensor:
        if index == 1 and self.current_epoch == self.kill:
            raise Killed
        return super().training_step(batch, index)

    def on_validation_epoch_end(self) -> None:
        self.epochs[self.current_epoch] = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        if self.values is None:
            super().on_validation_epoch_end()
        else:
            self.log("val/map", self.values[self.current_epoch])


def network() -> Classifier:
    """A network whose training draws random numbers and moves buffers."""
    torch.manual_seed(0)
    encoder = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout2d(0.3),
        nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(),
    )  # fmt: skip
    return Classifier(encoder, features=8, num_classes=2, stages={5: "5"}, mean=(0.5,) * 3, std=(0.25,) * 3)


def run(shell: Watched, artifact: Artifact, *, workers: int = 0) -> State:
    """Fit in a process whose random state is anything; the weights that are kept."""
    torch.manual_seed(int(np.random.default_rng().integers(2**31)))
    artifact.prepare()
    recipe = shell.recipe
    data = DataModule(Noise(), augment=recipe.augment, batch_size=recipe.batch_size, workers=workers, seed=11)
    fit(shell, data, artifact, TrainerConfig(accelerator="cpu"), loggers=[])
    return {name: tensor.clone() for name, tensor in shell.network.state_dict().items()}


def equal(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(autouse=True)
def _process_settings() -> Iterator[None]:
    """Lightning makes the whole process deterministic."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return Artifact(tmp_path, "classifier", "0123456789ab")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[int, State]:
    """The weights after each epoch of a run that nobody killed."""
    shell = Watched(RECIPE)
    weights = run(shell, Artifact(tmp_path_factory.mktemp("whole"), "classifier", "0123456789ab"))
    assert equal(weights, shell.epochs[EPOCHS - 1])
    return shell.epochs


# --- going on ----------------------------------------------------------------------------------------------------


def test_training_moves_weights_in_every_epoch(uninterrupted: dict[int, State]) -> None:
    assert sorted(uninterrupted) == [0, 1, 2]
    assert not equal(uninterrupted[0], uninterrupted[1])
    assert not equal(uninterrupted[1], uninterrupted[2])


@pytest.mark.parametrize("kill", [0, 1, 2])
def test_a_killed_run_goes_on_as_if_it_had_not_been(
    artifact: Artifact, uninterrupted: dict[int, State], kill: int
) -> None:
    with pytest.raises(Killed):
        run(Watched(RECIPE, kill=kill), artifact)
    assert artifact.checkpoint.is_file() == (kill > 0)
    shell = Watched(RECIPE)
    weights = run(shell, artifact)
    assert sorted(shell.epochs) == list(range(kill, EPOCHS))  # finished epochs are not trained again
    assert equal(weights, uninterrupted[EPOCHS - 1])


def test_loader_processes_change_nothing(artifact: Artifact, uninterrupted: dict[int, State]) -> None:
    """They draw from the generator that dropout draws from, and read ahead before they are told the epoch."""
    with pytest.raises(Killed):
        run(Watched(RECIPE, kill=1), artifact, workers=2)
    assert equal(run(Watched(RECIPE), artifact, workers=2), uninterrupted[EPOCHS - 1])


def test_a_run_killed_twice(artifact: Artifact, uninterrupted: dict[int, State]) -> None:
    for kill in (1, 2):
        with pytest.raises(Killed):
            run(Watched(RECIPE, kill=kill), artifact)
    assert equal(run(Watched(RECIPE), artifact), uninterrupted[EPOCHS - 1])


def test_a_finished_training_is_taken_from_its_checkpoint(
    artifact: Artifact, uninterrupted: dict[int, State], caplog: pytest.LogCaptureFixture
) -> None:
    """The process may be killed after training, while it measures."""
    run(Watched(RECIPE), artifact)
    shell = Watched(RECIPE)
    with caplog.at_level(logging.INFO, logger="wsss"):
        weights = run(shell, artifact)
    assert equal(weights, uninterrupted[EPOCHS - 1])
    assert not shell.epochs
    assert f"classifier: going on from {artifact.checkpoint}" in caplog.text


def test_a_kill_while_the_checkpoint_is_written_leaves_the_one_before(
    artifact: Artifact, uninterrupted: dict[int, State], monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_file = Path.replace

    def killed(self: Path, target: Path) -> Path:
        if target.name == "last.ckpt" and target.exists():
            raise Killed
        return replace_file(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(Killed):
            run(Watched(RECIPE), artifact)
    assert [path.name for path in artifact.directory.iterdir()] == ["last.ckpt"]
    shell = Watched(RECIPE)
    assert equal(run(shell, artifact), uninterrupted[EPOCHS - 1])
    assert sorted(shell.epochs) == [1, 2]


def test_the_checkpoint_is_read_without_unpickling(artifact: Artifact) -> None:
    with pytest.raises(Killed):
        run(Watched(BEST, kill=1, values=(0.5,)), artifact)
    checkpoint = torch.load(artifact.checkpoint, weights_only=True)
    assert checkpoint["epoch"] == 0


def test_only_the_checkpoint_stays_behind(artifact: Artifact) -> None:
    run(Watched(RECIPE), artifact)
    assert [path.name for path in artifact.directory.rglob("*")] == ["last.ckpt"]


# --- which weights are kept --------------------------------------------------------------------------------------


def test_the_best_weights_are_kept(artifact: Artifact, uninterrupted: dict[int, State]) -> None:
    weights = run(Watched(BEST, values=(0.2, 0.9, 0.5)), artifact)
    assert equal(weights, uninterrupted[1])


def test_of_equals_the_first_is_kept(artifact: Artifact, uninterrupted: dict[int, State]) -> None:
    assert equal(run(Watched(BEST, values=(0.5, 0.9, 0.9)), artifact), uninterrupted[1])


@pytest.mark.parametrize(
    ("values", "kill", "best"),
    [
        ((0.2, 0.9, 0.5), 2, 1),  # the best came before the kill, and a worse one after it
        ((0.2, 0.5, 0.9), 2, 2),
        ((0.9, 0.2, 0.5), 1, 0),
        ((0.5, 0.9, 0.2), 0, 1),
    ],
)
def test_the_best_weights_are_kept_across_a_kill(
    artifact: Artifact, uninterrupted: dict[int, State], values: tuple[float, ...], kill: int, best: int
) -> None:
    with pytest.raises(Killed):
        run(Watched(BEST, kill=kill, values=values), artifact)
    assert equal(run(Watched(BEST, values=values), artifact), uninterrupted[best])


def test_the_best_weights_are_found_again_after_training(artifact: Artifact, uninterrupted: dict[int, State]) -> None:
    """The process is killed after training and before the artifact is complete: the same call finds them."""
    for _ in range(2):
        assert equal(run(Watched(BEST, values=(0.2, 0.9, 0.5)), artifact), uninterrupted[1])


@pytest.mark.parametrize(
    "shell",
    [
        lambda: Watched(BEST, values=(float("nan"),) * EPOCHS),
        lambda: Watched(replace(BEST, validate_every=EPOCHS + 1)),
    ],
)
def test_without_a_number_the_last_weights_are_kept(
    artifact: Artifact, uninterrupted: dict[int, State], caplog: pytest.LogCaptureFixture, shell: Callable[[], Watched]
) -> None:
    assert equal(run(shell(), artifact), uninterrupted[EPOCHS - 1])
    assert "no epoch gave a val/map; the last weights are kept" in caplog.text


def test_the_validation_split_is_seen_as_often_as_asked(artifact: Artifact) -> None:
    shell = Watched(replace(RECIPE, validate_every=2))
    run(shell, artifact)
    assert sorted(shell.epochs) == [1]
