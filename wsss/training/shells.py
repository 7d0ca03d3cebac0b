"""The Lightning shells: loss, metric and optimiser around a plain network."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from wsss import distributed
from wsss.data.loading import Batch, stable_seed
from wsss.data.transforms import Augment
from wsss.errors import Diverged
from wsss.inference import Inference
from wsss.metrics import ConfusionMatrix, average_precision, mean_average_precision, miou
from wsss.models import Classifier, SegmentationNetwork
from wsss.training.losses import Loss

CURVE_STEPS = 50
"""Optimizer steps between two points of the learning curves of a long training."""


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; ``RecipeConfig`` with its objects built.

    Attributes:
        epochs: passes over the training images; None where ``iterations`` are set.
        batch_size: images of one forward pass.
        optimizer: called with the parameter groups.
        schedule: (step, total steps) -> factor on the learning rate.
        encoder_lr_factor: learning rate of pretrained layers, relative to the weights of new ones.
        iterations: optimizer steps, instead of epochs; the last epoch is cut.
        accumulate: forward passes of one optimizer step. Their losses are averaged: each batch counts alike, however
            many of its pixels are ignored.
        bias_lr_factor: learning rate of the biases of new layers, relative to their weights.
        frozen_batch_norm_weights: scale and shift of the pretrained batch norm are not trained.
    """

    epochs: int | None
    batch_size: int
    optimizer: Callable[[list[dict[str, Any]]], Optimizer]
    schedule: Callable[[int, int], float]
    encoder_lr_factor: float
    frozen_stages: int
    frozen_batch_norm: bool
    augment: Augment
    keep: str
    validate_every: int
    iterations: int | None = None
    accumulate: int = 1
    bias_lr_factor: float = 1.0
    frozen_batch_norm_weights: bool = False


