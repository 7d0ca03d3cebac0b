import re
from dataclasses import replace

import numpy as np
import pytest
from html_page import Page

from wsss.report import (
    GalleryRow,
    PrototypeRow,
    PrototypeView,
    ReportData,
    StageSummary,
    pictures,
    render_report,
    write_report,
)
from wsss.report import page as module
from wsss.report.chart import curve_chart

EVIL = "<b>x"
RNG = np.random.default_rng(0)


def row(name: str = "img_1", side: int = 24, **parts: object) -> GalleryRow:
    image = RNG.integers(0, 255, (side, side + 8, 3), dtype=np.uint8)
    return GalleryRow(name, ("cow", EVIL), image, **parts)  # type: ignore[arg-type]


def full_row() -> GalleryRow:
    mask = np.zeros((24, 32), np.uint8)
    mask[:, 8:16], mask[:, 20:] = 1, 255
    scores = RNG.random((2, 6, 8), dtype=np.float32)
    return row(note="worst 1", miou=0.5, class_ids=(1, 2), scores=scores, labels=mask, prediction=mask, truth=mask)


def stages() -> list[StageSummary]:
    iou = {"background": 0.8, "cow": 0.4, EVIL: None}
    curve = [[0.1, 0.2], [0.2, 0.35], [0.3, 0.4], [0.4, None]]
    seeds = {"miou": 0.35, "threshold": 0.2, "miou_best": 0.4, "threshold_best": 0.3, "curve": curve, "iou": iou}
    return [
        StageSummary("classifier", "0" * 12, supervision="image tags", metrics={"map": 0.861, "ap": {"cow": 0.9}}),
        StageSummary("seeds", "1" * 12, metrics=seeds | {"precision": 0.5, "fp": 0.0}, seconds=61),
        StageSummary("labels", "2" * 12, metrics={"miou": 0.45, "miou_ignored": 0.5, "iou": iou, "ignored": 0.1}),
        StageSummary("segmenter", "3" * 12, reused=True, metrics={"miou": 0.5, "iou": iou}, config_yaml="a: <i>\n"),
    ]


@pytest.fixture
def data() -> ReportData:
    return ReportData(
        title="A run",
        experiment="demo",
        created="2025-01-01",
        command="python -m wsss +experiment=demo 'data.root=<here>'",
        classes=("cow", EVIL),
        stages=stages(),
        training_rows=(full_row(),),
        validation_rows=(row("img_2", prediction=np.zeros((24, 32), np.uint8)),),
        ceiling=0.625,
        ceiling_iou={"background": 0.9, "cow": 0.6, EVIL: float("nan")},
        environment={"versions": {"numpy": "2"}},
    )


def test_headline_numbers(data):
    page = Page(render_report(data))
    for text in ("86.1 % mAP", "35.0 % mIoU", "45.0 % mIoU", "50.0 % val mIoU", "+10.0 points", "40.0 at 0.30", "80 %"):
        assert text in page.text
    assert "reaches 50.0 % mIoU on validation images: 80 % of what it reaches with true masks." in page.text
    assert "versions.numpy" in page.text


def test_weak_over_full_by_class(data):
    """0.8 of 0.9, 0.4 of 0.6, and nothing where one of the two is missing."""
    (table,) = (table for table in re.findall("<table.*?</table>", render_report(data), re.S) if "Weak / full" in table)
    rows = [re.findall(r">\s*([^<>\s][^<>]*?)\s*<", row) for row in table.split("<tr")]
    cells = {row[0]: row[-1] for row in rows if row}
    assert cells["background"] == "88.9"
    assert cells["cow"] == "66.7"
    assert "Weak / full" not in render_report(replace(data, ceiling_iou=None))


