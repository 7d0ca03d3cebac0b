from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from conftest import MakePipeline

from wsss.cams.prototypes import Prototypes
from wsss.pipeline import Pipeline
from wsss.report.page import HEADLINE
from wsss.stages import report
from wsss.stages.report import crop_around, write_reports


@pytest.fixture
def reported(tiny_pipeline: MakePipeline, finished: Pipeline) -> Pipeline:
    """A finished pipeline in a store of its own, with its page."""
    pipeline = tiny_pipeline()
    tiny.adopt(pipeline, finished, *tiny.STAGES)
    write_reports(pipeline)
    return pipeline


def page(pipeline: Pipeline) -> str:
    name = f"{pipeline.experiment}-{pipeline.fingerprint('segmenter')}.html"
    return (Path(pipeline.config.paths.artifacts) / "report" / name).read_text(encoding="utf-8")


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def test_the_page_holds_the_headline_numbers(reported: Pipeline):
    html = page(reported)
    for stage, key, *_ in HEADLINE:
        if stage in tiny.STAGES and key != "ceiling":
            assert percent(reported.artifact(stage).metrics[key]) in html, (stage, key)
    for stage in tiny.STAGES:
        assert reported.fingerprint(stage) in html
    for name in tiny.CLASSES:
        assert name in html


def test_the_page_needs_no_other_file(reported: Pipeline):
    html = page(reported)
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", html)
    assert not re.findall(r"url\((?!['\"]?data:|#)", html)


def test_the_page_shows_images_of_both_splits(reported: Pipeline):
    html = page(reported)
    for ids in (tiny.TRAIN, tiny.VAL):
        assert sum(id in html for id in ids) >= 3
    assert tiny.UNTAGGED not in html  # an image without objects shows nothing


def test_the_headline_table(reported: Pipeline, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")
    write_reports(reported, headline=True)
    printed = capsys.readouterr().out
    for stage, key, label, _ in HEADLINE:
        if stage in tiny.STAGES and key != "ceiling":
            line = next(line for line in printed.splitlines() if label in line)
            assert percent(reported.artifact(stage).metrics[key]) in line
    assert str(next((Path(reported.config.paths.artifacts) / "report").glob("*-*.html"))) in printed


def test_the_path_of_the_page_is_whole_on_a_narrow_terminal(
    reported: Pipeline, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "80")
    write_reports(reported, headline=True)
    printed = capsys.readouterr().out.splitlines()
    assert f"report: {next((Path(reported.config.paths.artifacts) / 'report').glob('*-*.html'))}" in printed
    assert f"labels of the training images: {reported.artifact('labels').directory / 'masks'}" in printed
    (command,) = (line for line in printed if "-m wsss.predict" in line)
    assert str(reported.artifact("segmenter").directory) in command


def test_the_ceiling_appears_on_the_page_of_the_weak_run(reported: Pipeline, tiny_pipeline: MakePipeline):
    before = page(reported)
    full = tiny_pipeline("labels=ground_truth")
    full.make("segmenter")
    write_reports(full)
    miou, weak = full.artifact("segmenter").metrics["miou"], reported.artifact("segmenter").metrics["miou"]
    after = page(reported)
    assert after.count(percent(miou)) > before.count(percent(miou))
    assert f"{100 * weak / miou:.0f} % of what it reaches with true masks" in after
    assert "of what it reaches with true masks" not in before
    assert percent(miou) in page(full)


def test_a_set_without_masks_has_a_page_too(tiny_pipeline: MakePipeline, own_set: Path):
    for path in (own_set / "SegmentationClass").iterdir():
        path.unlink()
    (own_set / "SegmentationClass").rmdir()
    pipeline = tiny_pipeline("data.tags=xml", "recipe.segmenter.epochs=1", "recipe.classifier.epochs=1", root=own_set)
    pipeline.make_all()
    write_reports(pipeline, headline=True)
    assert tiny.TRAIN[0] in page(pipeline)


# --- prototypes -------------------------------------------------------------------------------------------------------


def learnt() -> Prototypes:
    """Class 1 has three prototypes and a dropped cluster, its context one; class 2 has its weights."""
    images = torch.full((6, 5), -1)
    images[:5, 0] = torch.arange(5)
    images[0] = 6
    return Prototypes(
        centres=torch.rand(6, 16),
        class_ids=torch.tensor([1, 1, 1, 1, 1, 2]),
        context=torch.tensor([False, False, False, False, True, False]),
        probabilities=torch.tensor([0.99, 0.98, 0.1, 0.97, 0.02, 0.6]),
        sizes=torch.tensor([40, 30, 20, 10, 50, 0]),
        kept=torch.tensor([True, True, False, True, True, True]),
        patch_images=images,
        patch_cells=torch.tensor([2, 3, 6, 8]).expand(6, 5, 4).contiguous(),
        patch_similarities=torch.rand(6, 5),
    )


def test_the_page_shows_prototypes(reported: Pipeline, monkeypatch: pytest.MonkeyPatch):
    assert "Prototypes" not in page(reported)
    reported.artifact("seeds").write_tensors("prototypes", learnt().to_tensors())
    write_reports(reported)
    html = page(reported)
    assert [html.count(f'alt="region {i} of {tiny.CLASSES[0]}"') for i in (1, 2, 3, 4)] == [4, 1, 1, 0]
    for text in ("3 of 4 groups", "1 of 1 groups", "99.0 %", "40 places", "the classifier's own weights"):
        assert text.replace("'", "&#39;") in html or text in html
    assert "not shown" not in html

    monkeypatch.setattr(report, "PROTOTYPES_SHOWN", 2)
    write_reports(reported)
    html = page(reported)
    assert "1 not shown" in html
    assert "97.0 %" not in html  # the smallest one is left out


def test_many_classes_share_the_page(reported: Pipeline, monkeypatch: pytest.MonkeyPatch):
    reported.artifact("seeds").write_tensors("prototypes", learnt().to_tensors())
    monkeypatch.setattr(report, "ALL_PROTOTYPES_SHOWN", 8)
    write_reports(reported)
    assert "1 not shown" in page(reported)


@pytest.mark.parametrize(
    ("cell", "top", "left", "side"),
    [((0, 0, 6, 10), 0, 0, 30), ((5, 9, 6, 10), 30, 70, 30), ((2, 4, 6, 10), 10, 30, 30), ((0, 1, 1, 2), 0, 40, 60)],
)
def test_a_region_lies_inside_its_image(cell: tuple[int, ...], top: int, left: int, side: int):
    """Three cells of ten pixels each way around the middle of the cell."""
    rows, columns = np.indices((60, 100))
    region = crop_around(np.stack([rows, columns, rows], axis=-1), cell)
    assert region.shape == (side, side, 3)
    assert region[0, 0, :2].tolist() == [top, left]


def test_a_round_of_self_training_is_on_the_page(
    tiny_pipeline: MakePipeline, finished: Pipeline, capsys: pytest.CaptureFixture[str]
):
    pipeline = tiny_pipeline("labels=predicted")
    tiny.adopt(pipeline.teacher, finished, *tiny.STAGES)
    pipeline.make("segmenter")
    write_reports(pipeline, headline=True)
    printed, html = capsys.readouterr().out, page(pipeline)
    assert "val mIoU before self-training" in printed
    assert "mIoU of the predicted labels" in printed
    for stage in ("teacher", "relabels"):
        assert pipeline.fingerprint(stage) in html
        assert percent(pipeline.artifact(stage).metrics["miou"]) in html
