import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning.loggers.logger import DummyLogger
from torch import Tensor, nn

from wsss.artifacts import Artifact
from wsss.config import TrainerConfig
from wsss.data import Augment, DataModule
from wsss.errors import ConfigError
from wsss.models import Classifier
from wsss.training import shells
from wsss.training.fit import compiled, fit
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
    """Keeps the weights of each epoch and the losses, reports given numbers as mAP, and may be killed.

    Args:
        kill: an epoch, in whose second batch the run is killed; or (epoch, batch).
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        kill: int | tuple[int, int] | None = None,
        values: tuple[float, ...] | None = None,
        network: Classifier | None = None,
    ) -> None:
        super().__init__(network or make_network(), recipe, seed=11)
        self.kill = (kill, 1) if isinstance(kill, int) else kill
        self.values, self.epochs = values, {}
        self.losses: dict[tuple[int, int], float] = {}
        self.rates: list[float] = []

    def training_step(self, batch: State, index: int) -> Tensor:
        if (self.current_epoch, index) == self.kill:
            raise Killed
        loss = super().training_step(batch, index)
        self.losses[self.current_epoch, index] = loss.item()
        self.rates.append(self.optimizers().param_groups[-1]["lr"])
        return loss

    def on_validation_epoch_end(self) -> None:
        self.epochs[self.current_epoch] = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        if self.values is None:
            super().on_validation_epoch_end()
        else:
            self.log("val/map", self.values[self.current_epoch])


class Curves(DummyLogger):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.rows.append((step, dict(metrics)))


def once(rows: list[tuple[int, dict[str, float]]]) -> list[tuple[int, dict[str, float]]]:
    """The rows without those that a resumed run has told again: the same numbers."""
    found: dict[tuple[Any, ...], dict[str, float]] = {}
    for step, row in rows:
        assert found.setdefault((step, *row), row) == row
    return [(key[0], row) for key, row in found.items()]


def make_network() -> Classifier:
    """A network whose training draws random numbers and moves buffers."""
    torch.manual_seed(0)
    encoder = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout2d(0.3),
        nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(),
    )  # fmt: skip
    return Classifier(encoder, features=8, num_classes=2, stages={5: "5"}, mean=(0.5,) * 3, std=(0.25,) * 3)


def make_plain_network() -> Classifier:
    """One without, in which a batch is the sum of its images."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU())
    return Classifier(encoder, features=8, num_classes=2, stages={5: "3"}, mean=(0.5,) * 3, std=(0.25,) * 3)


def run(shell: Watched, artifact: Artifact, *, workers: int = 0, curves: Curves | None = None, **options: Any) -> State:
    """Fit in a process whose random state is anything; the weights that are kept."""
    torch.manual_seed(int(np.random.default_rng().integers(2**31)))
    artifact.prepare()
    recipe = shell.recipe
    data = DataModule(Noise(), augment=recipe.augment, batch_size=recipe.batch_size, workers=workers, seed=11)
    config = TrainerConfig(accelerator="cpu", **options)
    fit(shell, data, artifact, config, loggers=[curves] if curves else [])
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


# --- in the middle of an epoch -----------------------------------------------------------------------------------

SMALL = replace(RECIPE, batch_size=2)  # four batches an epoch
VARIANTS = {
    "a step a batch": SMALL,
    "two batches a step": replace(SMALL, accumulate=2),
    "three batches of one image": replace(SMALL, batch_size=1, accumulate=3),  # two steps an epoch, two images dropped
    "iterations": replace(SMALL, epochs=None, iterations=10),
}


class Run:
    """An uninterrupted run: its weights, losses and curves."""

    def __init__(self, recipe: Recipe, artifact: Artifact) -> None:
        self.shell, self.curves = Watched(recipe), Curves()
        self.weights = run(self.shell, artifact, curves=self.curves)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    return {
        name: Run(recipe, Artifact(tmp_path_factory.mktemp("whole"), "classifier", "0123456789ab"))
        for name, recipe in VARIANTS.items()
    }


