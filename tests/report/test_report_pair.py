"""Two experiments side by side."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from html_page import Page

from wsss.artifacts import Artifact, read_json, write_json
from wsss.errors import ConfigError, DataError
from wsss.pipeline import Pipeline
from wsss.report import pictures
from wsss.report.command import main
from wsss.report.experiments import Experiment, read_experiment
from wsss.report.pair import check_pair, gather, per_image, read_data, render_pair, shared_steps, usual_place

COMMAND = "python -m wsss.report a b"


@pytest.fixture(scope="module")
def two(finished: Pipeline, tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Pipeline, Pipeline]:
    """Two pipelines in one store, which differ in their refiner: they share the classifier and the seeds."""
    base = tmp_path_factory.mktemp("two")
    with tiny.contained():
        first = tiny.pipeline(tiny_set, base)
        tiny.adopt(first, finished, *tiny.STAGES)
        second = tiny.pipeline(tiny_set, base, "refiner=pamr", "upstream=build")
        second.make("segmenter")
    return first, second


def read(pipeline: Pipeline, stage: str = "segmenter") -> Experiment:
    return read_experiment(pipeline.artifact(stage))


@pytest.fixture
def both(two: tuple[Pipeline, Pipeline]) -> tuple[Experiment, Experiment]:
    return read(two[0]), read(two[1])


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    return tiny.runner(main, capsys)


def root(pipeline: Pipeline) -> Path:
    return Path(pipeline.config.paths.artifacts)


def test_the_numbers_of_both_and_their_difference(both: tuple[Experiment, Experiment]):
    page = Page(render_pair(*both, [], COMMAND))
    a, b = (one.metrics["labels"]["miou"] for one in both)
    assert a != b
    assert f"pseudo-label mIoU {100 * a:.1f} {100 * b:.1f} {100 * (b - a):+.1f}" in " ".join(page.text.split())
    assert "classifier mAP" in page.text
    assert shared_steps(*both) == ["classifier", "seeds"]
    assert "Both build on the same classifier, seeds." in page.text
    assert "Seeds IoU" not in page.text  # the same in both
    assert "Pseudo-label IoU" in page.text
    for name in tiny.CLASSES:
        assert name in page.text
    assert COMMAND in page.text


def test_what_is_set_in_both_is_no_difference(both: tuple[Experiment, Experiment]):
    text = Page(render_pair(*both, [], COMMAND)).text.partition("How to make this page again")[0]
    assert "refiner.smoothing" in text
    assert "cam.gamma" not in text
    assert "recipe.segmenter.epochs" not in text


def test_the_other_way_round_the_signs_change(both: tuple[Experiment, Experiment]):
    first, second = both
    there = Page(render_pair(first, second, [], COMMAND)).text
    back = Page(render_pair(second, first, [], COMMAND)).text
    change = 100 * (second.metrics["labels"]["miou"] - first.metrics["labels"]["miou"])
    assert f"{change:+.1f}" in there
    assert f"{-change:+.1f}" in back


def test_images_are_those_that_differ_most(both: tuple[Experiment, Experiment], tiny_set: Path):
    data = read_data(both[1])
    assert data.root == tiny_set
    training, *_ = gather(*both, data, each=1)
    values = per_image(both[0], "labels"), per_image(both[1], "labels")
    changes = {id: values[1][id] - values[0][id] for id in values[0] if None not in (values[0][id], values[1][id])}
    best, worst = max(changes, key=lambda id: changes[id]), min(changes, key=lambda id: changes[id])
    chosen = [scene.id for scene in training.scenes]
    assert chosen == ([best] if changes[best] > 0 else []) + ([worst] if changes[worst] < 0 else [])
    assert training.scenes[0].note == f"B better by {100 * changes[best]:.1f}"
    assert list(training.scenes[0].maps) == ["seeds of both"]
    assert list(training.scenes[0].masks) == ["A: label", "B: label", "truth"]
    np.testing.assert_array_equal(training.scenes[0].masks["B: label"], both[1].chain["labels"].read_mask(best))


def test_without_truth_images_are_those_on_which_they_disagree(two: tuple[Pipeline, Pipeline], tmp_path: Path):
    copied = []
    for pipeline in two:
        shutil.copytree(root(pipeline), tmp_path, dirs_exist_ok=True)
        artifact = replace(pipeline.artifact("segmenter"), root=tmp_path)
        (artifact.directory / "per_image.json").unlink(missing_ok=True)
        copied.append(read_experiment(artifact))
    masks = {id: copied[0].artifact.read_mask(id, folder="predictions") for id in tiny.VAL}
    for at, (id, mask) in enumerate(masks.items()):
        other = mask.copy()
        other[:at] = np.where(other[:at] == 0, 1, 0)  # one line more in each
        copied[1].artifact.write_mask(id, other, folder="predictions")
    gallery = gather(*copied, two[0].data, each=1)[-1]
    assert [scene.id for scene in gallery.scenes] == list(tiny.VAL)[:-3:-1]
    share = (len(tiny.VAL) - 1) / masks[tiny.VAL[-1]].shape[0]
    assert gallery.scenes[0].note == f"{100 * share:.1f} % of the pixels differ"
    assert list(gallery.scenes[0].masks) == ["A: prediction", "B: prediction", "truth"]


def test_labels_and_seeds_can_be_compared_before_there_is_a_segmenter(two: tuple[Pipeline, Pipeline]):
    labels = read(two[0], "labels"), read(two[1], "labels")
    (gallery,) = gather(*labels, two[0].data, each=2)
    assert gallery.scenes
    assert "On training images B reaches" in Page(render_pair(*labels, [gallery], COMMAND)).text


def test_maps_that_are_farthest_apart_come_first(two: tuple[Pipeline, Pipeline], tmp_path: Path):
    shutil.copytree(root(two[0]), tmp_path, dirs_exist_ok=True)
    one = read_experiment(replace(two[0].artifact("seeds"), root=tmp_path))
    other = Artifact(tmp_path, "seeds", "0" * 12)
    shutil.copytree(one.artifact.directory, other.directory)
    write_json(other.directory / "manifest.json", {**other.manifest, "fingerprint": other.fingerprint})
    tagged = [id for id in tiny.TRAIN if len(one.artifact.read_seeds(id).scores)]
    for id, factor in ((tagged[2], 0.0), (tagged[0], 0.5)):
        seeds = one.artifact.read_seeds(id)
        other.write_seeds(id, seeds._replace(scores=seeds.scores * factor))
    (gallery,) = gather(one, read_experiment(other), two[0].data, each=1)
    assert [scene.id for scene in gallery.scenes] == [tagged[2], tagged[0]]


def test_pictures_shrink_until_the_page_fits(two: tuple[Pipeline, Pipeline], monkeypatch: pytest.MonkeyPatch):
    both = read(two[0]), read(two[1])
    galleries = gather(*both, two[0].data, each=2)
    full = render_pair(*both, galleries, COMMAND)
    monkeypatch.setattr(pictures, "PICTURE_STEPS", ((48, 80), (8, 20)))
    monkeypatch.setattr(pictures, "SIZE_LIMIT", 1)
    assert len(render_pair(*both, galleries, COMMAND)) < len(full)
    page = Page(full)
    assert page.count("img") > 4
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", full)


def test_two_that_cannot_be_compared(two: tuple[Pipeline, Pipeline], both: tuple[Experiment, Experiment]):
    with pytest.raises(ConfigError, match="named twice"):
        check_pair(both[0], both[0])
    with pytest.raises(ConfigError, match=r"is of segmenter, .* of labels: name two of one stage"):
        check_pair(both[0], read(two[1], "labels"))


def test_other_images_are_told_and_give_no_difference(both: tuple[Experiment, Experiment]):
    first, second = both
    manifest = {**second.manifest, "data": {**second.data, "sha256": "0"}}
    page = Page(render_pair(first, replace(second, manifests={**second.manifests, "segmenter": manifest}), [], COMMAND))
    assert "different images, tags or classes: their numbers cannot be compared" in page.text
    assert "On validation images" not in page.text
    assert page.count("span", **{"class": "up"}) + page.count("span", **{"class": "down"}) == 0


def test_who_learnt_from_masks_is_named(both: tuple[Experiment, Experiment]):
    first, second = both
    manifest = {**second.manifest, "supervision": "train masks"}
    text = Page(
        render_pair(first, replace(second, manifests={**second.manifests, "segmenter": manifest}), [], COMMAND)
    ).text
    assert "They were not taught alike." in text


def test_images_that_have_changed_are_not_shown(two: tuple[Pipeline, Pipeline], tmp_path: Path, call):
    shutil.copytree(two[0].data.root, tmp_path / "set")
    shutil.copytree(root(two[0]), tmp_path / "artifacts")
    names = [pipeline.fingerprint("segmenter") for pipeline in two]
    for name in names:
        path = tmp_path / "artifacts" / "segmenter" / name / "manifest.json"
        manifest = json.loads(path.read_text())
        write_json(path, manifest | {"data": manifest["data"] | {"root": str(tmp_path / "set")}})
    image = next((tmp_path / "set").rglob(f"{tiny.TRAIN[0]}.jpg"))
    image.write_bytes(image.read_bytes() + b"0")
    one = read_experiment(Artifact(tmp_path / "artifacts", "segmenter", names[0]))
    with pytest.raises(DataError, match="no longer those"):
        read_data(one)
    code, output = call(*names, "--store", tmp_path / "artifacts")
    assert code == 0
    assert "no pictures: the images or tags in" in output
    assert (tmp_path / "artifacts" / "report" / "pairs" / f"{names[0]}-{names[1]}.html").is_file()


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_names_them_in_several_ways(two: tuple[Pipeline, Pipeline], tmp_path: Path, call):
    store = root(two[0])
    one, other = (pipeline.fingerprint("segmenter") for pipeline in two)
    place = usual_place(read(two[0]), read(two[1]))
    code, output = call(one[:6], store / "segmenter" / other, "--store", store, "--images", "1")
    assert (code, place.is_file()) == (0, True), output
    index = (store / "report" / "index.html").read_text()
    assert f"pairs/{one}-{other}.html" in index
    out = tmp_path / "here" / "pair.html"
    code, output = call(f"report/tiny-{one}.html", other, "--store", store, "-o", out, "--images", "0")
    assert (code, out.is_file()) == (0, True), output
    assert Page(out.read_text()).count("img") == 1  # of the viewer, which shows none
    labels = [f"labels/{pipeline.fingerprint('labels')[:8]}" for pipeline in two]
    code, output = call(*labels, "--store", store, "-o", out)
    assert code == 0, output
    assert "labels on" in Page(out.read_text()).text


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("nothing", "0"), "no finished artifact nothing"),
        (("labels/zz", "0"), "no finished labels in"),
        (("",), "name two experiments"),
        (("a", "b", "c"), "not 3"),
        (("a", "b", "--images", "-1"), "--images must be 0 or more"),
        (("-o", "x.html"), "--out is for the page of two"),
    ],
)
def test_mistakes_are_told(two: tuple[Pipeline, Pipeline], call, names: tuple[str, ...], said: str):
    code, output = call(*names, "--store", root(two[0]))
    assert code == 2
    assert said in output


def test_a_beginning_that_fits_several(two: tuple[Pipeline, Pipeline], tmp_path: Path, call):
    for name in ("ab0000000000", "ab1111111111"):
        shutil.copytree(two[0].artifact("segmenter").directory, tmp_path / "segmenter" / name)
        path = tmp_path / "segmenter" / name / "manifest.json"
        write_json(path, read_json(path) | {"fingerprint": name})
    code, output = call("ab", "ab0", "--store", tmp_path)
    assert code == 2
    assert "ab fits ab0000000000, ab1111111111. Give more digits" in output
