"""The page of one experiment: gathers what the stages left, renders it, and prints the headline table."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from omegaconf import OmegaConf

from wsss.artifacts import Artifact, read_json
from wsss.build import build
from wsss.cams.prototypes import Prototypes
from wsss.config import Labels
from wsss.console import console, table
from wsss.data import ImageSet
from wsss.inference import inference_of
from wsss.report import GalleryRow, PrototypeRow, PrototypeView, ReportData, StageSummary, write_report
from wsss.report.page import HEADLINE
from wsss.stages.context import device_of
from wsss.stages.segmenter import PREDICTIONS, predict
from wsss.viz import resize_to

if TYPE_CHECKING:
    from wsss.pipeline import Pipeline

log = logging.getLogger(__name__)

PROTOTYPES_SHOWN = 8
"""Prototypes of one class, and of its context, on the page."""

ALL_PROTOTYPES_SHOWN = 400
"""Prototypes on the page. Sets of many classes show fewer of each."""

PATCHES_SHOWN = 3
PATCH_SIDE = 64

PATCH_CELLS = 3
"""Side of a patch in cells of the feature grid: a feature sees more than its own cell."""


def write_reports(pipeline: Pipeline, *, headline: bool = False) -> None:
    """Write the page of this experiment, and print where it is.

    A run on true masks also renews the pages of its weakly supervised siblings, which now have a ceiling.

    Args:
        pipeline: with a finished segmenter.
        headline: also print the one table over all stages.
    """
    path = _write(pipeline)
    if pipeline.config.labels is Labels.ground_truth:
        for labels in (Labels.refined, Labels.predicted):
            weak = pipeline.with_labels(labels)
            if weak.artifact("segmenter").complete:
                _write(weak)
    if headline:
        _print_headline(pipeline, path)
    else:
        log.info("report: %s", path)


def _print_headline(pipeline: Pipeline, path: Path) -> None:
    metrics = {name: pipeline.artifact(name).metrics for name in pipeline.order("segmenter")}
    metrics["segmenter"] |= pipeline.ceiling()
    rows: list[tuple[str, Any]] = [
        (label, metrics[stage][key]) for stage, key, label, _ in HEADLINE if key in metrics.get(stage, {})
    ]
    table(f"{pipeline.experiment} on {pipeline.data.name}", rows)
    masks = [str(pipeline.artifact(need).directory / "masks") for need in pipeline.needs("segmenter")]
    segmenter = pipeline.artifact("segmenter").directory
    predict = ["python", "-m", "wsss.predict", str(segmenter), "FOLDER", "-o", "predicted"]
    told = {
        "report": str(path),
        "labels of the training images": " ".join(masks),
        "masks of other images": shlex.join(predict),
    }
    for name, words in told.items():  # in no table, whose cells are folded: they are to be copied
        if words:
            console.print(f"{name}: {words}", markup=False, highlight=False, soft_wrap=True)


def _write(pipeline: Pipeline) -> Path:
    segmenter = pipeline.artifact("segmenter")
    path = Path(pipeline.config.paths.artifacts) / "report" / f"{pipeline.experiment}-{segmenter.fingerprint}.html"
    stages = [_summary(pipeline, name) for name in pipeline.order("segmenter")]
    full = pipeline.with_labels(Labels.ground_truth).artifact("segmenter")
    ceiling = full.metrics if pipeline.ceiling() else {}
    manifest = segmenter.manifest
    write_report(
        ReportData(
            title=f"{pipeline.experiment} on {pipeline.data.name}",
            experiment=pipeline.experiment,
            created=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            command=pipeline.command("segmenter").replace("train_seg.py", "-m wsss", 1),
            classes=pipeline.data.classes,
            stages=stages,
            training_rows=_training_rows(pipeline) if pipeline.needs("segmenter") else (),
            validation_rows=_validation_rows(pipeline),
            prototypes=prototype_rows(pipeline.artifact("seeds"), pipeline.data) if pipeline.needs("segmenter") else (),
            ceiling=ceiling.get("miou"),
            ceiling_iou=ceiling.get("iou"),
            environment={key: manifest[key] for key in ("git_commit", "versions", "hardware")},
        ),
        path,
    )
    return path


def _summary(pipeline: Pipeline, name: str) -> StageSummary:
    artifact = pipeline.artifact(name)
    manifest = artifact.manifest
    shown = ("version", "seed", "upstream", "data", "facts", "created", "git_commit")
    return StageSummary(
        name=name,
        fingerprint=artifact.fingerprint,
        path=str(artifact.directory),
        seconds=manifest["wall_seconds"],
        reused=name not in pipeline.made,
        supervision=manifest["supervision"],
        metrics=artifact.metrics,
        config_yaml=OmegaConf.to_yaml(OmegaConf.create(manifest["config"])),
        facts={key: manifest[key] for key in shown},
    )


def chosen_images(scores: dict[str, float | None], *, worst: int, typical: int) -> list[tuple[str, str]]:
    """The images with the lowest mIoU and those around the median, as (id, why) pairs.

    >>> chosen_images({"a": 0.9, "b": 0.1, "c": 0.5, "d": None}, worst=1, typical=1)
    [('b', 'worst 1'), ('c', 'typical 1')]
    """
    ranked = sorted((value, id) for id, value in scores.items() if value is not None)
    lowest = [id for _, id in ranked[:worst]]
    rest = [id for _, id in ranked[worst:]]
    start = max(0, len(ranked) // 2 - worst - typical // 2)
    middle = rest[start : start + typical]
    return [(id, f"worst {i}") for i, id in enumerate(lowest, 1)] + [
        (id, f"typical {i}") for i, id in enumerate(middle, 1)
    ]


def _choose(pipeline: Pipeline, artifact: Artifact, ids: Sequence[str]) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    """Images with objects to show from a split, and the mIoU of each image where there is a truth."""
    settings = pipeline.config.report
    tagged = [id for id in ids if pipeline.data.class_ids(id)] or list(ids)
    path = artifact.directory / "per_image.json"
    if not path.is_file():
        return [(id, "") for id in tagged[: settings.worst + settings.typical]], {}
    scores = read_json(path)
    return chosen_images({id: scores[id] for id in tagged}, worst=settings.worst, typical=settings.typical), scores


def _training_rows(pipeline: Pipeline) -> list[GalleryRow]:
    data, seeds, labels = pipeline.data, pipeline.artifact("seeds"), pipeline.artifact(pipeline.needs("segmenter")[0])
    chosen, scores = _choose(pipeline, labels, data.ids(data.train))
    predicted = _predict(pipeline, [id for id, _ in chosen])
    rows = []
    for id, note in chosen:
        found = seeds.read_seeds(id)
        row = _row(pipeline, id, note, scores.get(id), predicted[id])
        rows.append(replace(row, class_ids=found.class_ids.tolist(), scores=found.scores, labels=labels.read_mask(id)))
    return rows


def _validation_rows(pipeline: Pipeline) -> list[GalleryRow]:
    data, segmenter = pipeline.data, pipeline.artifact("segmenter")
    chosen, scores = _choose(pipeline, segmenter, data.ids(data.val))
    return [
        _row(pipeline, id, note, scores.get(id), segmenter.read_mask(id, folder=PREDICTIONS)) for id, note in chosen
    ]


def prototype_rows(seeds: Artifact, data: ImageSet, *, with_patches: bool = True) -> list[PrototypeRow]:
    """What the seeds were made from, where their method learnt prototypes; with regions of the training images."""
    tensors = seeds.read_tensors("prototypes")
    if tensors is None:
        return []
    found = Prototypes.from_tensors(tensors)
    kinds = [(id, context) for id in found.class_ids.unique().tolist() for context in (False, True)]
    groups = [((found.class_ids == id) & (found.context == context)).nonzero()[:, 0] for id, context in kinds]
    limit = max(1, min(PROTOTYPES_SHOWN, ALL_PROTOTYPES_SHOWN // len(kinds)))
    kept = [group[found.kept[group]] for group in groups]
    shown = [at for group in kept for at in group[:limit].tolist()]
    patches = _patches(data, found, shown) if with_patches else {at: [] for at in shown}
    return [
        PrototypeRow(
            class_id=class_id,
            context=context,
            clusters=len(group),
            kept=len(chosen),
            views=[
                PrototypeView(float(found.probabilities[at]), int(found.sizes[at]), patches[at])
                for at in chosen[:limit].tolist()
            ],
        )
        for (class_id, context), group, chosen in zip(kinds, groups, kept, strict=True)
        if len(group)
    ]


def _patches(data: ImageSet, found: Prototypes, shown: Sequence[int]) -> dict[int, list[np.ndarray]]:
    """For each shown prototype the regions of training images nearest to it. Every image is read once."""
    ids = data.ids(data.train)
    wanted = [
        (image, at, rank)
        for at in shown
        for rank, image in enumerate(found.patch_images[at, :PATCHES_SHOWN].tolist())
        if image >= 0
    ]
    patches: dict[int, list[np.ndarray]] = {at: [] for at in shown}
    crops = {}
    for image, places in groupby(sorted(wanted), key=itemgetter(0)):
        pixels = data.image(ids[image])
        for _, at, rank in places:
            region = crop_around(pixels, found.patch_cells[at, rank].tolist())
            crops[at, rank] = resize_to(region, PATCH_SIDE, height=PATCH_SIDE)
    for at, rank in sorted(crops):
        patches[at].append(crops[at, rank])
    return patches


def crop_around(image: np.ndarray, cell: Sequence[int]) -> np.ndarray:
    """A square of ``PATCH_CELLS`` cells around one cell of the feature grid, moved so that it lies inside the image.

    Args:
        image: ``(H, W, 3)``.
        cell: row and column of the cell, rows and columns of the grid.

    >>> crop_around(np.zeros((60, 100, 3)), (0, 4, 6, 10)).shape
    (30, 30, 3)
    """
    row, column, rows, columns = cell
    height, width = image.shape[:2]
    side = max(1, min(height, width, round(PATCH_CELLS * max(height / rows, width / columns))))
    top = min(max(0, round((row + 0.5) * height / rows - side / 2)), height - side)
    left = min(max(0, round((column + 0.5) * width / columns - side / 2)), width - side)
    return image[top : top + side, left : left + side]


def _row(pipeline: Pipeline, id: str, note: str, miou: float | None, prediction: np.ndarray) -> GalleryRow:
    data = pipeline.data
    return GalleryRow(
        id=id,
        tags=[data.classes[class_id - 1] for class_id in data.class_ids(id)],
        image=data.image(id),
        note=note,
        miou=miou,
        prediction=prediction,
        truth=data.mask(id),
    )


@torch.inference_mode()
def _predict(pipeline: Pipeline, ids: Sequence[str]) -> dict[str, np.ndarray]:
    """What the finished segmenter sees in a few training images."""
    config, data = pipeline.config, pipeline.data
    network = build(config, "segmenter", num_labels=len(data.classes) + 1, weights=None)
    pipeline.artifact("segmenter").read_weights(network)
    device = device_of(config.trainer)
    network.eval().to(device)
    inference = inference_of(config)
    return {id: predict(network, inference, data, id, device=device) for id in ids}
