"""``python -m wsss.predict``: masks of one's own images, from a network whose labels a reader can foretell."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import shutil
import tarfile
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from made_store import C, put
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from wsss import predict
from wsss.artifacts import Artifact
from wsss.data import VOC_CLASSES
from wsss.errors import UserError
from wsss.inference import Inference
from wsss.palette import voc_palette
from wsss.pipeline import Pipeline
from wsss.refine import Crf

BLACK, RED, GREEN, BLUE = (0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)
COLOURS = ("red", "green", "blue")
FINGERPRINT = "0123456789ab"
Run = Callable[..., tuple[int, str]]


class Colours(nn.Module):
    """Label 1 where a pixel is red, 2 where green, 3 where blue, 0 where none of these is above a half."""

    def __init__(self, *, num_labels: int, weights: str | None = None) -> None:
        super().__init__()
        self.sharpness = nn.Parameter(torch.zeros(1))
        self.num_labels = num_labels

    def forward(self, images: Tensor) -> Tensor:
        background = torch.full_like(images[:, :1], 0.5)
        others = torch.full_like(images[:, :1], -1.0).expand(-1, self.num_labels - 4, -1, -1)
        return self.sharpness * torch.cat([background, images, others], dim=1)


def make_segmenter(root: Path, classes: Sequence[str] = COLOURS, **config: Any) -> Path:
    """A finished segmenter, as the pipeline leaves it."""
    artifact = Artifact(root, "segmenter", FINGERPRINT)
    network = Colours(num_labels=len(classes) + 1)
    network.sharpness.data.fill_(10)
    artifact.write_weights(network)
    manifest = {
        "stage": "segmenter",
        "fingerprint": FINGERPRINT,
        "created": "2026-01-01T00:00:00+00:00",
        "supervision": "image tags (from masks)",
        "data": {"classes": list(classes)},
        "config": {
            # what training started from is gone; it is not needed
            "segmenter": {"_target_": "test_predict.Colours", "weights": "/nowhere/weights.pth"},
            "evaluation.scales": [1.0],
            "evaluation.flip": True,
            **config,
        },
    }
    artifact.publish(manifest, {})
    return artifact.directory


def paint(path: Path, colours: Sequence[tuple[int, int, int]], *, width: int = 40, height: int = 32) -> Path:
    """An image of vertical stripes, all of one width."""
    row = np.repeat(np.array(colours, dtype=np.uint8), width // len(colours), axis=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.repeat(row[None], height, axis=0)).save(path)
    return path


def labels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == "P"
        assert image.getpalette() == voc_palette().ravel().tolist()
        return np.array(image)


def rows_of(out: Path) -> list[list[str]]:
    with (out / "areas.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def record_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "predict.json").read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    with tiny.contained():
        yield


@pytest.fixture
def segmenter(tmp_path: Path) -> Path:
    return make_segmenter(tmp_path / "artifacts")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Half red, half black; and in a folder, three quarters green, one quarter blue."""
    folder = tmp_path / "photos"
    paint(folder / "a.png", (RED, BLACK))
    paint(folder / "trip" / "b.png", (GREEN, GREEN, GREEN, BLUE))
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command in this process: exit code, and what it printed on both streams."""
    return tiny.runner(predict.main, capsys)


# --- results ----------------------------------------------------------------------------------------------------------


def test_masks_overlays_areas_and_record(segmenter, photos, out, run):
    code, said = run(segmenter, photos, "-o", out)
    assert code == 0, said
    assert labels_of(out / "masks" / "a.png")[0].tolist() == [1] * 20 + [0] * 20
    assert labels_of(out / "masks" / "trip" / "b.png")[31].tolist() == [2] * 30 + [3] * 10
    assert rows_of(out) == [
        ["image", "class", "label", "pixels", "share"],
        ["a.png", "background", "0", "640", "0.500000"],
        ["a.png", "red", "1", "640", "0.500000"],
        ["trip/b.png", "background", "0", "0", "0.000000"],
        ["trip/b.png", "green", "2", "960", "0.750000"],
        ["trip/b.png", "blue", "3", "320", "0.250000"],
    ]
    with Image.open(out / "overlays" / "trip" / "b.jpg") as picture:
        assert picture.width == 40
        assert picture.height > 32  # the legend
    record = record_of(out)
    assert record["labels"] == {"0": "background", "1": "red", "2": "green", "3": "blue"}
    assert record["segmenter"]["fingerprint"] == FINGERPRINT
    assert record["supervision"] == "image tags (from masks)"
    assert (record["finished"], record["images"], record["predicted"], record["failed"]) == (True, 2, 2, {})
    assert record["versions"]["torch"] == torch.__version__
    assert "predict 2/2" in said


@pytest.mark.parametrize("scales", [(1.0,), (1.0, 0.5)])
def test_the_masks_are_those_of_the_test_that_measured_the_segmenter(scales, finished: Pipeline, tiny_set, out, run):
    artifact = finished.artifact("segmenter")
    images = [tiny_set / "JPEGImages" / f"{id}.jpg" for id in tiny.VAL]
    assert run(artifact.directory, *images, "-o", out, "--scales", *scales)[0] == 0
    trained = predict.load_segmenter(str(artifact.directory))
    inference = Inference(scales=scales, flip=True)
    for id in tiny.VAL:
        found = labels_of(out / "masks" / f"{id}.png")
        picture = finished.data.image(id)
        assert (found == predict.predict_image(trained.network, picture, inference)[0]).all()
        if scales == (1.0,):
            assert (found == artifact.read_mask(id, folder="predictions")).all()


def test_images_lie_as_they_are_seen(segmenter, tmp_path, out, run):
    image = Image.open(paint(tmp_path / "upright.png", (RED, BLACK)))
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    assert run(segmenter, tmp_path / "turned.png", "-o", out)[0] == 0
    assert labels_of(out / "masks" / "turned.png")[:, 0].tolist() == [1] * 20 + [0] * 20


@pytest.mark.parametrize("size", [(1, 1), (40, 1), (7, 100)])
def test_small_and_narrow_images(size, segmenter, tmp_path, out, run):
    paint(tmp_path / "a.png", (GREEN,), width=size[0], height=size[1])
    assert run(segmenter, tmp_path / "a.png", "-o", out, "--scales", 0.5, 1)[0] == 0
    assert labels_of(out / "masks" / "a.png").tolist() == [[2] * size[0]] * size[1]


def test_probabilities_belong_to_the_masks(segmenter, photos, out, run):
    assert run(segmenter, photos, "-o", out, "--probabilities", "--no-overlays")[0] == 0
    with np.load(out / "probabilities" / "trip" / "b.npz") as file:
        found = file["probabilities"]
    assert found.dtype == np.float16
    assert np.allclose(found.astype(float).sum(axis=0), 1, atol=2e-3)
    assert (found.argmax(axis=0) == labels_of(out / "masks" / "trip" / "b.png")).all()
    assert not (out / "overlays").exists()


def test_the_crf_is_that_of_its_option(segmenter, tmp_path, out, run):
    noise = np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    assert run(segmenter, tmp_path / "a.png", "-o", out, "--crf", "deeplab")[0] == 0
    network = predict.load_segmenter(str(segmenter)).network
    found = labels_of(out / "masks" / "a.png")
    assert (found == predict.predict_image(network, noise, Inference(flip=True, crf=Crf()))[0]).all()
    assert (found != predict.predict_image(network, noise, Inference(flip=True))[0]).any()
    code, said = run(segmenter, tmp_path / "a.png", "-o", out, "--crf", "deplab")
    assert code == 2
    assert "Did you mean deeplab" in said


# --- large images -----------------------------------------------------------------------------------------------------


def test_max_side_gives_masks_of_full_size(segmenter, tmp_path, out, run):
    paint(tmp_path / "a.png", (RED, BLACK), width=400, height=300)
    assert run(segmenter, tmp_path / "a.png", "-o", out, "--max-side", 100, "--probabilities")[0] == 0
    labels = labels_of(out / "masks" / "a.png")
    assert labels.shape == (300, 400)
    expected = np.repeat([[1] * 200 + [0] * 200], 300, axis=0)
    assert (labels == expected)[:, np.r_[0:190, 210:400]].all()  # the edge itself is a matter of interpolation
    with np.load(out / "probabilities" / "a.npz") as file:
        assert file["probabilities"].shape == (4, 75, 100)


def test_enlarged_labels_are_those_of_all_probabilities_at_once():
    probabilities = torch.rand(5, 7, 9, generator=torch.Generator().manual_seed(0))
    whole = F.interpolate(probabilities[None], size=(30, 41), mode="bilinear", align_corners=False)[0]
    assert (predict.enlarged(probabilities, (30, 41)) == whole.argmax(dim=0).numpy()).all()


@pytest.mark.parametrize(
    ("options", "told"), [((), 1), (("--max-side", 32), 0), (("--window", 32), 0), (("--scales", 0.5), 0)]
)
def test_a_large_image_is_told_of_once(options, told, segmenter, tmp_path, out, run, monkeypatch):
    monkeypatch.setattr(predict, "LARGE", 2000)
    for name in ("a", "b"):
        paint(tmp_path / "photos" / f"{name}.png", (RED,), width=64, height=48)
    assert run(segmenter, tmp_path / "photos", "-o", out, *options)[1].count("is large") == told


def test_an_image_that_memory_does_not_hold_is_named(segmenter, photos, out, run, monkeypatch):
    original = predict.predict_image

    def short(network, picture, *arguments, **options):
        if (picture[0, 0] == RED).all():
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return original(network, picture, *arguments, **options)

    monkeypatch.setattr(predict, "predict_image", short)
    code, said = run(segmenter, photos, "-o", out)
    assert code == 1
    assert "a.png: 40x32 is too much for the memory. Try --max-side" in said
    assert list(record_of(out)["failed"]) == ["a.png"]


def test_an_image_that_memory_does_not_hold_while_it_is_read_is_named(segmenter, photos, out, run, monkeypatch):
    def short(path, **options):
        raise MemoryError

    monkeypatch.setattr(predict, "read_image", short)
    code, said = run(segmenter, photos, "-o", out)
    assert code == 1
    assert "a.png: reading it takes more memory than there is" in said


# --- going on, and starting anew --------------------------------------------------------------------------------------


def test_finished_images_are_skipped_and_new_or_changed_ones_done(segmenter, photos, out, run):
    run(segmenter, photos, "-o", out)
    first, areas = tiny.files(out / "masks"), rows_of(out)
    assert run(segmenter, photos, "-o", out)[0] == 0
    assert tiny.files(out / "masks") == first
    assert rows_of(out) == areas
    assert (record_of(out)["predicted"], record_of(out)["reused"]) == (0, 2)

    paint(photos / "c.png", (BLUE,))
    paint(photos / "a.png", (GREEN,))
    later = (out / "masks" / "a.png").stat().st_mtime + 10
    os.utime(photos / "a.png", (later, later))
    run(segmenter, photos, "-o", out)
    assert (record_of(out)["predicted"], record_of(out)["reused"]) == (2, 1)
    assert (labels_of(out / "masks" / "a.png") == 2).all()
    assert tiny.files(out / "masks")["trip/b.png"] == first["trip/b.png"]


def test_an_image_that_an_older_file_replaced_is_done_again(segmenter, photos, out, run):
    run(segmenter, photos, "-o", out)
    older = (out / "masks" / "a.png").stat().st_mtime - 1000
    paint(photos / "a.png", (GREEN,))
    os.utime(photos / "a.png", (older, older))
    run(segmenter, photos, "-o", out)
    assert (record_of(out)["predicted"], record_of(out)["reused"]) == (1, 1)
    assert (labels_of(out / "masks" / "a.png") == 2).all()


def test_files_of_an_earlier_state_of_an_image_do_not_stay(segmenter, photos, out, run):
    run(segmenter, photos, "-o", out)
    before = (out / "overlays" / "a.jpg").read_bytes()
    paint(photos / "a.png", (GREEN,))
    os.utime(photos / "a.png", (1, 1))
    run(segmenter, photos, "-o", out, "--no-overlays")
    run(segmenter, photos, "-o", out)
    assert (out / "overlays" / "a.jpg").read_bytes() != before


def test_a_line_that_was_cut_off_costs_its_image_alone(segmenter, photos, out, run):
    paint(photos / 'a, "b".png', (BLUE,))
    run(segmenter, photos, "-o", out)
    lines = (out / "done.csv").read_bytes()
    assert lines.count(b"\n") == 3
    (out / "done.csv").write_bytes(lines[: lines.rindex(b",")])
    for predicted in (1, 0):
        assert run(segmenter, photos, "-o", out)[0] == 0
        assert (record_of(out)["predicted"], record_of(out)["reused"]) == (predicted, 3 - predicted)
    (out / "done.csv").unlink()
    run(segmenter, photos, "-o", out)
    assert record_of(out)["predicted"] == 3


@pytest.mark.parametrize("lost", ["overlays/a.jpg", "masks/a.png"])
def test_an_image_without_one_of_its_files_is_done_again(lost, segmenter, photos, out, run):
    run(segmenter, photos, "-o", out)
    (out / lost).unlink()
    run(segmenter, photos, "-o", out)
    assert (out / lost).is_file()
    assert (record_of(out)["predicted"], record_of(out)["reused"]) == (1, 1)


def test_other_settings_are_refused_until_overwritten(segmenter, photos, out, run):
    run(segmenter, photos, "-o", out)
    before = tiny.files(out)
    code, said = run(segmenter, photos / "a.png", "-o", out, "--scales", 1, 2)
    assert code == 2
    assert "scales [1.0] there, [1.0, 2.0] now" in said
    assert tiny.files(out) == before
    said = run(segmenter, photos, "-o", out, "--crf", "deeplab")[1]
    assert "of other settings (crf none there, deeplab now)" in said
    assert run(segmenter, photos / "a.png", "-o", out, "--scales", 1, 2, "--overwrite")[0] == 0
    assert sorted(tiny.files(out / "masks")) == ["a.png"]  # those of the old settings are gone


def test_a_segmenter_that_was_trained_again_has_other_results(segmenter, photos, out, run):
    run(segmenter, photos, "-o", out)
    manifest = json.loads((segmenter / "manifest.json").read_text())
    (segmenter / "manifest.json").write_text(json.dumps(manifest | {"created": "2026-02-02T00:00:00+00:00"}))
    code, said = run(segmenter, photos, "-o", out)
    assert code == 2
    assert "created" in said


def test_masks_of_others_are_not_touched(segmenter, photos, run):
    truth = paint(photos / "masks" / "a_truth.png", (RED,))
    before = truth.read_bytes()
    for option in ((), ("--overwrite",)):
        code, said = run(segmenter, photos / "a.png", "-o", photos, *option)
        assert code == 2
        assert "predict.json is not beside it" in said
    assert truth.read_bytes() == before


def test_results_beside_the_images_are_not_taken_for_images(segmenter, photos, run):
    for reused in (0, 2):
        assert run(segmenter, photos, "-o", photos)[0] == 0
        assert (record_of(photos)["images"], record_of(photos)["reused"]) == (2, reused)


def test_results_of_another_run_are_not_taken_for_images(segmenter, photos, run):
    assert run(segmenter, photos, "-o", photos / "run1")[0] == 0
    code, said = run(segmenter, photos, "-o", photos / "run2")
    assert code == 0
    assert record_of(photos / "run2")["images"] == 2
    assert "the results of earlier runs are left out" in said
    assert str(photos / "run1") in said
    paint(photos / "masks" / "venice.png", (RED,))  # nobody's results
    assert run(segmenter, photos, "-o", photos / "run3")[0] == 0
    assert record_of(photos / "run3")["images"] == 3
    assert run(segmenter, photos / "run1" / "masks", "-o", photos / "run4")[0] == 0  # asked for
    assert record_of(photos / "run4")["images"] == 2


def test_paths_are_resolved_once_a_folder(tmp_path, monkeypatch):
    for number in range(20):
        paint(tmp_path / "photos" / f"{number}.png", (RED,))
    asked = []
    original = Path.resolve
    monkeypatch.setattr(Path, "resolve", lambda path, strict=False: asked.append(path) or original(path, strict))
    assert len(predict.find_items([tmp_path / "photos"], tmp_path / "out")) == 20
    assert len(asked) == 2  # the folder and the place of the results


@pytest.mark.parametrize("place", ["file", "file/out", "file/far/out"])
def test_a_file_where_results_should_go(place, segmenter, photos, tmp_path, run):
    (tmp_path / "file").write_text("mine")
    code, said = run(segmenter, photos, "-o", tmp_path / place)
    assert code == 2
    assert f"{tmp_path / 'file'} is a file" in said
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(("number", "advice"), [(errno.ENOSPC, "Free some space"), (errno.EACCES, "Allow it")])
def test_what_the_system_refuses_is_told(number, advice, segmenter, photos, out, run, monkeypatch):
    def refuse(content: bytes, path: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(predict, "_write", refuse)
    code, said = run(segmenter, photos, "-o", out)
    assert code == 2
    assert f"{out}: {os.strerror(number)}. {advice}" in said


# --- tags -------------------------------------------------------------------------------------------------------------


def test_tags_restrict_the_labels_and_are_declared(segmenter, photos, out, run):
    Path("tags.csv").write_text("image;tags;split\na.png;green;train\ntrip/b;green,\nnot_here;red;val\n")
    assert run(segmenter, photos, "-o", out, "--tags", "tags.csv")[0] == 2  # "green," is no class
    Path("tags.csv").write_text("image\ttags\na.png\tgreen\ntrip/b\tblue;red\nnot_here\tnothing\n")
    code, said = run(segmenter, photos, "-o", out, "--tags", "tags.csv")
    assert code == 0, said
    assert (labels_of(out / "masks" / "a.png") == 0).all()  # red may not come out
    assert labels_of(out / "masks" / "trip" / "b.png")[0].tolist() == [0] * 30 + [3] * 10
    assert record_of(out)["supervision"] == "image tags (from masks); at prediction: image tags (tags.csv)"


def test_images_whose_tags_changed_are_done_again(segmenter, photos, out, run):
    Path("tags.csv").write_text("image,tags\na.png,green\ntrip/b,blue\n")
    run(segmenter, photos, "-o", out, "--tags", "tags.csv")
    Path("tags.csv").write_text("image,tags\nanother,red\na.png,green\ntrip/b,blue\n")
    code, said = run(segmenter, photos, "-o", out, "--tags", "tags.csv")
    assert (code, record_of(out)["reused"]) == (0, 2), said
    assert "another tags file" not in said
    Path("tags.csv").write_text("image,tags\na.png,red\ntrip/b,blue\n")
    code, said = run(segmenter, photos, "-o", out, "--tags", "tags.csv")
    assert (code, record_of(out)["predicted"], record_of(out)["reused"]) == (0, 1, 1)
    assert "another tags file: 1 images" in said
    assert labels_of(out / "masks" / "a.png")[0].tolist() == [1] * 20 + [0] * 20
    code, said = run(segmenter, photos, "-o", out)
    assert code == 2
    assert "other settings (tags given there, not given now)" in said


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_are_the_same_in_other_code_points(form, segmenter, tmp_path, out, run):
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    name = unicodedata.normalize(form, "été.png")
    paint(tmp_path / "photos" / name, (RED, BLACK))
    Path("tags.csv").write_text(unicodedata.normalize(other, "image,tags\nété.png,red\n"), encoding="utf-8")
    Path("ids.txt").write_text(unicodedata.normalize(other, "été\n"), encoding="utf-8")
    code, said = run(segmenter, tmp_path / "photos", "-o", out, "--tags", "tags.csv", "--ids", "ids.txt")
    assert code == 0, said
    assert [path.name for path in (out / "masks").iterdir()] == [name]


def test_semicolons_between_columns_and_tags(segmenter, photos, out, run):
    Path("tags.csv").write_text('image;tags\na.png;red\ntrip/b;"green;blue"\n')
    code, said = run(segmenter, photos, "-o", out, "--tags", "tags.csv")
    assert code == 0, said
    assert labels_of(out / "masks" / "trip" / "b.png")[0].tolist() == [2] * 30 + [3] * 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,tags\na.png,redd\n", "line 2 has the unknown tag 'redd'. Did you mean red?"),
        ("image,tags\na.png,red\n", "no row for 1 of 2 images: trip/b.png"),
        ("image,tags\na,red\na.png,red\n", "line 3 names the image a.png again"),
        ("image;tags\na.png;red\ntrip/b;green;blue\n", "line 3 has 3 fields, the header 2. Tags are joined by ';'"),
        ("image,tags\na.png,red\nother,red,blue\ntrip/b,\n", "line 3 has 3 fields, the header 2"),
        ("image,tags\na.png,red\ntrip/b\n", "line 3 has 1 fields, the header 2"),
        ('image,tags\na.png,"red\n', "Check the double quotes"),
        ("a.png,red\n", "begins with 'a.png,red'"),
        ("", "columns image and tags"),
    ],
)
def test_tables_that_cannot_be_used(text, message, segmenter, photos, out, run):
    Path("tags.csv").write_text(text)
    code, said = run(segmenter, photos, "-o", out, "--tags", "tags.csv")
    assert code == 2
    assert message in said
    assert not out.exists()


# --- settings ---------------------------------------------------------------------------------------------------------


def test_settings_are_those_of_the_segmenters_test_unless_given(tmp_path, photos, out, run):
    tested = {
        "evaluation.scales": [0.5, 1.0],
        "evaluation.flip": False,
        "evaluation.window": 64,
        "evaluation.overlap": 0.5,
        "evaluation.crf": {"_target_": "wsss.refine.Crf", "iterations": 3},
    }
    segmenter = make_segmenter(tmp_path / "artifacts", **tested)
    assert run(segmenter, photos, "-o", out)[0] == 0
    expected = {key.removeprefix("evaluation."): value for key, value in tested.items()}
    assert record_of(out)["settings"] == {**expected, "max_side": None, "tags": False}
    assert run(segmenter, photos, "-o", out / "2", "--flip", "--window", 0, "--crf", "none", "--scales", 1)[0] == 0
    settings = record_of(out / "2")["settings"]
    assert settings == {**expected, "scales": [1], "flip": True, "window": None, "crf": None, "max_side": None, "tags": False}  # fmt: skip  # noqa: E501


def test_a_segmenter_measured_with_tags_is_told_of(tmp_path, photos, out, run):
    segmenter = make_segmenter(tmp_path / "artifacts", **{"evaluation.tags": True})
    assert "without --tags expect less" in run(segmenter, photos, "-o", out)[1]


@pytest.mark.parametrize(
    "options", [("--scales", "0"), ("--window", "8"), ("--overlap", "1"), ("--max-side", "3"), ("--device", "cuda:99")]
)
def test_values_that_cannot_be(options, segmenter, photos, out, run):
    assert run(segmenter, photos, "-o", out, *options)[0] == 2
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--scales", "a"), "a must be above 0"),
        (("--window", "a"), "a must be a whole number"),
        (("--overlap", "a"), "a must be 0 or more"),
        (("--max-side", "1.5"), "1.5 must be a whole number"),
        (("--overlap", "0.5"), "--overlap is that of windows, and there are none"),
    ],
)
def test_values_that_cannot_be_are_explained(options, message, segmenter, photos, out, run):
    code, said = run(segmenter, photos, "-o", out, *options)
    assert code == 2
    assert message in said


# --- segmenters and images that cannot be used ------------------------------------------------------------------------


def test_a_segmenter_is_found_by_its_first_digits(segmenter, photos, out, run):
    assert run("0123", photos, "-o", out)[0] == 0
    code, said = run("fff", photos, "-o", out)
    assert code == 2
    assert f"Finished there: {FINGERPRINT}" in said


def test_the_fingerprint_of_an_earlier_stage_leads_to_its_segmenters(segmenter, photos, out, run):
    put(segmenter.parent.parent, "labels", C)
    path = segmenter / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"upstream": {"labels": C}}))
    code, said = run(C[:5], photos, "-o", out)
    assert code == 2
    assert f"It is of labels; segmenters made from it: {FINGERPRINT}" in " ".join(said.split())


def test_a_segmenter_that_was_set_aside_is_no_candidate(segmenter, photos, out, run):
    shutil.copytree(segmenter, segmenter.with_name(f"{FINGERPRINT}.old"))
    assert run("0123", photos, "-o", out)[0] == 0
    assert ".old" not in run("fff", photos, "-o", out)[1]


@pytest.mark.parametrize("name", ["weights.safetensors", "manifest.json"])
def test_a_file_of_a_segmenter_stands_for_its_folder(name, segmenter, photos, out, run):
    assert run(segmenter / name, photos, "-o", out)[0] == 0
    assert "is a file. Give the folder" in run(segmenter / "metrics.json", photos, "-o", out)[1]


def _unfinish(directory: Path) -> None:
    (directory / "manifest.json").unlink()


def _other_stage(directory: Path) -> None:
    manifest = json.loads((directory / "manifest.json").read_text())
    (directory / "manifest.json").write_text(json.dumps(manifest | {"stage": "classifier"}))


def _lose_weights(directory: Path) -> None:
    (directory / "weights.safetensors").unlink()


def _break_weights(directory: Path) -> None:
    (directory / "weights.safetensors").write_bytes(b"nothing")


def _break_manifest(directory: Path) -> None:
    (directory / "manifest.json").write_text('{"stage": "segmenter"}')


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (_unfinish, "MissingArtifact: no finished segmenter"),
        (_other_stage, "ConfigError: .* is the result of the stage classifier"),
        (_lose_weights, "CorruptArtifact: .* has lost its weights.safetensors"),
        (_break_weights, "CorruptArtifact: .* cannot be loaded"),
        (_break_manifest, "CorruptArtifact: the manifest of .* lacks"),
    ],
)
def test_segmenters_that_cannot_be_used(harm, message, segmenter, photos, out, run):
    harm(segmenter)
    code, said = run(segmenter, photos, "-o", out)
    assert code == 2
    assert re.search(message, said), said
    assert not out.exists()


def test_an_unreadable_image_is_named_and_the_others_are_done(segmenter, photos, out, run):
    run(segmenter, photos, "-o", out)
    (photos / "a.png").write_bytes((photos / "a.png").read_bytes()[:60])
    code, said = run(segmenter, photos, "-o", out)
    assert code == 1
    assert "1 of 2 images could not be done" in said
    assert "a.png does not decode" in said
    assert "split" not in said
    assert sorted(tiny.files(out / "masks")) == ["trip/b.png"]  # that of the earlier a.png would mislead
    assert {row[0] for row in rows_of(out)[1:]} == {"trip/b.png"}
    assert record_of(out)["finished"] is False


def test_folders_without_images_and_names_that_clash(segmenter, photos, tmp_path, out, run):
    (tmp_path / "empty").mkdir()
    assert "no image in" in run(segmenter, tmp_path / "empty", "-o", out)[1]
    assert "there is no such file" in run(segmenter, tmp_path / "nowhere", "-o", out)[1]
    Image.open(photos / "a.png").save(photos / "a.bmp")
    code, said = run(segmenter, photos, "-o", out)
    assert code == 2
    assert "share the id 'a'" in said
    other = paint(tmp_path / "other" / "a.png", (RED,))
    code, said = run(segmenter, photos / "a.png", other, "-o", out)
    assert code == 2
    assert "would both be written to a.png" in said
    assert not out.exists()
    assert run(segmenter, other, other, "-o", out)[0] == 0


# --- the test server of VOC -------------------------------------------------------------------------------------------


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    return make_segmenter(tmp_path / "artifacts", VOC_CLASSES)


@pytest.mark.parametrize("competition", ["comp5", "comp6"])
def test_a_submission_holds_the_masks_of_the_listed_images(competition, voc, tmp_path, out, run):
    for name in ("2008_1", "2008_2", "2008_3"):
        paint(tmp_path / "JPEGImages" / f"{name}.png", (RED, BLACK))
    Path("test.txt").write_text("2008_3\n2008_1\n")
    options = ("--voc", "sent", "--ids", "test.txt", *(("--competition", "comp5") if competition == "comp5" else ()))
    code, said = run(voc, "JPEGImages", "-o", out, *options)
    assert code == 0, said
    folder = f"results/VOC2012/Segmentation/{competition}_test_cls"
    names = [f"{folder}/2008_1.png", f"{folder}/2008_3.png"]
    assert sorted(path.name for path in Path("sent", folder).iterdir()) == ["2008_1.png", "2008_3.png"]
    archive = Path("sent", f"{competition}_{FINGERPRINT}.tgz")
    with tarfile.open(archive) as packed:
        assert packed.getnames() == names
        with Image.open(packed.extractfile(names[1])) as mask:
            assert np.array(mask)[0].tolist() == [1] * 20 + [0] * 20
    before = archive.read_bytes()
    run(voc, "JPEGImages", "-o", out, *options)
    assert archive.read_bytes() == before


def test_submissions_that_cannot_be(voc, photos, tmp_path, out, run):
    Path("test.txt").write_text("a\nc\nd\n")
    code, said = run(voc, photos, "-o", out, "--voc", "sent", "--ids", "test.txt")
    assert code == 2
    assert "2 of the 3 images of test.txt are missing: c, d" in said
    Path("tags.csv").write_text("image,tags\na.png,person\n")
    assert "--voc and --tags" in run(voc, photos / "a.png", "-o", out, "--voc", "sent", "--tags", "tags.csv")[1]
    assert "ids have no folders" in run(voc, photos, "-o", out, "--voc", "sent")[1]
    colours = make_segmenter(tmp_path / "others")
    code, said = run(colours, photos, "-o", out, "--voc", "sent")
    assert code == 2
    assert "20 classes of VOC" in said
    assert not Path("sent").exists()
    assert not out.exists()


def test_no_archive_without_a_mask_of_every_image(voc, photos, out, run):
    (photos / "x.png").write_bytes(b"no image")
    code, said = run(voc, photos / "a.png", photos / "x.png", "-o", out, "--voc", "sent")
    assert code == 1
    assert "nothing is written for the VOC server" in said
    assert not Path("sent").exists()


def test_load_segmenter_gives_a_network_in_evaluation_mode(segmenter):
    trained = predict.load_segmenter(str(segmenter))
    assert not trained.network.training
    assert trained.names == ("background", *COLOURS)
    with pytest.raises(UserError):
        predict.load_segmenter(str(segmenter.parent))