class Shell(pl.LightningModule):
    """What both trainings share: parameter groups, schedule, frozen layers, and a fresh seed each step.

    Random numbers drawn inside the network (dropout) are a function of (seed, epoch, step, rank), so that neither a
    resumed run nor one with other loader processes, which draw from the same generator, gives another result.
    """

    metric: str
    """Name of the validation metric, larger is better."""

    settings: str
    """Where its recipe stands in the configuration."""

    groups = ("encoder", "new", "new biases")
    """The parameter groups of its optimiser, as curves name them."""

    def __init__(self, network: nn.Module, recipe: Recipe, *, seed: int, frozen: Iterable[nn.Parameter] = ()) -> None:
        super().__init__()
        # channels last makes depthwise convolutions nearly twice as fast on CPUs, and tensor cores happy on GPUs
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.recipe, self.seed = recipe, seed
        self._loss, self._images = torch.zeros(()), 0  # of the epoch so far: sum over images, and their number
        self._step_losses: list[Tensor] = []  # of the batches since the last optimizer step
        self._every = CURVE_STEPS
        for parameter in frozen:
            parameter.requires_grad_(False)
        if recipe.frozen_batch_norm_weights:
            for module in self.network.encoder.modules():
                if isinstance(module, _BatchNorm):
                    module.requires_grad_(False)

    def configure_optimizers(self) -> Any:
        """Two groups, pretrained and new layers, under one schedule per step.

        Biases of new layers are a third one where they have a learning rate of their own; they do not decay. DeepLab's
        rates of 1, 10 and 20 are ``encoder_lr_factor=0.1`` and ``bias_lr_factor=2`` with the rate of the new weights in
        the optimiser.
        """
        pretrained = {id(parameter) for parameter in self.network.encoder.parameters()}
        trained = [(name, p) for name, p in self.network.named_parameters() if p.requires_grad]
        new = [(name, p) for name, p in trained if id(p) not in pretrained]
        factors, apart = [self.recipe.encoder_lr_factor, 1.0], self.recipe.bias_lr_factor != 1
        biases = [p for name, p in new if apart and name.rpartition(".")[2] == "bias"]
        weights = [p for _, p in new if not any(p is bias for bias in biases)]
        groups: list[dict[str, Any]] = [{"params": [p for _, p in trained if id(p) in pretrained]}, {"params": weights}]
        if biases:
            groups.append({"params": biases, "weight_decay": 0.0})
            factors.append(self.recipe.bias_lr_factor)
        optimizer = self.recipe.optimizer(groups)
        for group, factor in zip(optimizer.param_groups, factors, strict=True):
            group["lr"] *= factor
        steps = int(self.trainer.estimated_stepping_batches)
        self._every = curve_interval(steps)
        scheduler = LambdaLR(optimizer, partial(_factor, schedule=self.recipe.schedule, steps=steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def checked(self, loss: Tensor, batch: Batch) -> Tensor:
        """Count the loss of a batch into the mean of the epoch and return it.

        Raises:
            Diverged: it is not finite. No checkpoint has been written since it was.
        """
        if not loss.isfinite():
            raise Diverged(
                f"the training loss is {loss.item()} in epoch {self.current_epoch + 1}. Lower the learning rate "
                f"({self.settings}.optimizer.lr)"
            )
        images = len(batch["image"])
        self._loss, self._images = self._loss.to(loss.device) + loss.detach() * images, self._images + images
        self._step_losses.append(loss.detach())
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Log the loss and the learning rates of this step, now and then: reading the loss makes the device wait.

        ``train/loss_step`` is the mean over the batches of the step, of the leader's images alone. A resumed run logs
        the steps that an uninterrupted one would.
        """
        losses, self._step_losses = self._step_losses, []
        step = self.trainer.global_step  # those before this one
        if step % self._every or not losses or not self.trainer.loggers:
            return
        groups = zip(self.groups, optimizer.param_groups, strict=False)
        rates = {f"lr/{name}": group["lr"] for name, group in groups if group["params"]}
        values = {"train/loss_step": torch.stack(losses).mean().item(), **rates}
        for logger in self.trainer.loggers:  # self.log() would repeat them at the steps between
            logger.log_metrics(values, step)

    def on_train_start(self) -> None:
        """Put frozen batch norm into evaluation mode: a run that goes on within an epoch does not start that epoch."""
        self._freeze_batch_norm()

    def on_train_epoch_start(self) -> None:
        """Put frozen batch norm into evaluation mode, and begin the mean of the loss."""
        self._freeze_batch_norm()
        self._loss, self._images, self._step_losses = torch.zeros(()), 0, []

    def on_train_epoch_end(self) -> None:
        """Log the mean loss of the epoch, over the batches of all processes."""
        loss, images = self._all_losses()
        self.log_epoch("train/loss", loss.sum() / images.sum())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the mean of a half epoch: Lightning would keep nothing of it."""
        loss, images = self._all_losses()
        checkpoint["train_loss"] = {"sum": loss, "images": images}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it back."""
        if "train_loss" in checkpoint:
            of = checkpoint["train_loss"]
            loss, images = torch.as_tensor(of["sum"]).reshape(-1), torch.as_tensor(of["images"]).reshape(-1)
            self._loss, self._images = loss[distributed.rank()], int(images[distributed.rank()])

    def _all_losses(self) -> tuple[Tensor, Tensor]:
        """Sum of the loss over images, and their number, by process. All of them call it."""
        found = distributed.gather((self._loss.cpu(), self._images))
        return torch.stack([loss for loss, _ in found]), torch.tensor([images for _, images in found])

    def log_epoch(self, name: str, value: Any) -> None:
        """Log a number of an epoch that all processes have computed alike."""
        agreed: dict[str, Any] = {} if distributed.world() == 1 else {"sync_dist": True, "reduce_fx": "max"}
        self.log(name, value, on_step=False, on_epoch=True, **agreed)

    def on_train_batch_start(self, _batch: Batch, index: int) -> None:
        """Seed the step."""
        torch.manual_seed(stable_seed(self.seed, self.current_epoch, index, self.global_rank))

    def on_validation_start(self) -> None:
        """Let every process measure the leader's network, and none wait for the others at an image that it alone has.

        DDP levels buffers at the first pass; a pass that only some processes make would hang there.
        """
        distributed.level_buffers(self.network)
        wrapper = self.trainer.strategy.model
        if isinstance(wrapper, DistributedDataParallel):
            wrapper.require_forward_param_sync = False

    def on_validation_end(self) -> None:
        """Lightning puts the whole network back into training mode here; frozen batch norm stays frozen."""
        self._freeze_batch_norm()

    def _freeze_batch_norm(self) -> None:
        for module in self.network.modules():
            if not isinstance(module, _BatchNorm):
                continue
            parameters = list(module.parameters())
            of_frozen_layers = bool(parameters) and not any(p.requires_grad for p in parameters)
            if self.recipe.frozen_batch_norm or of_frozen_layers:
                module.eval()


def _factor(step: int, *, schedule: Callable[[int, int], float], steps: int) -> float:
    return schedule(step, steps)


def curve_interval(steps: int) -> int:
    """Optimizer steps between two points of a curve over them: ``CURVE_STEPS``, or fewer in a short training.

    Args:
        steps: of the whole training, which has about a hundred points at least if it has that many steps.

    >>> [curve_interval(steps) for steps in (8, 250, 5000, 40_000)]
    [1, 2, 50, 50]
    """
    return min(max(1, steps // 100), CURVE_STEPS)


def to_unit(images: Tensor) -> Tensor:
    """uint8 images, ``(3, H, W)`` or ``(N, 3, H, W)``, to floats in [0,1]; a batch comes out channels last."""
    return (images.contiguous(memory_format=torch.channels_last) if images.ndim == 4 else images).float() / 255


class ClassifierShell(Shell):
    """Multi-label classification: mean binary cross entropy of the logits; mAP on the validation split."""

    metric, settings = "map", "recipe.classifier"
    network: Classifier

    def __init__(self, network: Classifier, recipe: Recipe, *, seed: int) -> None:
        super().__init__(network, recipe, seed=seed, frozen=network.parameters_up_to(recipe.frozen_stages))
        self._scores: list[tuple[np.ndarray, np.ndarray]] = []

    def training_step(self, batch: Batch, _index: int) -> Tensor:
        """One step; the loss is ``multilabel_soft_margin_loss``."""
        loss = F.multilabel_soft_margin_loss(self.network(to_unit(batch["image"])), batch["tags"])
        return self.checked(loss, batch)

    def validation_step(self, batch: Batch, _index: int) -> None:
        """Collect probabilities and tags of one image."""
        probabilities = self.network(to_unit(batch["image"])).float().sigmoid()
        self._scores.append((probabilities.cpu().numpy(), batch["tags"].cpu().numpy()))

    def on_validation_epoch_end(self) -> None:
        """Mean average precision over the classes that occur."""
        self._scores = distributed.collect(self._scores)
        if not self.trainer.sanity_checking:
            scores, tags = self._predictions()
            self.log_epoch("val/map", mean_average_precision(scores, tags))
        self._seen, self._scores = self._scores, []

    def average_precisions(self) -> np.ndarray:
        """Average precision of each class over the validation images seen last, ``(C,)``; NaN where none has it."""
        return average_precision(*self._predictions())

    def _predictions(self) -> tuple[np.ndarray, np.ndarray]:
        scores, tags = zip(*(self._scores or self._seen), strict=True)
        return np.concatenate(scores), np.concatenate(tags)


class SegmenterShell(Shell):
    """Segmentation: a loss over the pixels that are not ignored; dataset mIoU on the validation split.

    The mIoU along the way sees each image once, as it is; the final one of the stage uses the views of ``evaluation``.

    Args:
        network: the segmenter.
        recipe: how to train it.
        seed: of the run.
        loss: of logits and labels (:mod:`wsss.training.losses`).
        truth: position in the validation split -> true mask; None where the set has no masks.
        num_labels: C + 1.
    """

    metric, settings = "miou", "recipe.segmenter"
    network: SegmentationNetwork

    def __init__(
        self,
        network: SegmentationNetwork,
        recipe: Recipe,
        *,
        seed: int,
        loss: Loss,
        truth: Callable[[int], np.ndarray] | None,
        num_labels: int,
    ) -> None:
        super().__init__(network, recipe, seed=seed)
        self.loss, self.truth, self.num_labels = loss, truth, num_labels
        self._confusion = ConfusionMatrix(num_labels)

    def training_step(self, batch: Batch, _index: int) -> Tensor:
        """One step."""
        outputs = self.network.training_outputs(to_unit(batch["image"]))
        loss = torch.stack([self.loss(logits, batch["labels"]) for logits in outputs]).sum()
        return self.checked(loss, batch)

    def validation_step(self, batch: Batch, _index: int) -> None:
        """Count one image into the confusion matrix."""
        if self.truth is None:
            return
        labels = Inference().labels(self.network, to_unit(batch["image"][0]))
        self._confusion.update(self.truth(int(batch["index"])), labels)

    def on_validation_epoch_end(self) -> None:
        """Dataset mIoU from one confusion matrix."""
        self._confusion.counts = distributed.total(self._confusion.counts)
        if self.truth is not None and not self.trainer.sanity_checking:
            self.log_epoch("val/miou", miou(self._confusion.matrix))
        self._confusion = ConfusionMatrix(self.num_labels)
