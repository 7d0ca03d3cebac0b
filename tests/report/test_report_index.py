"""The index of a store: what stands in it, and that it stays whole whatever lies beside."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import Any

import pytest
import tiny
from conftest import MakePipeline
from html_page import Page
from made_store import A, B, C, D, put

from wsss.pipeline import Pipeline
from wsss.report.command import main
from wsss.report.experiments import read_experiments, with_ceilings
from wsss.report.index import group_by_data, render_index, write_index


def facts(html: str) -> dict[str, Any]:
    """What the page's script reads."""
    match = re.search(r'<script type="application/json" id="facts">(.*?)</script>', html, re.DOTALL)
    assert match
    return json.loads(match[1])


def put_experiment(root: Path, name: str, *, metric: float | None = 0.6, **options: Any) -> None:
    """A segmenter on labels on seeds; ``gamma`` is a setting of its seeds, ``masks`` says that it learnt from masks."""
    gamma, masks = options.pop("gamma", 1), options.pop("masks", False)
    config = {
        "seed": options.pop("seed", 0),
        "labels": "ground_truth" if masks else "refined",
        "recipe.segmenter": {"epochs": 2},
    }
    upstream = {}
    if not masks:
        cam = {"_target_": "wsss.cams.LayerCam", "gamma": gamma}
        put(root, "seeds", name, metric=0.4, config={"seed": config["seed"], "cam": cam}, **options)
        put(root, "labels", name, metric=0.5, upstream={"seeds": name}, **options)
        upstream = {"labels": name}
    put(root, "segmenter", name, metric=metric, config=config, upstream=upstream, **options)


def test_the_numbers_of_all_steps_and_what_differs(tmp_path: Path):
    put_experiment(tmp_path, A, gamma=1, metric=0.61)
    put_experiment(tmp_path, B, gamma=2, metric=0.62, experiment="second")
    html = render_index(tmp_path)
    page = Page(html)
    for text in ("61.0", "62.0", "40.0", "50.0", "first", "second", A, B):
        assert text in page.text
    assert "gamma 2" in page.text
    assert "LayerCam" not in page.text  # both have it
    assert "epochs" not in page.text
    told = facts(html)["experiments"]
    assert dict(map(tuple, told[B]["numbers"])) == {
        "seed mIoU, fixed threshold": 0.4,
        "pseudo-label mIoU": 0.5,
        "final val mIoU": 0.62,
    }
    assert ["cam.gamma", "2", "cam"] in told[B]["settings"]
    assert page.count("tr") == 3


def test_the_same_settings_are_no_difference_and_seeds_have_a_column(tmp_path: Path):
    put_experiment(tmp_path, A, seed=0)
    put_experiment(tmp_path, B, seed=1)
    (group,) = group_by_data(read_experiments(tmp_path))
    assert group.settings == [[], []]
    assert Page(render_index(tmp_path)).text.count("seed") >= 1


def test_other_images_are_another_table(tmp_path: Path):
    put_experiment(tmp_path, A)
    put_experiment(tmp_path, B, data="photographs")
    html = render_index(tmp_path)
    assert Page(html).count("table", **{"class": "sortable"}) == 2
    assert {one["group"] for one in facts(html)["experiments"].values()} == {0, 1}


def test_a_ceiling_that_came_later_is_shown(tmp_path: Path):
    put_experiment(tmp_path, A, metric=0.6)
    put_experiment(tmp_path, B, metric=0.8, masks=True)
    put_experiment(tmp_path, C, metric=0.9, masks=True, seed=1)  # no ceiling of a run with another seed
    by_name = {one.fingerprint: one for one in read_experiments(tmp_path)}
    assert by_name[A].value("segmenter", "ceiling") == 0.8
    assert by_name[A].ratio() == pytest.approx(0.75)
    assert by_name[B].value("segmenter", "ceiling") is None
    assert with_ceilings([by_name[B]]) == [by_name[B]]
    text = Page(render_index(tmp_path)).text
    assert "true masks" in text
    assert "75" in text


def test_settings_of_a_teacher_are_not_those_of_its_pupil(tmp_path: Path):
    put_experiment(tmp_path, A)
    put(tmp_path, "relabels", B, upstream={"teacher": A})
    put(tmp_path, "segmenter", B, upstream={"relabels": B}, config={"seed": 0, "labels": "predicted"})
    pupil = next(one for one in read_experiments(tmp_path) if one.fingerprint == B)
    assert set(pupil.chain) == {"segmenter", "relabels", "teacher", "labels", "seeds"}
    assert pupil.settings["labels"] == "predicted"
    assert pupil.settings["recipe.segmenter.epochs"] == 2


