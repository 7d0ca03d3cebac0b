"""Training that survives being killed: one call that fits a shell, and goes on at the step of its last checkpoint."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from torch import Tensor, nn

from wsss import distributed
from wsss.artifacts import Artifact, write_atomically
from wsss.config import TrainerConfig
from wsss.console import FitProgress
from wsss.data.loading import DataModule
from wsss.errors import ConfigError
from wsss.training.shells import Recipe, Shell

log = logging.getLogger(__name__)


class Checkpoints(pl.Callback):
    """Writes ``last.ckpt`` after every epoch and every few steps, by rename: a kill leaves the one before intact.

    All processes of a run take part, as Lightning asks; the leader writes.

    Args:
        path: the file.
        every: optimizer steps between those in the middle of an epoch; None for no such.
    """

    def __init__(self, path: Path, *, every: int | None = None) -> None:
        self.path, self.every, self.step = path, every, 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count from where the fit goes on."""
        self.step = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save, where this batch ended a step: gradients that are being accumulated would be lost."""
        stepped, self.step = trainer.global_step != self.step, trainer.global_step
        ends_epoch = batch_idx + 1 == trainer.num_training_batches or trainer.should_stop
        if self.every and stepped and self.step % self.every == 0 and not ends_epoch:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save."""
        self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        if trainer.is_global_zero:
            write_atomically(self.path, trainer.save_checkpoint)
        else:
            trainer.save_checkpoint(self.path)


class Trainer(pl.Trainer):
    """A trainer that is told the number of its optimizer steps.

    Lightning would make the training loader to count them, and so before it has read the checkpoint that tells the
    loader where to begin.
    """

    steps: int | None = None

    @property
    def estimated_stepping_batches(self) -> int | float:
        """The optimizer steps of the whole training, which its schedule spans."""
        return super().estimated_stepping_batches if self.steps is None else self.steps


