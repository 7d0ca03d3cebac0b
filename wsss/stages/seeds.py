"""Stage 2: class activation maps of the training images, kept as scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import DataLoader

from wsss import distributed
from wsss.artifacts import Artifact, Seeds
from wsss.build import build as build_node
from wsss.cams import CamMethod, seed_scores
from wsss.cams.functional import resize_maps
from wsss.config import EvaluationConfig, SeedsConfig
from wsss.console import Bar, progress
from wsss.data import ImageSet, WholeImages
from wsss.data.loading import Batch, ImageGroups, cores, worker_count
from wsss.data.transforms import to_tensor
from wsss.metrics import ThresholdCurve, summarize
from wsss.metrics.confusion import jsonable
from wsss.models import Classifier
from wsss.models.folding import fold_batch_norm
from wsss.refine.threshold import percentile_scale, threshold
from wsss.stages.context import Context, Outcome, device_of, image_tags, label_names, pictures
from wsss.stages.report import PATCH_SIDE, PATCHES_SHOWN, prototype_rows
from wsss.training.fit import make_trainer
from wsss.training.shells import to_unit


@dataclass(frozen=True)
class Parts:
    """What the configuration of this stage builds."""

    network: Classifier
    method: CamMethod


def build(config: DictConfig, data: ImageSet) -> Parts:
    """Build the CAM method, and the classifier without weights: they come from the artifact."""
    network = build_node(config, "classifier", num_classes=len(data.classes), weights=None)
    method = build_node(config, "cam")
    method.check(network)
    return Parts(network, method)


def run(context: Context, parts: Parts) -> Outcome:
    """Compute the seeds that are not there yet, then measure all of them."""
    config, data, artifact = context.config, context.data, context.artifact
    ids = data.ids(data.train)
    work(context, parts)
    metrics, summary = evaluate(context)
    seeds_at = {"seeds": lambda id: _thresholded(artifact, id, config.evaluation), "truth": data.mask}
    context.tracker.log_images("seeds", pictures(data, ids, seeds_at))
    show_prototypes(context)
    return Outcome(metrics, summary, image_tags(data), {"method": parts.method.describe(parts.network)})


def show_prototypes(context: Context) -> None:
    """Hand the tracker the table of prototypes, where the method has learnt any.

    One that takes images also gets the patches nearest to each, for which many images are read.
    """
    with_patches, side = context.tracker.takes_images, PATCH_SIDE
    rows = prototype_rows(context.artifact, context.data, with_patches=with_patches)
    blank = [np.full((side, side, 3), 255, np.uint8)] * PATCHES_SHOWN
    columns = ["class", "kind", "probability", "cluster size", *["nearest patches"] * with_patches]
    cells = [
        (
            context.data.classes[row.class_id - 1],
            "context" if row.context else "object",
            view.probability,
            view.size,
            *([np.concatenate([*view.patches, *blank][:PATCHES_SHOWN], axis=1)] if with_patches else []),
        )
        for row in rows
        for view in row.views
    ]
    if cells:
        context.tracker.log_table("prototypes", columns, cells)


def share(context: Context, parts: Parts) -> int:
    """Compute the seeds of this run's shard; how many images are left to others."""
    work(context, parts)
    return sum(not context.artifact.has_seeds(id) for id in context.data.ids(context.data.train))


