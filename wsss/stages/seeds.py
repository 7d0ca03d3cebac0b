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

from wsss.artifacts import Artifact, Seeds
from wsss.build import build as build_node
from wsss.cams import CamMethod, seed_scores
from wsss.cams.functional import resize_maps
from wsss.config import SeedsConfig
from wsss.console import Bar, progress
from wsss.data import VocLayout, WholeImages
from wsss.data.loading import Batch, cores, worker_count
from wsss.data.transforms import to_tensor
from wsss.metrics import ThresholdCurve, summarize
from wsss.metrics.confusion import jsonable
from wsss.models import Classifier
from wsss.refine.threshold import threshold
from wsss.stages.context import Context, Outcome, device_of, image_tags, label_names, pictures
from wsss.training.fit import make_trainer
from wsss.training.shells import to_unit


@dataclass(frozen=True)
class Parts:
    """What the configuration of this stage builds."""

    network: Classifier
    method: CamMethod


def build(config: DictConfig, data: VocLayout) -> Parts:
    """Build the CAM method, and the classifier without weights: they come from the artifact."""
    network = build_node(config, "classifier", num_classes=len(data.classes), weights=None)
    method = build_node(config, "cam")
    method.check(network)
    return Parts(network, method)


def run(context: Context, parts: Parts) -> Outcome:
    """Compute the seeds that are not there yet, then measure all of them."""
    config, data, artifact = context.config, context.data, context.artifact
    ids = data.ids(data.train)
    context.upstream["classifier"].read_weights(parts.network)
    _fit_method(context, parts)

    left = [id for id in ids if not artifact.has_seeds(id)]
    if left:
        loader = DataLoader(
            WholeImages(data, left), batch_size=None, num_workers=worker_count(config.workers, most=max(0, cores() - 2))
        )
        bar: Bar[Any]
        with progress(len(ids), "seeds", unit="img", completed=len(ids) - len(left)) as bar:
            shell = SeedShell(parts.network, parts.method, artifact, left, config.seeds, bar)
            # always in full precision: gradients of small activations vanish in half precision, and maps with them
            trainer = make_trainer(config.trainer, loggers=[], callbacks=[], inference_mode=False, precision="32-true")
            trainer.predict(shell, loader, return_predictions=False)

    metrics, summary = evaluate(context)
    fixed = config.evaluation.seed_threshold
    seeds_at = {"seeds": lambda id: _thresholded(artifact, id, fixed), "truth": data.mask}
    context.tracker.log_images("seeds", pictures(data, ids, seeds_at))
    return Outcome(metrics, summary, image_tags(data), {"method": parts.method.describe(parts.network)})


class SeedShell(pl.LightningModule):
    """Computes and writes the seeds of one image per step; Lightning brings device and precision.

    Args:
        network: the trained classifier.
        method: the CAM method.
        artifact: where seeds are written.
        ids: the images, in the loader's order.
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

    def predict_step(self, batch: Batch) -> str:
        """Compute and write the seeds of one image; returns its id."""
        id = self.ids[int(batch["index"])]
        image = to_unit(batch["image"])
        class_ids = [int(index) + 1 for index in batch["tags"].nonzero()]
        try:
            scores = seed_scores(
                self.method,
                self.network,
                image,
                class_ids,
                scales=self.settings.scales,
                flip=self.settings.flip,
                stride=self.settings.stride,
            )
        except FloatingPointError as error:
            raise FloatingPointError(
                f"image {id}: {error}. Is the classifier trained with a learning rate too high?"
            ) from None
        self.artifact.write_seeds(
            id, Seeds(np.array(class_ids), scores.cpu().numpy(), (image.shape[-2], image.shape[-1]))
        )
        self.bar.advance()
        return id


def _fit_method(context: Context, parts: Parts) -> None:
    """Let the method learn from the training images, once; a resumed stage takes back what was learnt."""
    state = context.artifact.read_tensors("prototypes")
    if state is None:
        data, device = context.data, device_of(context.config.trainer)

        def images() -> Iterator[tuple[Tensor, Sequence[int]]]:
            for id in data.ids(data.train):
                yield to_unit(to_tensor(data.image(id))).to(device), data.class_ids(id)

        state = parts.method.fit(parts.network.to(device), images())
        if state:
            context.artifact.write_tensors("prototypes", state)
    if state:
        parts.method.restore(state)


def full_size_scores(seeds: Seeds) -> Tensor:
    """The scores at the size of the image, ``(K, H, W)`` float32 in [0,1]."""
    return resize_maps(torch.from_numpy(seeds.scores), seeds.size)


def _thresholded(artifact: Artifact, id: str, background: float) -> Any:
    seeds = artifact.read_seeds(id)
    return threshold(full_size_scores(seeds).numpy(), seeds.class_ids, background=background)


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
    for id in progress(ids, "seeds: evaluation", unit="img"):
        seeds = context.artifact.read_seeds(id)
        curve.update(data.truth(id), seeds.class_ids, full_size_scores(seeds).numpy())
    best, miou_best = curve.best()
    metrics = {
        **summarize(curve.confusion(config.seed_threshold), names),
        "threshold": config.seed_threshold,
        "threshold_best": best,
        "miou_best": jsonable(miou_best),
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
