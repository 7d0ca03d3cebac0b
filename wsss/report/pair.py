"""Two experiments side by side: numbers, settings, classes, and the images on which they differ most."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wsss.artifacts import read_json, write_text
from wsss.build import build
from wsss.data import ImageSet
from wsss.errors import ConfigError, DataError
from wsss.metrics.paired import paired_difference, shared
from wsss.pages import number, percent, plain, points, template
from wsss.pipeline import Pipeline
from wsss.report import pictures
from wsss.report.chart import curve_chart
from wsss.report.experiments import Experiment, same_data
from wsss.report.index import FOLDER, PAIRS
from wsss.report.page import BACKGROUND_NAME, HEADLINE, MEASURES
from wsss.report.pictures import Classes, has_ignored, overlay_strongest, shrink, tile
from wsss.stages.segmenter import PREDICTIONS
from wsss.store.differences import changed_settings
from wsss.sweep import expand

FURTHER = (
    ("segmenter", "boundary_f", "boundary F-score on val"),
    ("segmenter", "pixel_accuracy", "pixel accuracy on val"),
    ("labels", "ignored", "pixels that the pseudo-labels leave undecided"),
)
"""Numbers below those of ``HEADLINE``."""

NEITHER_BETTER = frozenset({"ceiling", "ignored"})
"""Keys of numbers that are not better when they are higher."""

RECORDED = ("git_commit", "versions", "hardware")
"""What manifests record beside the configuration, and what can move numbers too."""

LABELS = ("relabels", "labels")
"""Steps whose masks a segmenter learns from, the first that is there."""

MOST_POINTS = 2000
"""Images in the plot; of more, evenly chosen ones."""

MOST_READ = 2000
"""Images whose masks are read to find where two experiments disagree, where no truth tells."""

PLOT = {"side": 300, "low": 40, "high": 290}


@dataclass(frozen=True)
class Scene:
    """One image with what both made of it.

    Attributes:
        id: name of the image.
        note: why it was chosen.
        tags: names of its classes.
        image: ``(H, W, 3)`` uint8, RGB.
        maps: ``(K, h, w)`` scores in [0, 1] by title.
        masks: ``(H, W)`` uint8 labels by title.
        values: mIoU of this image for both, where it is known.
    """

    id: str
    note: str
    tags: Sequence[str]
    image: np.ndarray
    maps: Mapping[str, np.ndarray] = field(default_factory=dict)
    masks: Mapping[str, np.ndarray] = field(default_factory=dict)
    values: tuple[float | None, float | None] = (None, None)


@dataclass(frozen=True)
class Gallery:
    """Images of one split.

    Attributes:
        title: above them.
        text: how they were chosen.
        scenes: at least one.
    """

    title: str
    text: str
    scenes: Sequence[Scene]


def check_pair(first: Experiment, second: Experiment) -> None:
    """Whether two can be compared.

    Raises:
        ConfigError: they are the same artifact, or of two stages.
    """
    if first.artifact.directory.resolve() == second.artifact.directory.resolve():
        raise ConfigError(f"{first.stage} {first.fingerprint} is named twice: name two to compare")
    if first.stage != second.stage:
        raise ConfigError(
            f"{first.fingerprint} is of {first.stage}, {second.fingerprint} of {second.stage}: name two of one stage"
        )


def write_pair(first: Experiment, second: Experiment, galleries: Sequence[Gallery], path: Path, command: str) -> Path:
    """Render the page and put it at ``path``, whole or not at all."""
    write_text(path, render_pair(first, second, galleries, command))
    return path


def usual_place(first: Experiment, second: Experiment) -> Path:
    """Where the index looks for the page of two: below the store of the first."""
    return first.artifact.root / FOLDER / PAIRS / f"{first.fingerprint}-{second.fingerprint}.html"


def render_pair(first: Experiment, second: Experiment, galleries: Sequence[Gallery], command: str) -> str:
    """The page as HTML. Pictures shrink step by step until it keeps to ``pictures.SIZE_LIMIT``.

    Args:
        first: called A on the page.
        second: called B; differences are B minus A.
        galleries: of ``gather``; may be empty.
        command: makes the page again.
    """
    check_pair(first, second)
    both, same = (first, second), shared_steps(first, second)
    comparable = same_data(both)
    context = {
        "both": both,
        "command": command,
        "same_data": comparable,
        "summary": _summary(first, second) if comparable else [],
        "numbers": _numbers(first, second, same),
        "settings": [
            (key.removesuffix("._target_"), a, b) for key, a, b in changed_settings(first.settings, second.settings)
        ],
        "recorded": _recorded(first, second),
        "shared": same,
        "chart": None if "seeds" in same else curve_chart(*(_of(one, "seeds") for one in both)),
        "plot": _plot(first, second) if comparable else None,
        "table": _class_table(first, second, same) if comparable else None,
        "heat": pictures.HEAT,
    }
    filled, classes = template("pair.html"), Classes(first.classes)

    def render(width: int, quality: int) -> str:
        drawn = [_draw(gallery, classes, width=width, quality=quality) for gallery in galleries]
        return filled.render(context, galleries=drawn)

    return pictures.fitting(render)


# Numbers ------------------------------------------------------------------------------------------------------------


def shared_steps(first: Experiment, second: Experiment) -> list[str]:
    """The steps that both have from the same artifact, in the order of the pipeline."""
    return [
        step
        for step in ("classifier", "seeds", "threshold", "affinity", "labels", "teacher", "relabels")
        if step in first.chain
        and step in second.chain
        and first.chain[step].directory.resolve() == second.chain[step].directory.resolve()
    ]


def per_image(one: Experiment, step: str) -> dict[str, float | None]:
    """mIoU of each image, as the step measured it; empty where it measured none.

    Raises:
        CorruptArtifact: the file is there and cannot be read.
    """
    path = one.chain[step].directory / "per_image.json" if step in one.chain else None
    return read_json(path) if path is not None and path.is_file() else {}


def _of(one: Experiment, step: str) -> Mapping[str, Any]:
    return one.metrics.get(step, {})


def _summary(first: Experiment, second: Experiment) -> list[str]:
    """The result in two sentences, as far as it was measured."""
    stage = first.stage
    where = "validation images" if stage == "segmenter" else "training images"
    a, b = first.value(stage, "miou"), second.value(stage, "miou")
    if a is None or b is None:
        return []
    change = points(b - a)
    than = "as much as A" if change == "0.0" else f"{change.lstrip('+-')} points {'more' if b > a else 'less'} than A"
    told = [f"On {where} B reaches {percent(b)} % mIoU, {than}{'' if change == '0.0' else f' ({percent(a)} %)'}."]
    found = paired_difference(per_image(first, stage), per_image(second, stage))
    if found is not None:
        told.append(
            f"Image by image, B is better on {found.better}, worse on {found.worse} and alike on {found.equal} of "
            f"{found.images}; the mean difference is {points(found.mean)} points, {points(found.low)} to "
            f"{points(found.high)} in 95 % of the draws when images are drawn anew. What another seed of the training "
            f"would change is not in that. (mIoU counts the pixels of all images together, class by class, so that "
            f"rare classes and large objects weigh more; the two can differ in sign.)"
        )
    return told


def _numbers(first: Experiment, second: Experiment, same: Sequence[str]) -> list[dict[str, Any]]:
    rows = [(step, key, name) for step, key, name, _ in HEADLINE] + list(FURTHER)
    found = []
    for step, key, name in rows:
        a, b = first.value(step, key), second.value(step, key)
        if a is not None or b is not None:
            found.append(_line(name, a, b, same=step in same, judged=key not in NEITHER_BETTER))
    ratios = first.ratio(), second.ratio()
    if any(ratio is not None for ratio in ratios):
        found.append(_line("weak / full", *ratios, same=False, judged=True))
    return found


def _line(name: str, a: float | None, b: float | None, *, same: bool, judged: bool) -> dict[str, Any]:
    return {"name": name, "values": (a, b), "difference": _minus(b, a), "same": same, "judged": judged}


def _minus(b: float | None, a: float | None) -> float | None:
    return None if a is None or b is None else b - a


def _recorded(first: Experiment, second: Experiment) -> list[tuple[str, str, str]]:
    """Code, libraries and machines of the last artifacts that differ."""
    found = []
    for key in RECORDED:
        a, b = first.manifest.get(key), second.manifest.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            names = dict.fromkeys([*a, *b])
            found += [(f"{key}.{name}", plain(a.get(name)), plain(b.get(name))) for name in names]
        else:
            found.append((key, plain(a), plain(b)))
    return [row for row in found if row[1] != row[2]]


def _class_table(first: Experiment, second: Experiment, same: Sequence[str]) -> dict[str, Any] | None:
    """One line per class; for each step that both measured, and that is not the same, both numbers and the change."""
    columns = []
    for step, key, mean, title in MEASURES:
        a, b = _of(first, step).get(key), _of(second, step).get(key)
        if a and b and step not in same:
            columns.append((title, a, b, first.value(step, mean), second.value(step, mean)))
    if not columns:
        return None
    colors = Classes(first.classes)
    return {
        "titles": [title for title, *_ in columns],
        "rows": [
            {
                "name": name,
                "color": colors.color(index),
                "cells": [_triple(number(a.get(name)), number(b.get(name))) for _, a, b, _, _ in columns],
            }
            for index, name in enumerate((BACKGROUND_NAME, *first.classes))
        ],
        "means": [_triple(a, b) for *_, a, b in columns],
    }


def _triple(a: float | None, b: float | None) -> tuple[float | None, float | None, float | None]:
    return a, b, _minus(b, a)


def _plot(first: Experiment, second: Experiment) -> dict[str, Any] | None:
    """mIoU of each image, A to the right and B up; None where images were not measured one by one."""
    found = shared(per_image(first, first.stage), per_image(second, second.stage))
    if len(found) < 2:
        return None
    every = -(-len(found) // MOST_POINTS)
    low, span = PLOT["low"], PLOT["high"] - PLOT["low"]
    return {
        **PLOT,
        "points": [
            {
                "x": round(low + span * a, 1),
                "y": round(PLOT["high"] - span * b, 1),
                "text": f"{id}: A {percent(a)}, B {percent(b)}",
            }
            for id, a, b in found[::every]
        ],
        "ticks": [
            (round(low + span * tick / 4, 1), round(PLOT["high"] - span * tick / 4, 1), tick * 25) for tick in range(5)
        ],
        "left_out": len(found) - len(found[::every]),
    }


# Images -------------------------------------------------------------------------------------------------------------


def read_data(one: Experiment) -> ImageSet:
    """The data set of an experiment, by the command that it records and the folder where it lay.

    Raises:
        ConfigError, DataError: the command no longer composes, or the images are gone or have changed.
    """
    words = shlex.split(str(one.manifest.get("command", "")))
    if len(words) < 2:
        raise ConfigError(f"{one.artifact.directory / 'manifest.json'} records no command")
    config = expand(words[2:]).jobs[0].config
    if "root" in config.data and one.data.get("root"):
        config.data.root = one.data["root"]
    data: ImageSet = build(config, "data")
    if Pipeline(config, data=data).data_digest() != one.data.get("sha256"):
        raise DataError(f"the images or tags in {data.root} are no longer those that {one.fingerprint} was made from")
    return data


def gather(first: Experiment, second: Experiment, data: ImageSet, *, each: int = 6) -> list[Gallery]:
    """The images on which two experiments differ most, those that the second does better before the others.

    Args:
        first: called A.
        second: called B.
        data: what both were made from.
        each: how many images of each kind.

    Raises:
        CorruptArtifact: a map or mask is missing or broken.
    """
    galleries = []
    steps = tuple(next((step for step in LABELS if step in one.chain), "") for one in (first, second))
    same = shared_steps(first, second)
    if all(steps) and first.chain[steps[0]] != second.chain[steps[1]]:
        galleries.append(_training_gallery(first, second, steps, data, each, seeds="seeds" not in same))
    elif first.stage == "seeds":
        galleries.append(_seeds_gallery(first, second, data, each))
    if first.stage == "segmenter":
        galleries.append(_validation_gallery(first, second, data, each))
    return [gallery for gallery in galleries if gallery.scenes]


def _validation_gallery(first: Experiment, second: Experiment, data: ImageSet, each: int) -> Gallery:
    def masks(id: str) -> tuple[np.ndarray, np.ndarray]:
        a, b = (one.artifact.read_mask(id, folder=PREDICTIONS) for one in (first, second))
        return a, b

    values = per_image(first, "segmenter"), per_image(second, "segmenter")
    chosen, text = _choose(data.ids(data.val), values, masks, each)
    scenes = []
    for id, note in chosen:
        a, b = masks(id)
        scenes.append(_scene(data, id, note, values, {}, {"A: prediction": a, "B: prediction": b}))
    return Gallery("Validation images", text, scenes)


def _training_gallery(
    first: Experiment, second: Experiment, steps: tuple[str, ...], data: ImageSet, each: int, *, seeds: bool
) -> Gallery:
    artifacts = first.chain[steps[0]], second.chain[steps[1]]

    def masks(id: str) -> tuple[np.ndarray, np.ndarray]:
        a, b = (artifact.read_mask(id) for artifact in artifacts)
        return a, b

    values = per_image(first, steps[0]), per_image(second, steps[1])
    chosen, text = _choose(data.ids(data.train), values, masks, each)
    scenes = []
    for id, note in chosen:
        a, b = masks(id)
        sources = [("A: seeds", first), ("B: seeds", second)] if seeds else [("seeds of both", first)]
        maps = {title: one.chain["seeds"].read_seeds(id).scores for title, one in sources if "seeds" in one.chain}
        scenes.append(_scene(data, id, note, values, maps, {"A: label": a, "B: label": b}))
    return Gallery("Training images: what the segmenter learnt from", text, scenes)


def _seeds_gallery(first: Experiment, second: Experiment, data: ImageSet, each: int) -> Gallery:
    """Seeds are measured as a set, not image by image: where the maps are farthest apart."""
    apart = {}
    for id in data.ids(data.train)[:MOST_READ]:
        a, b = (one.artifact.read_seeds(id).scores for one in (first, second))
        if a.shape == b.shape and a.size:
            apart[id] = float(np.abs(a - b).mean())
    chosen = [(id, f"scores differ by {apart[id]:.2f}") for id in _largest(apart, 2 * each)]
    scenes = [
        _scene(
            data,
            id,
            note,
            ({}, {}),
            {"A: seeds": first.artifact.read_seeds(id).scores, "B: seeds": second.artifact.read_seeds(id).scores},
            {},
        )
        for id, note in chosen
    ]
    return Gallery("Training images", "Where the scores are farthest apart, on average over the image.", scenes)


def _choose(
    ids: Sequence[str],
    values: tuple[Mapping[str, float | None], Mapping[str, float | None]],
    masks: Callable[[str], tuple[np.ndarray, np.ndarray]],
    each: int,
) -> tuple[list[tuple[str, str]], str]:
    """Ids with why they were chosen, and how. Without a truth, where the two disagree."""
    known = [(id, b - a) for id, a, b in shared(*values)]
    if known:
        better = _largest({id: change for id, change in known if change > 0}, each)
        worse = _largest({id: -change for id, change in known if change < 0}, each)
        changes = dict(known)
        notes = [(id, f"B better by {points(changes[id]).lstrip('+')}") for id in better]
        notes += [(id, f"A better by {points(-changes[id]).lstrip('+')}") for id in worse]
        return notes, "Where B gains most over A, then where it loses most, by the mIoU of the image."
    shares = {}
    for id in ids[:MOST_READ]:
        a, b = masks(id)
        shares[id] = float((a != b).mean()) if a.shape == b.shape else 1.0
    notes = [(id, f"{percent(shares[id])} % of the pixels differ") for id in _largest(shares, 2 * each) if shares[id]]
    return notes, "There are no true masks: where the two disagree on most pixels."


def _largest(values: Mapping[str, float], count: int) -> list[str]:
    return sorted(values, key=lambda id: (-values[id], id))[:count]


def _scene(
    data: ImageSet,
    id: str,
    note: str,
    values: tuple[Mapping[str, float | None], Mapping[str, float | None]],
    maps: Mapping[str, np.ndarray],
    masks: Mapping[str, np.ndarray],
) -> Scene:
    truth = data.mask(id)
    return Scene(
        id=id,
        note=note,
        tags=[data.classes[class_id - 1] for class_id in data.class_ids(id)],
        image=data.image(id),
        maps=maps,
        masks=dict(masks) | ({} if truth is None else {"truth": truth}),
        values=(values[0].get(id), values[1].get(id)),
    )


def _draw(gallery: Gallery, classes: Classes, *, width: int, quality: int) -> dict[str, Any]:
    every = [mask for scene in gallery.scenes for mask in scene.masks.values()]
    rows: list[dict[str, Any]] = []
    for scene in gallery.scenes:
        image = shrink(scene.image, width)
        drawn = {"image": image}
        drawn |= {title: overlay_strongest(image, scores) for title, scores in scene.maps.items()}
        drawn |= {title: classes.overlay(image, mask) for title, mask in scene.masks.items()}
        rows.append(
            {
                "row": scene,
                "tags": [classes.tag(name) for name in scene.tags],
                "tiles": [tile(title, picture, quality) for title, picture in drawn.items()],
                "strip": [],
            }
        )
    return {
        "gallery": gallery,
        "columns": max(len(row["tiles"]) for row in rows),
        "rows": rows,
        "legend": classes.legend(every),
        "has_ignored": has_ignored(every),
        "has_scores": any(scene.maps for scene in gallery.scenes),
    }


__all__ = [
    "Gallery",
    "Scene",
    "check_pair",
    "gather",
    "per_image",
    "read_data",
    "render_pair",
    "shared_steps",
    "usual_place",
    "write_pair",
]
