"""One experiment as one self-contained HTML page: headline numbers, curve, classes, pictures, configuration.

The page is made of plain data that the caller has gathered. Nothing is read but the page's template, which ships with
the package, and nothing in the page points outside of it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from wsss import viz
from wsss.artifacts import write_text
from wsss.pages import duration, number, percent, plain, template
from wsss.palette import voc_palette
from wsss.report import pictures
from wsss.report.chart import curve_chart
from wsss.report.pictures import Classes, fit, has_ignored, overlay_strongest, shrink, tile

BACKGROUND_NAME = "background"
MetricsByStage = Mapping[str, Mapping[str, Any]]
Fact = tuple[str, str | None]


@dataclass(frozen=True, slots=True)
class StageSummary:
    """What one stage did.

    Attributes:
        name: "classifier", "seeds", "labels" or "segmenter".
        fingerprint: of its artifact; empty if it has none.
        path: of its artifact.
        seconds: wall time of the run that made it.
        reused: it was finished before this experiment ran.
        supervision: what it learned from or was tuned with, such as "image tags".
        metrics: its ``metrics.json``; empty if it measured nothing.
        config_yaml: the configuration it read.
        facts: what else its manifest records, such as versions and hardware.
    """

    name: str
    fingerprint: str = ""
    path: str = ""
    seconds: float | None = None
    reused: bool = False
    supervision: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    config_yaml: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GalleryRow:
    """One image with what the stages made of it. Masks hold 0 background, 1..C classes, 255 ignored.

    Attributes:
        id: name of the image.
        tags: names of the classes its tags list.
        image: ``(H, W, 3)`` uint8, RGB.
        note: why it was chosen, such as "worst 1" or "typical".
        miou: of this image alone, in [0, 1].
        class_ids: class of each map of ``scores``, in 1..C.
        scores: ``(K, h, w)`` in [0, 1], of any resolution.
        labels: ``(H, W)`` uint8, the pseudo-label.
        prediction: ``(H, W)`` uint8, the segmenter's.
        truth: ``(H, W)`` uint8.
    """

    id: str
    tags: Sequence[str]
    image: np.ndarray
    note: str = ""
    miou: float | None = None
    class_ids: Sequence[int] = ()
    scores: np.ndarray | None = None
    labels: np.ndarray | None = None
    prediction: np.ndarray | None = None
    truth: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class PrototypeView:
    """One prototype and the image regions that are most like it.

    Attributes:
        probability: of the class, by the classifier.
        size: positions in its cluster; 0 where the classifier's own weights stand in.
        patches: ``(h, w, 3)`` uint8, RGB, about square, the most similar first; may be empty.
    """

    probability: float
    size: int
    patches: Sequence[np.ndarray] = ()


@dataclass(frozen=True, slots=True)
class PrototypeRow:
    """The prototypes of one class, or of its context.

    Attributes:
        class_id: in 1..C.
        context: those whose similarity is subtracted.
        clusters: how many clusters there were to choose from.
        kept: how many of them became prototypes.
        views: those shown, the largest clusters first; at most ``kept``.
    """

    class_id: int
    context: bool
    clusters: int
    kept: int
    views: Sequence[PrototypeView]


@dataclass(frozen=True, slots=True)
class ReportData:
    """Everything a page shows.

    Attributes:
        title: heading of the page.
        experiment: its name.
        created: when, as text.
        command: the command line that makes it again.
        classes: names of classes 1..C, background left out.
        stages: those that ran, in order; any of the four may be absent.
        training_rows: images the seeds and pseudo-labels were made for.
        validation_rows: images the segmenter was evaluated on.
        prototypes: what the seeds were made from, where their method learns prototypes; in the order of the classes.
        ceiling: mIoU of the same segmenter trained on true masks, if known.
        ceiling_iou: its IoU by class name.
        environment: facts about versions and hardware.
        palette: ``(256, 3)`` uint8 colours of the labels.
    """

    title: str
    experiment: str
    created: str
    command: str
    classes: Sequence[str]
    stages: Sequence[StageSummary]
    training_rows: Sequence[GalleryRow] = ()
    validation_rows: Sequence[GalleryRow] = ()
    prototypes: Sequence[PrototypeRow] = ()
    ceiling: float | None = None
    ceiling_iou: Mapping[str, float | None] | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)
    palette: np.ndarray = field(default_factory=voc_palette)

    @property
    def legend(self) -> Classes:
        """Names and colours of the classes."""
        return Classes(self.classes, self.palette)


def write_report(data: ReportData, path: str | os.PathLike[str]) -> Path:
    """Render a page and put it at ``path``, whole or not at all. Missing folders are made."""
    final = Path(path)
    write_text(final, render_report(data))
    return final


def render_report(data: ReportData) -> str:
    """The page as HTML. Pictures shrink step by step until it keeps to ``pictures.SIZE_LIMIT``."""
    context = _context(data)
    filled = template("report.html")

    def render(width: int, quality: int) -> str:
        galleries = _galleries(data, width=width, quality=quality)
        prototypes = _prototypes(data, side=width // 5, quality=quality)
        return filled.render(context, galleries=galleries, prototypes=prototypes)

    return pictures.fitting(render)


def _context(data: ReportData) -> dict[str, Any]:
    """Everything the template shows but the pictures."""
    metrics = _metrics_by_stage(data)
    seconds = [stage.seconds for stage in data.stages if stage.seconds is not None]
    return {
        "data": data,
        "cards": [_card(stage, data, metrics) for stage in data.stages if stage.name in STEPS],
        "summary": _summary(data, metrics),
        "mask_use": [(stage.name, stage.supervision) for stage in data.stages if _uses_masks(stage)],
        "chart": curve_chart(metrics["seeds"]),
        "table": _class_table(data, metrics),
        "areas": _area_table(metrics),
        "details": [_detail(stage) for stage in data.stages],
        "seconds": sum(seconds) if seconds else None,
        "environment": _flat(data.environment),
        "heat": pictures.HEAT,
    }


# Numbers ------------------------------------------------------------------------------------------------------------


def _metrics_by_stage(data: ReportData) -> MetricsByStage:
    """Metrics by stage; empty for those of ``STEPS`` that did not run."""
    empty: dict[str, Mapping[str, Any]] = {name: {} for name in STEPS}
    return empty | {stage.name: stage.metrics for stage in data.stages}


def _uses_masks(stage: StageSummary) -> bool:
    return re.search(r"\b(train|val) masks", stage.supervision) is not None


def _fully_supervised(stage: StageSummary) -> bool:
    return stage.name == "segmenter" and "train masks" in stage.supervision


def _ceiling(data: ReportData, metrics: MetricsByStage) -> float | None:
    """mIoU of the fully supervised segmenter, from the report's data or the segmenter's own metrics."""
    ceiling = number(data.ceiling)
    return number(metrics["segmenter"].get("ceiling")) if ceiling is None else ceiling


def _ratio(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole


# Headline -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Step:
    """How one stage is told to a newcomer: its headline number is ``metrics[key]``."""

    title: str
    unit: str
    key: str
    text: str


STEPS = {
    "classifier": _Step(
        "Classifier",
        "mAP",
        "map",
        "Sees whole images and their tags, never a mask, and learns to name what is in them. At 100 % it would rank "
        "every image that holds a class above all that do not.",
    ),
    "seeds": _Step(
        "Seeds",
        "mIoU",
        "miou",
        "Where the classifier looked: one heat map per tag, cut at a fixed threshold into a first rough mask. mIoU is "
        "its overlap with the true mask, averaged over classes.",
    ),
    "labels": _Step(
        "Pseudo-labels",
        "mIoU",
        "miou",
        "Seeds pulled to the edges in the image. They stand in for hand-drawn masks when the segmenter is trained. "
        "Same measure, same images as the seeds.",
    ),
    "teacher": _Step(
        "First segmenter",
        "val mIoU",
        "miou",
        "Trained on the pseudo-labels. It is used to label the training images once more.",
    ),
    "relabels": _Step(
        "Predicted labels",
        "mIoU",
        "miou",
        "What the first segmenter sees in the training images, of the classes that they are tagged with. The segmenter "
        "is trained on these. Same measure, same images as the pseudo-labels.",
    ),
    "segmenter": _Step(
        "Segmenter",
        "val mIoU",
        "miou",
        "The network one would use: trained on the labels before it, needs no tags, and is measured on validation "
        "images it has not seen. This is the result.",
    ),
}
HEADLINE = (
    ("classifier", "map", "classifier mAP", "mAP"),
    ("seeds", "miou", "seed mIoU, fixed threshold", "seeds"),
    ("seeds", "miou_best", "seed mIoU, best threshold (picked with masks)", "seeds, best"),
    ("labels", "miou", "pseudo-label mIoU", "labels"),
    ("teacher", "miou", "val mIoU before self-training", "first val"),
    ("relabels", "miou", "mIoU of the predicted labels", "relabels"),
    ("segmenter", "miou", "final val mIoU", "val"),
    ("segmenter", "ceiling", "fully supervised ceiling", "ceiling"),
)
"""Step, key of its metrics, what it is called, and the same in a word; in the order of the pipeline."""

SUPERVISED_TEXT = "The same network trained on true masks: the ceiling that weak supervision is compared with."


def _summary(data: ReportData, metrics: MetricsByStage) -> str:
    """The result in one sentence, or nothing where it was not measured."""
    miou = number(metrics["segmenter"].get("miou"))
    if miou is None:
        return ""
    if any(_fully_supervised(stage) for stage in data.stages):
        return f"Trained on true masks, the segmenter reaches {percent(miou)} % mIoU on validation images."
    source = "Trained from image tags" + (" and the masks named below" if any(map(_uses_masks, data.stages)) else "")
    reach = f"{source}, the segmenter reaches {percent(miou)} % mIoU on validation images"
    ratio = _ratio(miou, _ceiling(data, metrics))
    return f"{reach}." if ratio is None else f"{reach}: {percent(ratio, 0)} % of what it reaches with true masks."


def _card(stage: StageSummary, data: ReportData, metrics: MetricsByStage) -> dict[str, Any]:
    """One step of the funnel: a number, what it means, and what stands beside it."""
    step = STEPS[stage.name]
    supervised = _fully_supervised(stage)
    make = FACTS[stage.name]
    return {
        "step": step,
        "value": number(stage.metrics.get(step.key)),
        "text": SUPERVISED_TEXT if supervised else step.text,
        "facts": [(name, value) for name, value in make(data, metrics) if value is not None],
        "final": stage.name == "segmenter",
        "ceiling": _ceiling(data, metrics) if stage.name == "segmenter" else None,
    }


def _classifier_facts(data: ReportData, metrics: MetricsByStage) -> list[Fact]:
    return [("classes", str(len(data.classes)))]


def _seeds_facts(data: ReportData, metrics: MetricsByStage) -> list[Fact]:
    own = metrics["seeds"]
    threshold, best, best_at = (number(own.get(key)) for key in ("threshold", "miou_best", "threshold_best"))
    at = "" if best_at is None else f" at {best_at:.2f}"
    return [
        ("threshold, fixed", None if threshold is None else f"{threshold:.2f}"),
        ("best threshold", None if best is None else f"{percent(best)}{at}"),
    ]


def _labels_facts(data: ReportData, metrics: MetricsByStage) -> list[Fact]:
    threshold = number(metrics["labels"].get("threshold"))
    return [
        ("threshold, chosen without masks", None if threshold is None else f"{threshold:.2f}"),
        *_mask_facts(metrics["labels"], before=metrics["seeds"], title="over the seeds"),
    ]


def _relabels_facts(data: ReportData, metrics: MetricsByStage) -> list[Fact]:
    return _mask_facts(metrics["relabels"], before=metrics["labels"], title="over the pseudo-labels")


def _mask_facts(own: Mapping[str, Any], *, before: Mapping[str, Any], title: str) -> list[Fact]:
    miou, other = number(own.get("miou")), number(before.get("miou"))
    return [
        (title, None if miou is None or other is None else f"{100 * (miou - other):+.1f} points"),
        ("pixels left undecided", _known(own.get("ignored"), " %")),
        ("mIoU without those", _known(own.get("miou_ignored"))),
    ]


def _teacher_facts(data: ReportData, metrics: MetricsByStage) -> list[Fact]:
    return [("pixel accuracy", _known(metrics["teacher"].get("pixel_accuracy"), " %"))]


def _segmenter_facts(data: ReportData, metrics: MetricsByStage) -> list[Fact]:
    own, ceiling = metrics["segmenter"], _ceiling(data, metrics)
    ratio = _ratio(number(own.get("miou")), ceiling)
    return [
        ("with true masks", _known(ceiling)),
        ("weak / full", None if ratio is None else f"{percent(ratio, 0)} %"),
        ("pixel accuracy", _known(own.get("pixel_accuracy"), " %")),
    ]


FACTS = {
    "classifier": _classifier_facts,
    "seeds": _seeds_facts,
    "labels": _labels_facts,
    "teacher": _teacher_facts,
    "relabels": _relabels_facts,
    "segmenter": _segmenter_facts,
}


def _known(value: object, suffix: str = "") -> str | None:
    """A fraction in percent, or None."""
    return None if number(value) is None else percent(value) + suffix


# Tables -------------------------------------------------------------------------------------------------------------


MEASURES = (
    ("classifier", "ap", "map", "Tag AP"),
    ("seeds", "iou", "miou", "Seeds IoU"),
    ("labels", "iou", "miou", "Pseudo-label IoU"),
    ("relabels", "iou", "miou", "Predicted-label IoU"),
    ("segmenter", "iou", "miou", "Validation IoU"),
)
"""Step, numbers by class name, their mean, and title."""


def _class_table(data: ReportData, metrics: MetricsByStage) -> dict[str, Any] | None:
    """One line per class and one column per stage that was measured class by class."""
    candidates = [
        *((title, metrics[step].get(key), metrics[step].get(mean)) for step, key, mean, title in MEASURES),
        ("True-mask IoU", data.ceiling_iou, _ceiling(data, metrics)),
        ("Weak / full", *_weak_over_full(data, metrics)),
    ]
    columns = [(title, values, mean) for title, values, mean in candidates if values]
    if not columns:
        return None
    names = enumerate((BACKGROUND_NAME, *data.classes))
    rows = [
        {
            "name": name,
            "color": data.legend.color(index),
            "values": [number(values.get(name)) for _, values, _ in columns],
        }
        for index, name in names
    ]
    return {
        "titles": [title for title, _, _ in columns],
        "rows": rows,
        "means": [number(mean) for _, _, mean in columns],
    }


def _weak_over_full(data: ReportData, metrics: MetricsByStage) -> tuple[dict[str, float | None] | None, float | None]:
    """IoU on validation images over that of the same network trained on true masks: by class name, and of the mIoU."""
    own, full = metrics["segmenter"], data.ceiling_iou
    if full is None or not own.get("iou"):
        return None, None
    ratios = {name: _ratio(number(value), number(full.get(name))) for name, value in own["iou"].items()}
    return ratios, _ratio(number(own.get("miou")), _ceiling(data, metrics))


AREA_TEXTS = {
    "precision": ("precision", "share of what was marked that is right"),
    "recall": ("recall", "share of the objects that was marked"),
    "fp": ("spill (fp)", "marked but wrong: the mask flows into the surroundings, say rails under a train"),
    "fn": ("missed (fn)", "object left out: the mask covers only the telling part, say the head of a dog"),
}


def _area_table(metrics: MetricsByStage) -> dict[str, Any] | None:
    """Precision, recall and the two kinds of error of seeds and pseudo-labels, or None if none of them is known."""
    known = {name for name in STEPS for key in AREA_TEXTS if number(metrics[name].get(key)) is not None}
    stages = [name for name in ("seeds", "labels", "relabels") if name in known]
    if not stages:
        return None
    rows = [(*texts, [number(metrics[name].get(key)) for name in stages]) for key, texts in AREA_TEXTS.items()]
    return {"titles": [STEPS[name].title for name in stages], "rows": rows}


def _detail(stage: StageSummary) -> dict[str, Any]:
    """Everything known about a stage, as text."""
    facts = {
        "supervision": stage.supervision,
        "fingerprint": stage.fingerprint,
        "artifact": stage.path,
        "wall time": "" if stage.seconds is None else duration(stage.seconds),
    }
    metrics = [(key, plain(value)) for key, value in stage.metrics.items() if isinstance(value, int | float | str)]
    return {
        "title": STEPS[stage.name].title if stage.name in STEPS else stage.name,
        "stage": stage,
        "facts": [(name, value) for name, value in facts.items() if value] + _flat(stage.facts),
        "metrics": metrics,
    }


def _flat(facts: Mapping[str, Any], prefix: str = "") -> list[Fact]:
    """Nested facts as pairs of dotted name and text."""
    pairs: list[Fact] = []
    for name, value in facts.items():
        nested = isinstance(value, Mapping)
        pairs += _flat(value, f"{prefix}{name}.") if nested else [(f"{prefix}{name}", plain(value))]
    return pairs


# Pictures -----------------------------------------------------------------------------------------------------------

COLUMNS = ("image", "seeds", "pseudo-label", "prediction", "truth")


def _galleries(data: ReportData, *, width: int, quality: int) -> list[dict[str, Any]]:
    """The training and the validation images, as far as there are any."""
    rows = (("training", data.training_rows), ("validation", data.validation_rows))
    return [_gallery(data, name, rows, width=width, quality=quality) for name, rows in rows if rows]


def _gallery(data: ReportData, name: str, rows: Sequence[GalleryRow], *, width: int, quality: int) -> dict[str, Any]:
    """All rows of one gallery, each with the same columns; a column that no row can fill is left out."""
    drawn = [_draw(data, row, width) for row in rows]
    columns = [column for column in COLUMNS if any(column in own for own, _ in drawn)]
    return {
        "name": name,
        "columns": columns,
        "legend": data.legend.legend(mask for row in rows for mask in _masks(row)),
        "has_ignored": has_ignored(mask for row in rows for mask in _masks(row)),
        "has_scores": "seeds" in columns,
        "rows": [
            {
                "row": row,
                "tags": [data.legend.tag(tag) for tag in row.tags],
                "tiles": [tile(column, own.get(column), quality) for column in columns],
                "strip": [tile(title, image, quality) for title, image in strip],
            }
            for row, (own, strip) in zip(rows, drawn, strict=True)
        ],
    }


def _draw(data: ReportData, row: GalleryRow, width: int) -> tuple[dict[str, np.ndarray], list[tuple[str, np.ndarray]]]:
    """The pictures and the heat maps of a row; an array that cannot be drawn is reported with the name of its image."""
    try:
        return _pictures(data, row, width), _heat_strip(data, row, width)
    except ValueError as error:
        raise ValueError(f"cannot draw image {row.id!r}: {error}") from error


def _pictures(data: ReportData, row: GalleryRow, width: int) -> dict[str, np.ndarray]:
    """The pictures of one image by column, as far as it has them."""
    image = shrink(row.image, width)
    drawn = {"image": image}
    if row.scores is not None:
        drawn["seeds"] = overlay_strongest(image, row.scores)
    masks = {"pseudo-label": row.labels, "prediction": row.prediction, "truth": row.truth}
    return drawn | {column: data.legend.overlay(image, mask) for column, mask in masks.items() if mask is not None}


def _heat_strip(data: ReportData, row: GalleryRow, width: int) -> list[tuple[str, np.ndarray]]:
    """One heat map per class, where there is more than one class to tell apart."""
    if row.scores is None or len(row.scores) < 2:
        return []
    image = shrink(row.image, width)
    maps = zip(row.class_ids, row.scores, strict=True)
    return [(data.legend.name(index), viz.overlay_scores(image, fit(plane, image))) for index, plane in maps]


def _prototypes(data: ReportData, *, side: int, quality: int) -> list[dict[str, Any]]:
    """Class by class, the prototypes of the class and of its context, with their patches ``side`` pixels wide."""
    return [
        {
            "name": data.legend.name(class_id),
            "color": data.legend.color(class_id),
            "rows": [
                {
                    "row": row,
                    "views": [
                        {
                            "view": view,
                            "uris": [
                                viz.data_uri(viz.resize_to(patch, side, height=side), quality=quality)
                                for patch in view.patches
                            ],
                        }
                        for view in row.views
                    ],
                }
                for row in rows
            ],
        }
        for class_id, rows in groupby(data.prototypes, key=lambda row: row.class_id)
    ]


def _masks(row: GalleryRow) -> list[np.ndarray]:
    return [mask for mask in (row.labels, row.prediction, row.truth) if mask is not None]
