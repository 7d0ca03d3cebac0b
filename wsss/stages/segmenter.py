"""Stage 4: a segmentation network learnt from pseudo-labels, measured on the validation split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig

from wsss.artifacts import write_json
from wsss.build import build as build_node
from wsss.config import Labels
from wsss.console import progress
from wsss.data import DataModule, ImageSet
from wsss.data.transforms import to_tensor
from wsss.errors import ConfigError
from wsss.metrics import ConfusionMatrix, image_miou, summarize
from wsss.metrics.confusion import jsonable
from wsss.models import Segmenter
from wsss.models.segmenter import predict_labels
from wsss.stages.context import Context, Outcome, build_recipe, device_of, image_tags, label_names, pictures
from wsss.training.fit import fit
from wsss.training.shells import Recipe, SegmenterShell, to_unit

PREDICTIONS = "predictions"
"""Folder of the artifact with the predicted masks of the validation split."""


@dataclass(frozen=True)
class Parts:
    """What the configuration of this stage builds."""

    network: Segmenter
    recipe: Recipe


def build(config: DictConfig, data: ImageSet) -> Parts:
    """Build the network with its pretrained encoder and the recipe."""
    recipe = build_recipe(config, "segmenter")
    if config.labels is Labels.ground_truth and not data.has_masks(data.train):
        raise ConfigError(f"labels=ground_truth needs true masks of {data.train}, and {data.root} has none")
    if recipe.keep == "best_val" and not data.has_masks(data.val):
        raise ConfigError(f"recipe.segmenter.keep=best_val needs true masks of {data.val}, and {data.root} has none")
    return Parts(build_node(config, "segmenter", num_labels=len(data.classes) + 1), recipe)


def run(context: Context, parts: Parts) -> Outcome:
    """Train, keep the weights, predict the validation split and measure."""
    config, data, artifact = context.config, context.data, context.artifact
    validation = data.ids(data.val)
    weak = config.labels is Labels.refined
    shell = SegmenterShell(
        parts.network,
        parts.recipe,
        seed=config.seed,
        truth=(lambda index: data.truth(validation[index])) if data.has_masks(data.val) else None,
        num_labels=len(data.classes) + 1,
    )
    module = DataModule(
        context.cached_data(),
        augment=parts.recipe.augment,
        batch_size=parts.recipe.batch_size,
        workers=config.workers,
        seed=config.seed,
        masks=context.upstream["labels"].read_mask if weak else data.truth,
    )
    fit(shell, module, artifact, config.trainer, loggers=context.tracker.lightning_loggers)
    artifact.write_weights(parts.network)

    metrics, summary = evaluate(context, parts.network)
    masks = {"prediction": lambda id: artifact.read_mask(id, folder=PREDICTIONS), "truth": data.mask}
    context.tracker.log_images("predictions", pictures(data, validation, masks))
    supervision = image_tags(data) if weak else "train masks"
    if parts.recipe.keep == "best_val":
        supervision += "; val masks (checkpoint)"
    return Outcome(metrics, summary, supervision)


@torch.inference_mode()
def evaluate(context: Context, network: Segmenter) -> tuple[dict[str, Any], list[tuple[str, Any]]]:
    """Predict every validation image, keep the masks, and measure them where there is a truth."""
    config, data, artifact, names = context.config, context.data, context.artifact, label_names(context.data)
    device = device_of(config.trainer)
    network.eval().to(device)
    confusion, per_image = ConfusionMatrix(len(names)), {}
    for id in progress(data.ids(data.val), "segmenter: evaluation", unit="img"):
        image = to_unit(to_tensor(data.image(id))).to(device)
        labels = (
            predict_labels(network, image, scales=config.evaluation.scales, flip=config.evaluation.flip).cpu().numpy()
        )
        artifact.write_mask(id, labels, folder=PREDICTIONS)
        truth = data.mask(id)
        if truth is not None:
            confusion.update(truth, labels)
            per_image[id] = jsonable(image_miou(truth, labels, len(names)))
    if not data.has_masks(data.val):
        return {"miou": None, "iou": {}, "images": len(data.ids(data.val))}, [("mIoU", "no masks to measure on")]
    write_json(artifact.directory / "per_image.json", per_image)
    metrics = {**summarize(confusion.matrix, names), "images": len(per_image)}
    context.tracker.log_table("validation IoU", ["class", "iou"], list(metrics["iou"].items()))
    return metrics, [(f"mIoU on {data.val}", metrics["miou"]), ("pixel accuracy", metrics["pixel_accuracy"])]