def test_pages_are_linked_by_fingerprint_and_those_without_artifacts_are_named(tmp_path: Path):
    put_experiment(tmp_path, A)
    put_experiment(tmp_path, B, experiment="pruned #1")
    report = tmp_path / "report"
    (report / "pairs").mkdir(parents=True)
    for name in (f"first-{A}.html", f"again-{A}.html", f"gone-{C}.html", "notes.html", f"odd name-{B}.html"):
        (report / name).touch()
    (report / "pairs" / f"{A}-{B}.html").touch()
    (report / "pairs" / "own.html").touch()
    (tmp_path / "compare" / "my study" / "seeds").mkdir(parents=True)
    (tmp_path / "compare" / "my study" / "seeds" / "table.html").touch()
    links = {found["href"] for tag, found in Page(render_index(tmp_path)).seen if tag == "a"}
    assert links == {
        f"first-{A}.html",
        f"again-{A}.html",
        f"gone-{C}.html",
        f"odd%20name-{B}.html",
        f"pairs/{A}-{B}.html",
        "../compare/my%20study/seeds/table.html",
        None,
    } - {None}
    assert facts(render_index(tmp_path))["pairs"] == {f"{A}-{B}": f"pairs/{A}-{B}.html"}


def test_what_is_unfinished_set_aside_or_broken_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    put_experiment(tmp_path, A)
    put(tmp_path, "segmenter", B, finished=False)
    put(tmp_path, "segmenter", f"{C}.old")
    put(tmp_path, "segmenter", D)
    (tmp_path / "segmenter" / D / "manifest.json").write_text("{")
    assert [one.fingerprint for one in read_experiments(tmp_path)] == [A]
    assert f"{D}/manifest.json cannot be read" in caplog.text


def test_names_cannot_become_markup(tmp_path: Path):
    put_experiment(tmp_path, A, experiment="</script><b>x", data="<i>")
    html = render_index(tmp_path)
    assert "</script><b>" not in html
    assert "<i>" not in html
    assert facts(html)["experiments"][A]["name"] == "</script><b>x"
    Page(html)


def test_numbers_that_were_not_measured(tmp_path: Path):
    put_experiment(tmp_path, A, metric=None)
    assert "final val mIoU" not in Page(render_index(tmp_path)).text


def test_an_empty_store_says_what_to_do(tmp_path: Path):
    (tmp_path / "classifier").mkdir()
    assert "python -m wsss +experiment=demo" in Page(render_index(tmp_path)).text


def test_nothing_is_loaded_from_outside(tmp_path: Path):
    put_experiment(tmp_path, A)
    put_experiment(tmp_path, B)
    html = render_index(tmp_path)
    assert not re.findall(r"""src=["']""", html)
    assert not re.findall(r"https?://", html)


def test_processes_that_write_it_together_leave_one_that_knows_all(tmp_path: Path):
    """Each finishes an experiment and writes: whoever is last has seen both."""

    def finish(name: str) -> None:
        put_experiment(tmp_path, name)
        write_index(tmp_path)

    threads = [threading.Thread(target=finish, args=(name,)) for name in (A, B, C, D)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(facts((tmp_path / "report" / "index.html").read_text())["experiments"]) == {A, B, C, D}


def test_the_command_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    put_experiment(tmp_path, A)
    assert main(["--store", str(tmp_path)]) == 0
    assert A in (tmp_path / "report" / "index.html").read_text()
    assert main(["--store", str(tmp_path / "nowhere")]) == 2
    assert "Name the artifact store with --store" in capsys.readouterr().out


@pytest.mark.slow
def test_every_script_that_ends_a_pipeline_adds_its_line(tiny_set: Path, tmp_path: Path):
    code, output = tiny.call("train_seg.py", *tiny.command(tiny_set, tmp_path, "upstream=build"))
    assert code == 0, output
    report = tmp_path / "artifacts" / "report"
    html = (report / "index.html").read_text()
    (one,) = facts(html)["experiments"]
    (link,) = (found["href"] for tag, found in Page(html).seen if tag == "a")
    assert one in link
    assert (report / link).is_file()


def test_a_real_store(finished: Pipeline, tiny_pipeline: MakePipeline):
    pipeline = tiny_pipeline()
    tiny.adopt(pipeline, finished, *tiny.STAGES)
    (one,) = read_experiments(Path(pipeline.config.paths.artifacts))
    assert set(one.chain) == set(pipeline.order("segmenter"))
    assert one.classes == tuple(pipeline.data.classes)
    assert one.value("seeds", "miou") == pipeline.artifact("seeds").metrics["miou"]
    assert one.settings["cam._target_"] == pipeline.config.cam._target_
