"""Stage 4: a segmentation network learnt from pseudo-labels, measured on the validation split."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from wsss import distributed
from wsss.artifacts import write_json
from wsss.build import build as build_node
from wsss.config import Labels
from wsss.console import progress
from wsss.data import DataModule, ImageSet
from wsss.data.loading import MaskReader
from wsss.data.transforms import to_tensor
from wsss.errors import ConfigError
from wsss.inference import Inference, inference_of
from wsss.metrics import BoundaryFScore, ConfusionMatrix, image_miou, summarize
from wsss.metrics.confusion import jsonable
from wsss.models import SegmentationNetwork
from wsss.stages.context import Context, Outcome, build_recipe, device_of, image_tags, label_names, pictures
from wsss.training.fit import fit
from wsss.training.losses import Loss
from wsss.training.shells import Recipe, SegmenterShell, to_unit

log = logging.getLogger(__name__)

PREDICTIONS = "predictions"
"""Folder of the artifact with the predicted masks of the validation split."""


@dataclass(frozen=True)
class Parts:
    """What the configuration of this stage builds."""

    network: SegmentationNetwork
    recipe: Recipe
    loss: Loss
    inference: Inference


def build(config: DictConfig, data: ImageSet) -> Parts:
    """Build the network with its pretrained encoder and the recipe."""
    recipe = build_recipe(config, "segmenter")
    if config.labels is Labels.ground_truth and not data.has_masks(data.train):
        raise ConfigError(f"labels=ground_truth needs true masks of {data.train}, and {data.root} has none")
    if recipe.keep == "best_val" and not data.has_masks(data.val):
        raise ConfigError(f"recipe.segmenter.keep=best_val needs true masks of {data.val}, and {data.root} has none")
    network = build_node(config, "segmenter", num_labels=len(data.classes) + 1)
    return Parts(network, recipe, build_node(config, "loss"), inference_of(config))


def run(context: Context, parts: Parts) -> Outcome:
    """Train, unless the weights are there; keep them, predict the validation split and measure."""
    config, data, artifact = context.config, context.data, context.artifact
    validation = data.ids(data.val)
    weak = config.labels is not Labels.ground_truth
    if context.trained is None:
        train(context, parts, masks=next(iter(context.upstream.values())).read_mask if weak else data.truth)
    else:
        log.info("%s: the weights of %s, tested in another way", artifact.stage, context.trained.directory)
        context.trained.read_weights(parts.network)
    distributed.lead(lambda: artifact.write_weights(parts.network))
    if not distributed.leader():  # statistics of batch norm are the leader's
        artifact.read_weights(parts.network)

    metrics, summary = evaluate(context, parts)
    masks = {"prediction": lambda id: artifact.read_mask(id, folder=PREDICTIONS), "truth": data.mask}
    context.tracker.log_images("predictions", pictures(data, validation, masks))
    supervision = image_tags(data) if weak else "train masks"
    if parts.recipe.keep == "best_val":
        supervision += "; val masks (checkpoint)"
    if config.evaluation.tags:
        supervision += "; val image tags (inference)"
    facts = {} if context.trained is None else {"weights_of": context.trained.fingerprint}
    return Outcome(metrics, summary, supervision, facts)


def train(context: Context, parts: Parts, *, masks: MaskReader) -> None:
    """Fit the network to ``masks`` of the training split; it then holds the weights that the recipe keeps."""
    config, data = context.config, context.data
    validation = data.ids(data.val)
    shell = SegmenterShell(
        parts.network,
        parts.recipe,
        seed=config.seed,
        loss=parts.loss,
        truth=(lambda index: data.truth(validation[index])) if data.has_masks(data.val) else None,
        num_labels=len(data.classes) + 1,
    )
    module = DataModule(
        context.cached_data(),
        augment=parts.recipe.augment,
        batch_size=parts.recipe.batch_size,
        workers=config.workers,
        seed=config.seed,
        masks=masks,
    )
    fit(shell, module, context.artifact, config.trainer, loggers=context.tracker.lightning_loggers)


def predict(
    network: SegmentationNetwork, inference: Inference, data: ImageSet, id: str, *, device: torch.device
) -> np.ndarray:
    """The labels ``(H, W)`` uint8 of an image of the set, of its tags alone where the test asks for that."""
    picture = data.image(id)
    return inference.labels(
        network,
        to_unit(to_tensor(picture)).to(device),
        picture=picture,
        allowed=data.class_ids(id) if inference.tags else None,
    )


@torch.inference_mode()
def evaluate(context: Context, parts: Parts) -> tuple[dict[str, Any], list[tuple[str, Any]]]:
    """Predict every validation image, keep the masks, and measure them where there is a truth."""
    config, data, artifact, names = context.config, context.data, context.artifact, label_names(context.data)
    device = device_of(config.trainer)
    network, inference = parts.network.eval().to(device), parts.inference
    confusion, own = ConfusionMatrix(len(names)), list[tuple[str, bool, BoundaryFScore, Any]]()
    for id in progress(distributed.share(data.ids(data.val)), "segmenter: evaluation", unit="img"):
        labels = predict(network, inference, data, id, device=device)
        artifact.write_mask(id, labels, folder=PREDICTIONS)
        truth, borders, value = data.mask(id), BoundaryFScore(len(names)), None
        if truth is not None:
            confusion.update(truth, labels)
            borders.update(truth, labels)
            value = jsonable(image_miou(truth, labels, len(names)))
        own.append((id, truth is not None, borders, value))
    confusion.counts = distributed.total(confusion.counts)
    boundary, per_image = BoundaryFScore(len(names)), {}
    for id, measured, borders, value in distributed.collect(own):  # sums of fractions depend on their order
        if measured:
            boundary.merge(borders)
            per_image[id] = value
    if not data.has_masks(data.val):
        return {"miou": None, "iou": {}, "images": len(data.ids(data.val))}, [("mIoU", "no masks to measure on")]
    if distributed.leader():
        write_json(artifact.directory / "per_image.json", per_image)
    metrics = {
        **summarize(confusion.matrix, names),
        "boundary_f": jsonable(boundary.mean),
        "boundary_f_per_class": {
            name: jsonable(value) for name, value in zip(names, boundary.per_class.tolist(), strict=True)
        },
        "images": len(per_image),
    }
    per_class = [(name, iou, metrics["boundary_f_per_class"][name]) for name, iou in metrics["iou"].items()]
    context.tracker.log_table("validation IoU", ["class", "iou", "boundary_f"], per_class)
    return metrics, [
        (f"mIoU on {data.val}", metrics["miou"]),
        ("pixel accuracy", metrics["pixel_accuracy"]),
        ("boundary F-score", metrics["boundary_f"]),
    ]