@pytest.mark.parametrize(
    ("variant", "every", "workers", "kills", "starts"),
    [
        ("a step a batch", 1, 0, [(0, 1), (0, 3), (1, 2), (2, 3)], [(0, 1), (0, 3), (1, 2), (2, 3)]),
        ("a step a batch", 1, 0, [(1, 0)], [(1, 0)]),
        ("a step a batch", 3, 0, [(0, 2)], [(0, 0)]),  # nothing written yet
        ("a step a batch", 3, 0, [(1, 3), (2, 2)], [(1, 2), (2, 1)]),  # at step 6 and at step 9
        ("a step a batch", 4, 0, [(1, 3)], [(1, 0)]),  # steps that end an epoch
        ("a step a batch", None, 0, [(1, 3)], [(1, 0)]),
        ("a step a batch", 1, 2, [(0, 3), (1, 2)], [(0, 3), (1, 2)]),
        ("two batches a step", 1, 0, [(0, 3), (1, 2)], [(0, 2), (1, 2)]),
        ("two batches a step", 1, 2, [(1, 3)], [(1, 2)]),
        ("three batches of one image", 1, 0, [(0, 4), (2, 5)], [(0, 3), (2, 3)]),
        ("iterations", 1, 0, [(1, 3), (2, 1)], [(1, 3), (2, 1)]),
    ],
)
def test_a_run_killed_within_an_epoch_goes_on_at_its_last_checkpoint(
    artifact: Artifact,
    whole: dict[str, Run],
    variant: str,
    every: int | None,
    workers: int,
    kills: list[tuple[int, int]],
    starts: list[tuple[int, int]],
) -> None:
    """Every loss, the weights, the curves and their steps are those of an uninterrupted run, bit for bit."""
    recipe, expected = VARIANTS[variant], whole[variant]
    losses, curves, firsts = {}, Curves(), []
    for kill in (*kills, None):
        shell = Watched(recipe, kill=kill)
        try:
            weights = run(shell, artifact, workers=workers, curves=curves, checkpoint_every=every)
        except Killed:
            assert kill is not None
        losses |= shell.losses
        firsts.append(min(shell.losses))
    assert firsts[1:] == starts
    assert losses == expected.shell.losses
    assert all(expected.shell.losses[at] == loss for at, loss in shell.losses.items())
    assert equal(weights, expected.weights)
    assert once(curves.rows) == expected.curves.rows
    assert shell.rates == expected.shell.rates[-len(shell.rates) :]


