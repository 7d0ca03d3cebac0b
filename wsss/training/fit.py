"""Training that survives being killed: one call that fits a shell, resuming from its last complete epoch."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger

from wsss.artifacts import Artifact, write_atomically
from wsss.config import TrainerConfig
from wsss.console import FitProgress
from wsss.data.loading import DataModule
from wsss.training.shells import Shell

log = logging.getLogger(__name__)


class EpochCheckpoint(pl.Callback):
    """Writes ``last.ckpt`` after every epoch, by rename: a kill at any moment leaves the epoch before intact."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save."""
        write_atomically(self.path, trainer.save_checkpoint)


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
        if value > self.best and trainer.is_global_zero:
            self.best = value
            self.artifact.write_weights(pl_module.network)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        """The best value, so that a resumed run goes on comparing."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the best value back."""
        self.best = state_dict["best"]


def make_trainer(
    config: TrainerConfig, *, loggers: list[Logger], callbacks: list[pl.Callback], **options: Any
) -> pl.Trainer:
    """A Lightning trainer that writes nothing by itself and says nothing by itself."""
    # deterministic mode would fill every new tensor with NaN, to show reads of memory never written: a tenth of a step
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return pl.Trainer(
        accelerator=config.accelerator,
        devices=config.devices,
        strategy=config.strategy,
        num_nodes=config.num_nodes,
        precision=options.pop("precision", config.precision),
        deterministic=config.deterministic,
        logger=loggers or False,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        log_every_n_steps=1,
        **options,
    )


def fit(
    shell: Shell, data: DataModule, artifact: Artifact, config: TrainerConfig, *, loggers: list[Logger]
) -> pl.Trainer:
    """Train ``shell``; go on from the artifact's last checkpoint where there is one.

    When it returns, the network holds the weights that the recipe keeps (the last, or the best on validation).
    """
    recipe = shell.recipe
    callbacks: list[pl.Callback] = [FitProgress(artifact.stage), EpochCheckpoint(artifact.checkpoint)]
    if recipe.keep == "best_val":
        callbacks.append(KeepBest(artifact, f"val/{shell.metric}"))
    trainer = make_trainer(
        config,
        loggers=loggers,
        callbacks=callbacks,
        max_epochs=recipe.epochs,
        check_val_every_n_epoch=recipe.validate_every,
    )
    resume = artifact.checkpoint if artifact.checkpoint.is_file() else None
    if resume:
        log.info("%s: going on from %s", artifact.stage, resume)
    trainer.fit(shell, datamodule=data, ckpt_path=resume, weights_only=True)
    if recipe.keep == "best_val":
        if artifact.has_weights:
            artifact.read_weights(shell.network)
        else:
            log.warning("%s: no epoch gave a val/%s; the last weights are kept", artifact.stage, shell.metric)
    return trainer
