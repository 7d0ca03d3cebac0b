"""Stage 1: a multi-label classifier learnt from image-level tags."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from omegaconf import DictConfig

from wsss import distributed
from wsss.build import build as build_node
from wsss.data import DataModule, ImageSet
from wsss.metrics.confusion import jsonable
from wsss.models import Classifier
from wsss.stages.context import Context, Outcome, build_recipe, image_tags
from wsss.training.fit import fit
from wsss.training.shells import ClassifierShell, Recipe


@dataclass(frozen=True)
class Parts:
    """What the configuration of this stage builds."""

    network: Classifier
    recipe: Recipe


def build(config: DictConfig, data: ImageSet) -> Parts:
    """Build the network with its pretrained weights and the recipe."""
    network = build_node(config, "classifier", num_classes=len(data.classes))
    recipe = build_recipe(config, "classifier")
    network.parameters_up_to(recipe.frozen_stages)  # refuses a stage that the network does not have
    return Parts(network, recipe)


def run(context: Context, parts: Parts) -> Outcome:
    """Train, keep the weights, and measure mAP on the validation split."""
    config, data = context.config, context.data
    shell = ClassifierShell(parts.network, parts.recipe, seed=config.seed)
    module = DataModule(
        context.cached_data(),
        augment=parts.recipe.augment,
        batch_size=parts.recipe.batch_size,
        workers=config.workers,
        seed=config.seed,
    )
    trainer = fit(shell, module, context.artifact, config.trainer, loggers=context.tracker.lightning_loggers)
    trainer.validate(shell, datamodule=module, verbose=False)
    if distributed.leader():
        context.artifact.write_weights(parts.network)

    per_class = shell.average_precisions()
    ap = {name: jsonable(value) for name, value in zip(data.classes, per_class.tolist(), strict=True)}
    metrics = {"map": jsonable(np.nanmean(per_class)), "ap": ap, "images": len(data.ids(data.val))}
    context.tracker.log_table("average precision", ["class", "ap"], list(ap.items()))
    supervision = image_tags(data) + ("; val tags (checkpoint)" if parts.recipe.keep == "best_val" else "")
    return Outcome(metrics, [(f"mAP on {data.val}", metrics["map"])], supervision)