def test_a_round_of_self_training_has_its_own_steps(data):
    *first, last = data.stages
    teacher = StageSummary("teacher", "4" * 12, metrics={"miou": 0.47, "pixel_accuracy": 0.9})
    relabels = StageSummary("relabels", "5" * 12, metrics={"miou": 0.48, "iou": {"cow": 0.43}, "ignored": 0.0})
    page = Page(render_report(replace(data, stages=[*first, teacher, relabels, last])))
    for text in ("First segmenter", "47.0 % val mIoU", "Predicted labels", "48.0 % mIoU", "+3.0 points", "43.0"):
        assert text in page.text


def test_pictures(data):
    page = Page(render_report(data))
    # Five columns and two maps by class, then image and prediction, then the empty picture of the viewer.
    assert page.count("img") == 5 + 2 + 2 + 1
    assert page.count("button", **{"data-caption": "img_1 · truth"}) == 1


def test_a_picture_that_one_row_lacks_keeps_its_place(data):
    page = Page(render_report(replace(data, training_rows=(full_row(), row("img_3")))))
    assert page.text.count("not available") == 4


def test_nothing_is_loaded_from_outside(data):
    text = render_report(data)
    for tag, attributes in Page(text).seen:
        assert tag not in {"link", "iframe", "object", "base"}
        for name in ("src", "href", "srcset", "action"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert not re.search(r"https?://|url\(|@import", text)


def test_everything_from_the_user_is_escaped(data):
    evil = replace(data, title=EVIL, experiment=EVIL, created=EVIL, command=EVIL, environment={EVIL: EVIL})
    evil = replace(evil, training_rows=(replace(full_row(), id='"><b>x', note=EVIL),))
    text = render_report(evil)
    assert "<b>x" not in text
    assert "&lt;b&gt;x" in text
    assert "a: &lt;i&gt;" in text


def test_curve_marks_lie_on_the_curve(data):
    chart = curve_chart(data.stages[1].metrics)
    (curve,) = chart["curves"]
    points = curve["line"].split()
    assert len(points) == 3
    assert [mark["kind"] for mark in curve["marks"]] == ["fixed", "best"]
    assert [f"{mark['x']},{mark['y']}" for mark in curve["marks"]] == points[1:]


@pytest.mark.parametrize("curve", [None, [], [[0.1, 0.2]], [[0.1, None], [0.2, None]]])
def test_no_chart_without_two_points(curve):
    assert curve_chart({"curve": curve}) is None


def test_a_flat_curve_at_zero_can_be_drawn():
    assert curve_chart({"curve": [[0.1, 0.0], [0.2, 0.0]]}) is not None


def test_two_curves_share_the_axes():
    low, high = {"curve": [[0.1, 0.1], [0.5, 0.2]]}, {"curve": [[0.3, 0.1], [0.9, 0.4]]}
    first, second = curve_chart(low, high)["curves"]
    ends = [curve["line"].split() for curve in (first, second)]
    assert ends[0][0].split(",")[1] == ends[1][0].split(",")[1]  # 0.1 lies at one height
    assert float(ends[0][0].split(",")[0]) == 40.0  # the chart begins at the lowest threshold of both
    assert float(ends[1][1].split(",")[0]) == 546.0
    assert curve_chart(low, {})["curves"][1]["line"] == ""


def test_no_masks_at_all(data):
    bare = [replace(stage, metrics={}) for stage in data.stages]
    page = Page(render_report(replace(data, stages=bare, ceiling=None, ceiling_iou=None, validation_rows=())))
    assert page.text.count("Not measured.") == 4
    assert page.count("svg") == 0
    assert page.count("table") == 0


def test_numbers_that_are_none_or_nan(data):
    empty = dict.fromkeys(("map", "miou", "threshold", "miou_best", "precision", "fp", "ap", "iou", "ignored", "curve"))
    Page(render_report(replace(data, stages=[replace(stage, metrics=empty) for stage in data.stages])))
    nan = [replace(stage, metrics={"miou": float("nan"), "map": float("nan")}) for stage in data.stages]
    assert "nan" not in Page(render_report(replace(data, stages=nan))).text.split()


def test_fully_supervised_run_says_so(data):
    only = [replace(data.stages[3], supervision="train masks")]
    page = Page(render_report(replace(data, stages=only, ceiling=None, ceiling_iou=None)))
    assert "Trained on true masks, the segmenter reaches 50.0 % mIoU" in page.text
    assert "segmenter: train masks" in page.text
    assert "Pseudo-labels" not in page.text


def test_a_threshold_picked_with_masks_is_named(data):
    assert "Masks were used" not in Page(render_report(data)).text
    tuned = [replace(stage, supervision="train masks (threshold)") for stage in data.stages[2:3]]
    page = Page(render_report(replace(data, stages=[*data.stages[:2], *tuned, data.stages[3]])))
    assert "labels: train masks (threshold)" in page.text
    assert "Trained from image tags and the masks named below" in page.text


def test_no_stages_and_no_pictures(data):
    Page(render_report(replace(data, stages=(), training_rows=(), validation_rows=(), ceiling=None, environment={})))


def test_image_without_tags_has_silent_seeds(data):
    silent = replace(full_row(), tags=(), class_ids=(), scores=np.zeros((0, 6, 8), np.float32))
    Page(render_report(replace(data, training_rows=(silent,))))


def test_a_bad_array_is_reported_with_its_image(data):
    bad = replace(full_row(), scores=np.full((2, 6, 8), np.nan, np.float32))
    with pytest.raises(ValueError, match="cannot draw image 'img_1'"):
        render_report(replace(data, training_rows=(bad,)))


def prototypes(side: int = 20) -> list[PrototypeRow]:
    patches = list(RNG.integers(0, 255, (3, side, side, 3), dtype=np.uint8))
    large = PrototypeView(0.987, 1234, patches)
    return [
        PrototypeRow(1, context=False, clusters=12, kept=5, views=[large, PrototypeView(0.93, 7, patches[:1])]),
        PrototypeRow(1, context=True, clusters=4, kept=1, views=[PrototypeView(0.05, 90, patches)]),
        PrototypeRow(2, context=False, clusters=1, kept=1, views=[PrototypeView(0.5, 0)]),
    ]


def test_prototypes_are_shown_by_regions(data):
    page = Page(render_report(replace(data, prototypes=prototypes())))
    assert page.count("img", alt="region 1 of cow") == 3
    assert page.count("img", alt="region 3 of cow") == 2
    assert "like these · 5 of 12 groups, 3 not shown" in page.text
    assert "unlike these · 1 of 4 groups" in page.text
    assert "98.7 % · 1,234 places" in page.text
    assert "the classifier's own weights" in page.text
    assert page.text.count("places") == 3 + 1  # and once in the explanation
    assert "Prototypes" not in Page(render_report(data)).text


def test_patches_shrink_with_the_pictures(data, monkeypatch):
    many = replace(data, training_rows=(), validation_rows=(), prototypes=prototypes(160) * 10)
    full = render_report(many)
    monkeypatch.setattr(pictures, "SIZE_LIMIT", len(full) * 2 // 3)
    assert len(render_report(many)) <= len(full) * 2 // 3


def test_pictures_shrink_until_the_page_fits(data, monkeypatch):
    large = replace(data, training_rows=(), validation_rows=[row(str(index), 320) for index in range(6)])
    full = render_report(large)
    monkeypatch.setattr(pictures, "SIZE_LIMIT", len(full) // 2)
    assert len(render_report(large)) <= len(full) // 2
    assert len(full) <= 6_000_000


def test_write_is_atomic(data, tmp_path, monkeypatch):
    path = write_report(data, tmp_path / "report" / "index.html")
    before = path.read_text(encoding="utf-8")
    assert before.startswith("<!doctype html>")
    monkeypatch.setattr(module, "render_report", lambda data: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(data, path)
    assert [file.name for file in path.parent.iterdir()] == ["index.html"]
    assert path.read_text(encoding="utf-8") == before
