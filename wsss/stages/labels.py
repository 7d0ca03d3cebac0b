"""Stage 3: seeds become pseudo-labels, image by image, in a pool of processes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image

from wsss.artifacts import Artifact, SuperpixelStore, write_json
from wsss.build import build as build_node
from wsss.cams.functional import resize_maps
from wsss.console import Bar, progress
from wsss.data import ImageSet
from wsss.data.images import read_image
from wsss.data.loading import worker_count
from wsss.errors import ConfigError, CorruptArtifact
from wsss.metrics import ConfusionMatrix, image_miou, summarize_pseudo_labels
from wsss.metrics.confusion import jsonable
from wsss.refine import Extras, Refiner, map_images
from wsss.stages.context import Context, Outcome, device_of, image_tags, label_names, pictures

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """What the configuration of this stage builds."""

    refiner: Refiner


def build(config: DictConfig, data: ImageSet) -> Parts:
    """Build the refiner."""
    return Parts(build_node(config, "refiner"))


def run(context: Context, parts: Parts) -> Outcome:
    """Refine the images that are not done yet, then measure all of them."""
    data, ids = context.data, context.data.ids(context.data.train)
    chosen = work(context, parts, ids)
    metrics, summary = evaluate(context)
    masks = {"labels": context.artifact.read_mask, "truth": data.mask}
    context.tracker.log_images("pseudo-labels", pictures(data, ids, masks))
    return Outcome(metrics | chosen, summary, image_tags(data), {"refiner": repr(parts.refiner)})


def share(context: Context, parts: Parts) -> int:
    """Refine the images of this run's shard; how many are left to others."""
    ids = context.data.ids(context.data.train)
    work(context, parts, context.part(ids))
    return sum(not context.artifact.has_mask(id) for id in ids)


def work(context: Context, parts: Parts, ids: Sequence[str]) -> dict[str, float]:
    """Refine those of ``ids`` that are not done yet; the threshold that was handed over, as part of the metrics."""
    data = context.data
    chosen = hand_over_threshold(context, parts.refiner)
    refine_all(
        context.artifact,
        parts.refiner,
        Source(context.upstream["seeds"], context.upstream.get("affinity"), white=data.white),
        {id: data.image_path(id) for id in ids},
        workers=context.config.workers,
        device=device_of(context.config.trainer),
    )
    return chosen


def hand_over_threshold(context: Context, refiner: Refiner) -> dict[str, float]:
    """Give the refiner the background of the threshold stage, where it waits for one; as part of the metrics."""
    if not refiner.needs_threshold:
        return {}
    chosen = context.upstream["threshold"].metrics["threshold"]
    refiner.choose(chosen)
    return {"threshold": chosen}


class Inputs(NamedTuple):
    """One image for a refiner.

    Attributes:
        image: and ``class_ids``, ``scores``, ``extras``: its arguments.
        size: ``(H, W)`` of the image as it is, which may be larger.
    """

    image: np.ndarray
    class_ids: np.ndarray
    scores: np.ndarray
    extras: Extras
    size: tuple[int, int]


@dataclass(frozen=True)
class Source:
    """Where the scores of an image, and what steps use beside them, are read from; ``white`` is that of the set."""

    seeds: Artifact
    affinity: Artifact | None = None
    white: int | None = None

    def read(self, id: str, path: Path, refiner: Refiner) -> Inputs:
        """What ``refiner`` takes, at its working size.

        Raises:
            DataError, CorruptArtifact: a file is missing, broken, or not of this image.
        """
        image, found = read_image(path, white=self.white), self.seeds.read_seeds(id)
        if image.shape[:2] != found.size:
            raise CorruptArtifact(
                f"{path} has {image.shape[0]} x {image.shape[1]} pixels, its seeds in {self.seeds.directory} are of "
                f"an image of {found.size[0]} x {found.size[1]}. Make the seeds again (generate_seeds.py force=true)"
            )
        size = refiner.working_size(found.size)
        image = shrunk(image, size)
        scores = resize_maps(torch.from_numpy(found.scores), size).numpy()
        extras = StoredExtras(id, SuperpixelStore(self.seeds.root), self.affinity)
        return Inputs(image, found.class_ids, scores, extras, found.size)


