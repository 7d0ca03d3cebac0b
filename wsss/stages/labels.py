"""Stage 3: seeds become pseudo-labels, image by image, in a pool of processes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from wsss.artifacts import Artifact, write_json
from wsss.build import build as build_node
from wsss.console import Bar, progress
from wsss.data import VocLayout
from wsss.data.loading import worker_count
from wsss.data.voc import read_image
from wsss.metrics import ConfusionMatrix, image_miou, summarize_pseudo_labels
from wsss.metrics.confusion import jsonable
from wsss.refine import Refiner, map_images
from wsss.stages.context import Context, Outcome, image_tags, label_names, pictures
from wsss.stages.seeds import full_size_scores


@dataclass(frozen=True)
class Parts:
    """What the configuration of this stage builds."""

    refiner: Refiner


def build(config: DictConfig, data: VocLayout) -> Parts:
    """Build the refiner."""
    return Parts(build_node(config, "refiner"))


def run(context: Context, parts: Parts) -> Outcome:
    """Refine the images that are not done yet, then measure all of them."""
    data, artifact = context.data, context.artifact
    ids = data.ids(data.train)
    left = [id for id in ids if not artifact.has_mask(id)]
    workers = worker_count(context.config.workers, most=16)  # each holds a torch of its own in memory
    refine = partial(refine_image, parts.refiner, context.upstream["seeds"], artifact)
    items = ((id, (id, data.image_path(id))) for id in left)
    bar: Bar[Any]
    with progress(len(ids), "labels", unit="img", completed=len(ids) - len(left)) as bar:
        for _ in map_images(refine, items, workers=min(workers, len(left))):
            bar.advance()

    metrics, summary = evaluate(context)
    context.tracker.log_images("pseudo-labels", pictures(data, ids, {"labels": artifact.read_mask, "truth": data.mask}))
    return Outcome(metrics, summary, image_tags(data), {"refiner": repr(parts.refiner)})


def refine_image(refiner: Refiner, seeds: Artifact, labels: Artifact, item: tuple[str, Path]) -> None:
    """Refine one image: read its seeds and pixels, write its mask."""
    id, path = item
    found = seeds.read_seeds(id)
    labels.write_mask(id, refiner(read_image(path), found.class_ids, full_size_scores(found).numpy()))


def evaluate(context: Context) -> tuple[dict[str, Any], list[tuple[str, Any]]]:
    """Measure the pseudo-labels on disk against the true masks of the training split."""
    data, artifact, names = context.data, context.artifact, label_names(context.data)
    ids = data.ids(data.train)
    if not data.has_masks(data.train):
        return {"miou": None, "miou_ignored": None, "images": len(ids)}, [("mIoU", "no masks to measure on")]
    confusion, per_image = ConfusionMatrix(len(names)), {}
    for id in progress(ids, "labels: evaluation", unit="img"):
        truth, labels = data.truth(id), artifact.read_mask(id)
        confusion.update(truth, labels)
        per_image[id] = jsonable(image_miou(truth, labels, len(names)))
    write_json(artifact.directory / "per_image.json", per_image)
    metrics = {**summarize_pseudo_labels(confusion, names), "images": len(ids)}
    context.tracker.log_table("pseudo-label IoU", ["class", "iou"], list(metrics["iou"].items()))
    summary = [
        ("mIoU (ignored pixels count as background)", metrics["miou"]),
        ("mIoU (ignored pixels dropped)", metrics["miou_ignored"]),
        ("ignored pixels", metrics["ignored"]),
    ]
    return metrics, summary
