"""Between seeds and labels, where a refiner asks for it: the background threshold, chosen without a mask."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.nn import functional as F

from wsss.build import build as build_node
from wsss.cams.functional import resize_maps
from wsss.console import progress
from wsss.data import ImageSet
from wsss.data.transforms import to_tensor
from wsss.errors import DataError
from wsss.metrics.confusion import jsonable
from wsss.models import Classifier
from wsss.models.structure import outputs_of
from wsss.refine.auto_threshold import choose_threshold
from wsss.refine.background import AutoBackground
from wsss.stages.context import Context, Outcome, device_of, image_tags
from wsss.training.shells import to_unit

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """What the configuration of this stage builds."""

    classifier: Classifier
    background: AutoBackground
    layer: str


def build(config: DictConfig, data: ImageSet) -> Parts:
    """Build the classifier without weights, and look its layer up."""
    classifier = build_node(config, "classifier", num_classes=len(data.classes), weights=None)
    background = build_node(config, "threshold")
    return Parts(classifier, background, classifier.layer(background.stage))


def run(context: Context, parts: Parts) -> Outcome:
    """Choose the threshold from the training images, their tags, their seeds and the classifier."""
    context.upstream["classifier"].read_weights(parts.classifier)
    try:
        choice = choose_threshold(samples(context, parts), num_classes=len(context.data.classes) + 1)
    except ValueError as error:
        raise DataError(f"threshold=auto: {error}. With threshold=constant none of this is needed") from error
    metrics: dict[str, Any] = {
        "threshold": choice.threshold,
        "criterion": [[at, jsonable(value)] for at, value in choice.curve],
        "images": choice.images,
    }
    summary: list[tuple[str, Any]] = [
        (f"background threshold, chosen on {choice.images} images", f"{choice.threshold:.2f}")
    ]
    share = next(value for at, value in choice.curve if at == choice.threshold)
    ends = (choice.curve[0][0], choice.curve[-1][0])
    if share <= 0 or choice.threshold in ends:
        log.warning(
            "the threshold %.2f explains %.0f %% of the labels' variance%s: look at the seeds before you trust it",
            choice.threshold, 100 * share, " and is the last candidate" if choice.threshold in ends else "",
        )  # fmt: skip
    measured = measure(context, choice.threshold)
    if measured:
        summary += [
            ("mIoU of the seeds there", measured["miou"]),
            (f"mIoU at {measured['threshold_best']:.2f}, the best (picked with masks)", measured["miou_best"]),
        ]
    context.tracker.log_curve("criterion of the threshold", metrics["criterion"], "threshold", "R2")
    return Outcome(metrics | measured, summary, image_tags(context.data), {"background": repr(parts.background)})


@torch.inference_mode()
def samples(context: Context, parts: Parts) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Features, class ids and scores of each training image that has a class; no more of them than asked for."""
    data, seeds, device = context.data, context.upstream["seeds"], device_of(context.config.trainer)
    network = parts.classifier.eval().to(device)
    tagged = [id for id in data.ids(data.train) if data.class_ids(id)]
    chosen = spread(tagged, parts.background.images)
    for id in progress(chosen, "threshold", unit="img"):
        found = seeds.read_seeds(id)
        with outputs_of({0: network.get_submodule(parts.layer)}) as outputs:
            network.features(at_side(to_unit(to_tensor(data.image(id))).to(device), parts.background.side)[None])
        features = outputs[0][0].float().cpu().numpy()
        grid = (features.shape[-2] * 4, features.shape[-1] * 4)  # finer than the features, which average over it
        yield features, found.class_ids, resize_maps(torch.from_numpy(found.scores), grid).numpy()


def at_side(image: Tensor, side: int) -> Tensor:
    """``(3, H, W)`` in [0,1] with its long side at ``side`` pixels, both sides rounded to multiples of 32.

    Small images are enlarged: the features' grid must be fine enough for objects to have places of their own.
    """
    factor = side / max(image.shape[-2:])
    size = [max(32, round(length * factor / 32) * 32) for length in image.shape[-2:]]
    return F.interpolate(image[None], size=size, mode="bilinear", antialias=True, align_corners=False)[0].clamp(0, 1)


def spread(ids: list[str], count: int | None) -> list[str]:
    """``count`` of the ids, evenly spread over them; all where there are no more."""
    if count is None or len(ids) <= count:
        return ids
    return [ids[i * len(ids) // count] for i in range(count)]


def measure(context: Context, threshold: float) -> dict[str, float]:
    """What the seeds' own measurement says of the choice; nothing where there are no masks."""
    metrics = context.upstream["seeds"].metrics
    if metrics.get("miou_best") is None:
        return {}
    at = {round(t, 6): miou for t, miou in metrics["curve"]}
    if round(threshold, 6) not in at:
        return {}
    return {
        "miou": at[round(threshold, 6)],
        "miou_best": metrics["miou_best"],
        "threshold_best": metrics["threshold_best"],
    }
