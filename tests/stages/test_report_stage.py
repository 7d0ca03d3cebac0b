from __future__ import annotations

import re
from pathlib import Path

import pytest
import tiny
from conftest import MakePipeline

from wsss.pipeline import Pipeline
from wsss.stages.report import HEADLINE, write_reports


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
    for stage, key, _ in HEADLINE:
        if key != "ceiling":
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
    for stage, key, label in HEADLINE:
        if key != "ceiling":
            line = next(line for line in printed.splitlines() if label in line)
            assert percent(reported.artifact(stage).metrics[key]) in line
    assert str(next((Path(reported.config.paths.artifacts) / "report").iterdir())) in printed


def test_the_path_of_the_page_is_whole_on_a_narrow_terminal(
    reported: Pipeline, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "80")
    write_reports(reported, headline=True)
    cells = [line.split("\N{BOX DRAWINGS LIGHT VERTICAL}")[2:3] for line in capsys.readouterr().out.splitlines()]
    path = "".join(cell.strip() for row in cells for cell in row)
    assert str(next((Path(reported.config.paths.artifacts) / "report").iterdir())) in path


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