def work(context: Context, parts: Parts) -> None:
    """Compute the seeds of this run's shard that are not there yet, each process of the run its share of them."""
    config, data, artifact = context.config, context.data, context.artifact
    ids = data.ids(data.train)
    context.upstream["classifier"].read_weights(parts.network)
    network = parts.network
    if config.seeds.fold_batch_norm:
        network = fold_batch_norm(network, keep=parts.method.tapped(network))
    _fit_method(context, parts.method, network)

    # groups over all images, so that a resumed stage computes in the company in which it would have
    groups = context.part(_groups(data, ids, config.seeds.batch_size))
    left = distributed.lead(lambda: [group for group in groups if not all(artifact.has_seeds(ids[at]) for at in group)])
    own, images = distributed.share(left), sum(map(len, groups))
    if own:
        loader = DataLoader(
            ImageGroups(WholeImages(context.cached_data(), ids), own),
            batch_size=None,
            num_workers=worker_count(config.workers, most=cores() // distributed.local_world() - 2),
        )
        bar: Bar[Any]
        with progress(images, "seeds", unit="img", completed=images - sum(map(len, left))) as bar:
            shell = SeedShell(network, parts.method, artifact, ids, config.seeds, bar)
            # a precision of its own: maps of a network that was trained in half precision are still best in full
            trainer = make_trainer(
                config.trainer,
                loggers=[],
                callbacks=[],
                alone=True,  # nothing is exchanged, and shares differ in length
                inference_mode=False,
                precision=config.seeds.precision,
            )
            trainer.predict(shell, loader, return_predictions=False)
            distributed.barrier()
            bar.update(images)
    else:
        distributed.barrier()


class SeedShell(pl.LightningModule):
    """Computes and writes the seeds of a few images per step; Lightning brings device and precision.

    Args:
        network: the trained classifier.
        method: the CAM method.
        artifact: where seeds are written.
        ids: the images, in the order of the loader's data set.
        settings: views and stride.
        bar: advanced after each image.
    """

    def __init__(
        self,
        network: Classifier,
        method: CamMethod,
        artifact: Artifact,
        ids: Sequence[str],
        settings: SeedsConfig,
        bar: Bar[Any],
    ) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.method, self.artifact, self.ids = method, artifact, ids
        self.settings, self.bar = settings, bar

    def predict_step(self, batch: list[Batch]) -> list[str]:
        """Compute and write the seeds of a few images; returns their ids."""
        ids = [self.ids[int(item["index"])] for item in batch]
        images = [to_unit(item["image"]) for item in batch]
        class_ids = [[int(index) + 1 for index in item["tags"].nonzero()] for item in batch]
        try:
            scores = seed_scores(
                self.method,
                self.network,
                images,
                class_ids,
                scales=self.settings.scales,
                flip=self.settings.flip,
                stride=self.settings.stride,
            )
        except FloatingPointError as error:
            message, at = error.args
            raise FloatingPointError(
                f"image {ids[at]}: {message}. Is the classifier trained with a learning rate too high?"
            ) from None
        for id, image, classes, maps in zip(ids, images, class_ids, scores, strict=True):
            size = (image.shape[-2], image.shape[-1])
            self.artifact.write_seeds(id, Seeds(np.array(classes), maps.cpu().numpy(), size))
            self.bar.advance(distributed.world())
        return ids


def _groups(data: ImageSet, ids: Sequence[str], size: int) -> list[list[int]]:
    """Positions in ``ids`` by groups of at most ``size``, each of images of one size."""
    if size == 1:
        return [[at] for at in range(len(ids))]
    by_shape: dict[tuple[int, int], list[int]] = {}
    for at, id in enumerate(ids):
        by_shape.setdefault(data.image_size(id), []).append(at)
    return [found[i : i + size] for found in by_shape.values() for i in range(0, len(found), size)]


def _fit_method(context: Context, method: CamMethod, network: Classifier) -> None:
    """Let the method learn from the training images, once; a resumed stage takes back what was learnt."""

    def learn() -> None:
        if context.artifact.read_tensors("prototypes") is not None:
            return
        data, device = context.cached_data(), device_of(context.config.trainer)

        def images() -> Iterator[tuple[Tensor, Sequence[int]]]:
            for id in progress(data.ids(data.train), "seeds: learning", unit="img"):
                yield to_unit(to_tensor(data.image(id))).to(device), data.class_ids(id)

        state = method.fit(network.to(device), images())
        if state:
            context.artifact.write_tensors("prototypes", state)

    if context.config.shard.count > 1:
        with context.artifact.locked(part="prototypes"):  # whichever shard comes first learns for all
            learn()
    else:
        distributed.lead(learn)
    state = context.artifact.read_tensors("prototypes")
    if state:
        method.restore(state)


def full_size_scores(seeds: Seeds) -> Tensor:
    """The scores at the size of the image, ``(K, H, W)`` float32 in [0,1]."""
    return resize_maps(torch.from_numpy(seeds.scores), seeds.size)


def _measured_scores(seeds: Seeds, config: EvaluationConfig) -> np.ndarray:
    """The scores that thresholds are compared with, ``(K, H, W)``."""
    return percentile_scale(full_size_scores(seeds).numpy(), percentile=config.seed_percentile)


def _thresholded(artifact: Artifact, id: str, config: EvaluationConfig) -> Any:
    seeds = artifact.read_seeds(id)
    return threshold(_measured_scores(seeds, config), seeds.class_ids, background=config.seed_threshold)


def evaluate(context: Context) -> tuple[dict[str, Any], list[tuple[str, Any]]]:
    """Measure the seeds on disk against the true masks: at the fixed threshold, and along the curve.

    Masks are read here and nowhere else in this stage; nothing that is kept as a seed depends on them.
    """
    config, data = context.config.evaluation, context.data
    names, ids = label_names(data), data.ids(data.train)
    if not data.has_masks(data.train):
        return {"miou": None, "threshold": config.seed_threshold, "images": len(ids)}, [
            ("mIoU", "no masks to measure on")
        ]
    steps = config.curve_steps + 1
    thresholds = sorted({round(i / steps, 6) for i in range(1, steps)} | {config.seed_threshold})
    curve = ThresholdCurve(len(names), thresholds)
    for id in progress(distributed.share(ids), "seeds: evaluation", unit="img"):
        seeds = context.artifact.read_seeds(id)
        curve.update(data.truth(id), seeds.class_ids, _measured_scores(seeds, config))
    curve.counts = distributed.total(curve.counts)
    best, miou_best = curve.best()
    metrics = {
        **summarize(curve.confusion(config.seed_threshold), names),
        "threshold": config.seed_threshold,
        "threshold_best": best,
        "miou_best": jsonable(miou_best),
        "best": summarize(curve.confusion(best), names),
        "curve": [[at, jsonable(value)] for at, value in curve.curve()],
        "images": len(ids),
    }
    context.tracker.log_curve("threshold curve", metrics["curve"], "threshold", "mIoU")
    context.tracker.log_table("seeds IoU", ["class", "iou"], list(metrics["iou"].items()))
    summary = [
        (f"mIoU at {config.seed_threshold:.2f}", metrics["miou"]),
        (f"mIoU at {best:.2f}, the best (picked with masks)", miou_best),
        ("precision", metrics["precision"]),
        ("recall", metrics["recall"]),
    ]
    return metrics, summary