class Pace(pl.Callback):
    """Ends training after the recipe's iterations, and takes as many batches to a step as it says.

    Lightning counts steps of its own accord with ``max_steps``, and then loses count where it resumes.

    Args:
        recipe: epochs or iterations, and ``accumulate``. An epoch of fewer batches than that is one step.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Tell the data and the trainer, before the schedule asks for the number of steps."""
        if stage != "fit":
            return
        data: DataModule = trainer.datamodule  # type: ignore[attr-defined]
        data.accumulate = self.recipe.accumulate
        batches = max(1, data.batches)
        trainer.accumulate_grad_batches = min(self.recipe.accumulate, batches)
        per_epoch = batches // trainer.accumulate_grad_batches
        steps = self.recipe.iterations or per_epoch * self.recipe.epochs  # type: ignore[operator]
        trainer.steps = steps  # type: ignore[attr-defined]
        trainer.fit_loop.max_epochs = -(-steps // per_epoch)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Cut the last epoch; a look at the validation split and the end of an epoch follow."""
        if trainer.global_step == self.recipe.iterations:
            trainer.should_stop, trainer.check_val_every_n_epoch = True, 1


class KeepBest(pl.Callback):
    """Keeps the weights of the epoch with the best validation metric.

    Args:
        artifact: its weights file holds them, so that a run killed at any moment after training still finds them.
        metric: name of the logged metric, larger is better.
    """

    def __init__(self, artifact: Artifact, metric: str) -> None:
        self.artifact, self.metric, self.best = artifact, metric, float("-inf")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the weights where they beat the best so far."""
        value = float(trainer.callback_metrics[self.metric])
        if value > self.best:
            self.best = value
            if trainer.is_global_zero:
                self.artifact.write_weights(pl_module.network)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        """The best value, so that a resumed run goes on comparing."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the best value back."""
        self.best = state_dict["best"]


class OwnSignals(pl.Callback):
    """Takes SIGTERM back from Lightning, which would go on to the end of the step, and wait for other processes."""

    def __init__(self) -> None:
        self.handler = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put back what was there before, as Lightning itself does at the end."""
        # None: it was not set by Python
        if self.handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self.handler)

    on_predict_start = on_train_start


def make_trainer(
    config: TrainerConfig, *, loggers: list[Logger], callbacks: list[pl.Callback], alone: bool = False, **options: Any
) -> Trainer:
    """A Lightning trainer that writes nothing by itself and says nothing by itself.

    Args:
        config: where and how it computes.
        loggers: and ``callbacks``: of Lightning.
        alone: it works in this process and on its device only, whatever others do.
        options: further arguments of Lightning's trainer.
    """
    # deterministic mode would fill every new tensor with NaN, to show reads of memory never written: a tenth of a step
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return Trainer(
        accelerator=config.accelerator,
        **_places(config, alone=alone),
        plugins=distributed.environment(),
        precision=options.pop("precision", config.precision),
        deterministic=config.deterministic,
        logger=loggers or False,
        callbacks=[OwnSignals(), *callbacks],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        log_every_n_steps=1,
        **options,
    )


def _places(config: TrainerConfig, *, alone: bool) -> dict[str, Any]:
    """The devices of a trainer. ``strategy=ddp`` with one process is a single device like any other."""
    if distributed.world() > 1 and not alone:
        devices, machines = distributed.layout(config)
        return {
            "devices": devices,
            "strategy": config.strategy,
            "num_nodes": machines,
            "sync_batchnorm": config.sync_batchnorm,
        }
    if not distributed.in_parallel(config):
        return {"devices": config.devices, "strategy": config.strategy, "num_nodes": config.num_nodes}
    on_gpu = config.accelerator != "cpu" and torch.cuda.is_available()
    return {"devices": [distributed.device_index(config, distributed.local_rank())] if on_gpu else 1}


def fit(
    shell: Shell, data: DataModule, artifact: Artifact, config: TrainerConfig, *, loggers: list[Logger]
) -> pl.Trainer:
    """Train ``shell``; go on from the artifact's last checkpoint where there is one.

    When it returns, the network holds the weights that the recipe keeps (the last, or the best on validation).

    Raises:
        ConfigError: the network is to be compiled, and there is nothing to compile it with.
        Diverged: the loss is no number.
    """
    recipe = shell.recipe
    checkpoints = Checkpoints(artifact.checkpoint, every=config.checkpoint_every)
    callbacks: list[pl.Callback] = [FitProgress(artifact.stage), Pace(recipe), checkpoints]
    if recipe.keep == "best_val":
        callbacks.append(KeepBest(artifact, f"val/{shell.metric}"))
    trainer = make_trainer(
        config,
        loggers=loggers,
        callbacks=callbacks,
        max_epochs=recipe.epochs or -1,
        check_val_every_n_epoch=recipe.validate_every,
    )
    resume = artifact.checkpoint if artifact.checkpoint.is_file() else None
    if resume:
        log.info("%s: going on from %s", artifact.stage, resume)
    compilation = compiled(shell.network, trainer.strategy.root_device) if config.compile else nullcontext()
    with memory_format(shell.network, channels_last=config.channels_last), compilation:
        trainer.fit(shell, datamodule=data, ckpt_path=resume, weights_only=True)
    if recipe.keep == "best_val":
        if distributed.lead(lambda: artifact.has_weights):
            artifact.read_weights(shell.network)
        else:
            log.warning("%s: no epoch gave a val/%s; the last weights are kept", artifact.stage, shell.metric)
    return trainer


@contextmanager
def memory_format(network: nn.Module, *, channels_last: bool) -> Iterator[None]:
    """Let ``network`` compute as its shell has laid it out, or else with whole planes of each channel."""
    if channels_last:
        yield
        return
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    hook = network.register_forward_pre_hook(lambda _, images: tuple(image.contiguous() for image in images))
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def compiled(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Compile the training passes of ``network``.

    Others run as they are: images of a validation split differ in size, and each size would be compiled anew. The
    network keeps its modules, and so the names of its weights.

    Raises:
        ConfigError: torch finds nothing to compile with on this machine.
    """
    try:
        torch.compile(_trial)(torch.ones(2, device=device))
    except Exception as error:  # whichever tool is missing, torch has its own error for it
        reason = str(error).strip() or type(error).__name__
        raise ConfigError(
            f"trainer.compile=true, but torch.compile does not work here ({reason.splitlines()[0]}). "
            f"Install a C++ compiler (and Triton for a GPU), or set trainer.compile=false"
        ) from error
    plain = network.forward
    fast = torch.compile(plain)

    def forward(images: Tensor) -> Tensor:
        return fast(images) if network.training else plain(images)

    network.forward = forward
    try:
        yield
    finally:
        del network.forward


def _trial(values: Tensor) -> Tensor:
    return values.sin() + 1