def shrunk(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """``(H, W, 3)`` uint8 at a smaller size, each pixel the mean of those it stands for; or as it is, at its own."""
    if image.shape[:2] == size:
        return image
    return np.array(Image.fromarray(image).resize(size[::-1], Image.Resampling.BOX))


@dataclass(frozen=True)
class StoredExtras(Extras):
    """Superpixels kept from before, and the boundaries of the affinity stage."""

    id: str
    store: SuperpixelStore
    affinity: Artifact | None

    def superpixels(self, image: np.ndarray, settings: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """As kept in the artifact store, or made and kept."""
        return self.store(image, settings, make)

    def boundaries(self) -> np.ndarray:
        """As the affinity stage left them."""
        return super().boundaries() if self.affinity is None else self.affinity.read_boundaries(self.id)


def refine_all(
    artifact: Artifact,
    refiner: Refiner,
    source: Source,
    paths: dict[str, Path],
    *,
    workers: int | None,
    device: torch.device,
) -> None:
    """Write the mask of every image that has none yet, in a pool of processes.

    A refiner that computes with torch uses the GPU where there is one; threads of this process then feed it.

    Args:
        artifact: where the masks go.
        refiner: makes them.
        source: what it reads.
        paths: image id -> its file.
        workers: processes; None as the cores allow.
        device: of the torch steps.
    """
    on_gpu = device.type == "cuda" and refiner.to(str(device))
    left = [id for id in paths if not artifact.has_mask(id)]
    count = min(worker_count(workers, most=16), len(left))  # each holds a torch of its own in memory
    items = ((id, (id, paths[id])) for id in left)
    reduced = 0
    bar: Bar[Any]
    with progress(len(paths), artifact.stage, unit="img", completed=len(paths) - len(left)) as bar:
        refine = partial(refine_image, refiner, source, artifact)
        for id, smaller in map_images(refine, items, workers=count, threads=on_gpu):
            if smaller and not reduced:
                log.info(
                    "%s is larger than refiner.max_side=%d: it and others like it are refined at that size, and their "
                    "labels brought back",
                    id, refiner.max_side,
                )  # fmt: skip
            reduced += smaller
            bar.advance()
    missing = [id for id in paths if not artifact.has_mask(id)]
    if missing:  # cannot be; if it were, the result would be incomplete without a word
        raise CorruptArtifact(f"{artifact.directory} has no mask of {missing[0]} although all images were refined")
    if reduced:
        log.info("%d of %d images were refined at a reduced size (refiner.max_side)", reduced, len(left))


def refine_image(refiner: Refiner, source: Source, labels: Artifact, item: tuple[str, Path]) -> bool:
    """Refine one image: read its seeds and pixels, write its mask. Whether it was refined at a reduced size."""
    id, path = item
    found = source.read(id, path, refiner)
    try:
        mask = refiner(found.image, found.class_ids, found.scores, found.extras)
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"the GPU has no memory left for {found.image.shape[0]} x {found.image.shape[1]} pixels ({error}). Let "
            f"fewer threads share it with workers=2, or set a smaller refiner.max_side"
        ) from error
    reduced = mask.shape != found.size
    if reduced:
        mask = np.asarray(Image.fromarray(mask).resize(found.size[::-1], Image.Resampling.NEAREST))
    labels.write_mask(id, mask)
    return reduced


def evaluate(context: Context) -> tuple[dict[str, Any], list[tuple[str, Any]]]:
    """Measure the pseudo-labels on disk against the true masks of the training split."""
    data, artifact, names = context.data, context.artifact, label_names(context.data)
    ids = data.ids(data.train)
    if not data.has_masks(data.train):
        return {"miou": None, "miou_ignored": None, "images": len(ids)}, [("mIoU", "no masks to measure on")]
    confusion, per_image = ConfusionMatrix(len(names)), {}
    for id in progress(ids, f"{artifact.stage}: evaluation", unit="img"):
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