def test_a_run_killed_while_it_validates_repeats_the_end_of_the_epoch(
    artifact: Artifact, whole: dict[str, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise Killed

    curves = Curves()
    with monkeypatch.context() as patch:
        patch.setattr(Watched, "validation_step", killed)
        with pytest.raises(Killed):
            run(Watched(SMALL), artifact, curves=curves, checkpoint_every=1)
    shell = Watched(SMALL)
    assert equal(run(shell, artifact, curves=curves, checkpoint_every=1), whole["a step a batch"].weights)
    assert min(shell.losses) == (0, 3)
    assert once(curves.rows) == whole["a step a batch"].curves.rows


def test_losses_of_a_run_differ_from_step_to_step(whole: dict[str, Run]) -> None:
    """Else the comparison above would say little."""
    for run_ in whole.values():
        assert len(set(run_.shell.losses.values())) == len(run_.shell.losses)


def test_the_curve_of_the_loss_is_the_mean_of_each_epoch(whole: dict[str, Run]) -> None:
    expected = whole["a step a batch"]
    logged = [row["train/loss"] for _, row in expected.curves.rows if "train/loss" in row]
    losses = np.array(list(expected.shell.losses.values())).reshape(EPOCHS, 4)
    assert logged == pytest.approx(losses.mean(axis=1))


@pytest.mark.parametrize(("variant", "batches"), [("a step a batch", 1), ("two batches a step", 2)])
def test_the_curve_over_steps_is_the_mean_over_the_batches_of_each(
    whole: dict[str, Run], variant: str, batches: int
) -> None:
    expected = whole[variant]
    points = [(step, row) for step, row in expected.curves.rows if "train/loss_step" in row]
    losses = np.array(list(expected.shell.losses.values())).reshape(-1, batches)
    assert [step for step, _ in points] == list(range(len(losses))), "a short training is told step by step"
    assert [row["train/loss_step"] for _, row in points] == pytest.approx(losses.mean(axis=1))
    assert all(set(row) == {"train/loss_step", "lr/encoder", "lr/new"} for _, row in points)


def test_a_long_training_is_told_now_and_then(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shells, "curve_interval", lambda steps: 5 if steps == 4 * EPOCHS else 0)
    curves = Curves()
    run(Watched(SMALL), artifact, curves=curves)
    assert [step for step, row in curves.rows if "train/loss_step" in row] == list(range(0, 4 * EPOCHS, 5))


def test_frozen_batch_norm_stays_frozen_where_a_run_goes_on(artifact: Artifact) -> None:
    """Lightning begins no epoch there, which is when it is put to sleep otherwise."""
    recipe = replace(SMALL, frozen_batch_norm=True, validate_every=EPOCHS)
    with pytest.raises(Killed):
        run(Watched(recipe, kill=(1, 2)), artifact, checkpoint_every=1)
    weights = run(Watched(recipe), artifact, checkpoint_every=1)
    fresh = make_network().state_dict()
    assert torch.equal(weights["encoder.1.running_mean"], fresh["encoder.1.running_mean"])
    assert not torch.equal(weights["encoder.1.weight"], fresh["encoder.1.weight"])


def test_the_best_weights_survive_a_kill_within_an_epoch(artifact: Artifact) -> None:
    recipe, values = replace(SMALL, keep="best_val"), (0.2, 0.9, 0.5)
    shell = Watched(recipe, values=values)
    best = run(shell, Artifact(artifact.root, "classifier", "whole"))
    assert equal(best, shell.epochs[1])
    with pytest.raises(Killed):
        run(Watched(recipe, kill=(2, 2), values=values), artifact, checkpoint_every=1)
    assert equal(run(Watched(recipe, values=values), artifact, checkpoint_every=1), best)


def test_a_checkpoint_within_an_epoch_is_read_without_unpickling(artifact: Artifact) -> None:
    with pytest.raises(Killed):
        run(Watched(SMALL, kill=(1, 2)), artifact, checkpoint_every=1)
    checkpoint = torch.load(artifact.checkpoint, weights_only=True)
    assert checkpoint["global_step"] == 6
    assert checkpoint["train_loss"]["images"] == 4
    assert [path.name for path in artifact.directory.iterdir()] == ["last.ckpt"]


# --- steps -------------------------------------------------------------------------------------------------------


def plain(artifact: Artifact, name: str, **changes: Any) -> tuple[Watched, State]:
    recipe = replace(RECIPE, optimizer=partial(torch.optim.SGD, lr=0.5, momentum=0.9), **changes)
    shell = Watched(recipe, network=make_plain_network())
    return shell, run(shell, Artifact(artifact.root, "classifier", name))


@pytest.mark.parametrize(
    ("batch_size", "batches", "as_one"),
    [
        (2, 2, 4),  # two half batches are one
        (1, 4, 4),
        (3, 2, 6),  # the last two images are dropped, as they are with a batch of six
        (3, 4, 6),  # fewer batches than asked for: they are one step, of their mean
        (2, 100, 8),
    ],
)
def test_gradients_add_up_to_those_of_one_large_batch(
    artifact: Artifact, batch_size: int, batches: int, as_one: int
) -> None:
    _, expected = plain(artifact, "one", batch_size=as_one)
    shell, weights = plain(artifact, "several", batch_size=batch_size, accumulate=batches)
    assert len(shell.losses) == EPOCHS * (8 // as_one) * as_one // batch_size
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-4, atol=1e-6)
    assert not equal(weights, make_plain_network().state_dict())


@pytest.mark.parametrize(
    ("iterations", "accumulate", "batches"),
    [
        (6, 1, [4, 2]),
        (2, 1, [2]),
        (8, 1, [4, 4]),
        (3, 2, [4, 2]),
        (1, 100, [4]),
    ],
)
def test_iterations_cut_the_last_epoch(
    artifact: Artifact, iterations: int, accumulate: int, batches: list[int]
) -> None:
    shell = Watched(replace(SMALL, epochs=None, iterations=iterations, accumulate=accumulate))
    run(shell, artifact)
    assert list(shell.losses) == [(epoch, batch) for epoch, count in enumerate(batches) for batch in range(count)]
    assert sorted(shell.epochs) == list(range(len(batches)))  # validated at the end of each, the cut one included
    assert shell.trainer.global_step == shell.trainer.estimated_stepping_batches == iterations
    again = Watched(shell.recipe)
    run(again, artifact)
    assert not again.losses


def test_iterations_end_with_a_look_at_the_validation_split(artifact: Artifact) -> None:
    """Of the three epochs, the second and the cut third."""
    shell = Watched(replace(SMALL, epochs=None, iterations=10, validate_every=2))
    run(shell, artifact)
    assert sorted(shell.epochs) == [1, 2]


def test_the_schedule_spans_the_iterations(artifact: Artifact) -> None:
    shell = Watched(replace(SMALL, epochs=None, iterations=5, schedule=partial(poly, power=1.0)))
    run(shell, artifact)
    assert shell.rates == pytest.approx([0.02, 0.016, 0.012, 0.008, 0.004])


def test_iterations_of_whole_epochs_are_those_epochs(artifact: Artifact, whole: dict[str, Run]) -> None:
    weights = run(Watched(replace(SMALL, epochs=None, iterations=4 * EPOCHS)), artifact)
    assert equal(weights, whole["a step a batch"].weights)


def test_a_schedule_steps_with_the_optimiser(artifact: Artifact) -> None:
    shell = Watched(replace(SMALL, epochs=1, accumulate=2, schedule=partial(poly, power=1.0)))
    run(shell, artifact)
    assert shell.rates == pytest.approx([0.02, 0.02, 0.01, 0.01])


# --- how it computes ---------------------------------------------------------------------------------------------


def outputs(network: Classifier) -> list[Tensor]:
    """What the first convolution gives, from now on."""
    seen: list[Tensor] = []
    network.encoder[0].register_forward_hook(lambda _module, _inputs, output: seen.append(output.detach()))
    return seen


def test_mixed_precision_computes_in_bf16_and_keeps_weights_in_full(artifact: Artifact) -> None:
    shell = Watched(replace(SMALL, epochs=None, iterations=1))
    seen = outputs(shell.network)
    weights = run(shell, artifact, precision="bf16-mixed")
    assert {tensor.dtype for tensor in seen} == {torch.bfloat16}
    assert {weights[name].dtype for name in ("encoder.0.weight", "head.weight")} == {torch.float32}
    assert not torch.equal(weights["head.weight"], make_network().state_dict()["head.weight"])
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_channels_last_is_an_option_that_moves_nothing_but_rounding(artifact: Artifact) -> None:
    laid_out = {}
    for option in (True, False):
        shell = Watched(SMALL, network=make_plain_network())
        seen = outputs(shell.network)
        weights = run(shell, Artifact(artifact.root, "classifier", str(option)), channels_last=option)
        laid_out[option] = weights
        assert all(tensor.is_contiguous(memory_format=torch.channels_last) == option for tensor in seen[:4])
        assert not shell.network._forward_pre_hooks
    for name, tensor in laid_out[True].items():
        torch.testing.assert_close(laid_out[False][name], tensor, rtol=1e-3, atol=1e-4)


def test_without_a_compiler_the_option_is_named(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nand more")

    monkeypatch.setattr(torch, "compile", lambda _: broken)
    with pytest.raises(ConfigError, match=r"No working C\+\+ compiler found\)\. .*trainer\.compile=false"):
        run(Watched(SMALL), artifact, compile=True)
    assert not artifact.checkpoint.exists()


def test_only_training_passes_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the network is its old self afterwards, whatever happened."""
    monkeypatch.setattr(torch, "compile", lambda function: lambda images: function(images) + 100)
    network, images = make_plain_network(), torch.rand(2, 3, 16, 16)
    expected, names = network(images), list(network.state_dict())

    def use() -> None:
        with compiled(network, torch.device("cpu")):
            assert torch.equal(network.train()(images), expected + 100)
            assert torch.equal(network.eval()(images), expected)
            assert list(network.state_dict()) == names
            raise Killed

    with pytest.raises(Killed):
        use()
    assert torch.equal(network.train()(images), expected)


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
