"""All stages on VOC 2012 with the images of SBD, on a miniature in the published layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image, ImageDraw
from scipy.io import savemat

from wsss.data import VOC_CLASSES

WIDTH, HEIGHT = 64, 48
CLASSES = ("aeroplane", "cat", "tvmonitor")
"""Of the 20: the first, one amid, the last."""

TRAIN = ("2007_000001", "2007_000002", "2007_000003")
VAL = ("2007_000010", "2007_000011", "2007_000012")
SBD_TRAIN = ("2008_000001", "2008_000002", "2008_000003", TRAIN[0])
SBD_VAL = ("2008_000004", "2008_000005", VAL[0])
UNION = sorted({*TRAIN, *SBD_TRAIN[:3], *SBD_VAL[:2]})


def write_image(voc: Path, id: str, name: str, *, seed: int) -> np.ndarray:
    """A coloured square on noise with its annotation; returns its mask, without an ignored border."""
    rng = np.random.default_rng(seed)
    picture = Image.fromarray(rng.integers(90, 150, (HEIGHT, WIDTH, 3), dtype=np.uint8))
    mask = Image.new("L", picture.size)
    x, y = int(rng.integers(4, 36)), int(rng.integers(4, 22))
    label = VOC_CLASSES.index(name) + 1
    ImageDraw.Draw(picture).rectangle(
        (x, y, x + 20, y + 20), fill=[(200, 40, 40), (40, 180, 60), (50, 70, 210)][label % 3]
    )
    ImageDraw.Draw(mask).rectangle((x, y, x + 20, y + 20), fill=label)
    picture.save(voc / "JPEGImages" / f"{id}.jpg", quality=95)
    xml = f"<annotation><object><name>{name}</name><difficult>0</difficult></object></annotation>"
    (voc / "Annotations" / f"{id}.xml").write_text(xml)
    return np.array(mask)


def write_mat(path: Path, mask: np.ndarray) -> None:
    """A file of SBD: a struct of outlines, labels and the classes present."""
    outlines = np.empty((20, 1), object)
    outlines[:] = [[np.zeros(mask.shape, bool)]] * 20
    present = np.unique(mask[mask > 0])[:, None]
    savemat(path, {"GTcls": {"Boundaries": outlines, "Segmentation": mask, "CategoriesPresent": present}})


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """VOCdevkit/VOC2012 beside benchmark_RELEASE; VOC has masks of its own splits alone, SBD of the images it names.

    Where SBD names an image of VOC, its mask there is of another class: who reads it can be told.
    """
    voc, sbd = tmp_path / "VOCdevkit" / "VOC2012", tmp_path / "benchmark_RELEASE" / "dataset"
    for folder in ("JPEGImages", "SegmentationClass", "Annotations", "ImageSets/Segmentation"):
        (voc / folder).mkdir(parents=True)
    (sbd / "cls").mkdir(parents=True)
    for number, id in enumerate((*UNION, *VAL)):
        mask = write_image(voc, id, CLASSES[number % len(CLASSES)], seed=number)
        if id in (*TRAIN, *VAL):
            Image.fromarray(mask).save(voc / "SegmentationClass" / f"{id}.png")
            mask = np.where(mask > 0, 7, 0).astype(np.uint8)
        if id in (*SBD_TRAIN, *SBD_VAL):
            write_mat(sbd / "cls" / f"{id}.mat", mask)
    for split, ids in (("train", TRAIN), ("val", VAL), ("trainval", (*TRAIN, *VAL))):
        (voc / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(ids) + "\n")
    for split, ids in (("train", SBD_TRAIN), ("val", SBD_VAL)):
        (sbd / f"{split}.txt").write_text("\n".join(ids) + "\n")
    return voc


@pytest.mark.slow
def test_voc_with_sbd_goes_through_all_stages(voc: Path, tmp_path: Path) -> None:
    sbd = tmp_path / "benchmark_RELEASE" / "dataset"
    with tiny.contained():
        pipeline = tiny.pipeline(
            voc, tmp_path / "store", "data=voc2012", "data.train=train_aug", f"data.sbd={sbd}", "data.sbd_count=null",
            "data.tags=xml",
        )  # fmt: skip
        pipeline.make_all()
    data = pipeline.data
    assert (list(data.ids("train_aug")), data.ids("val")) == (UNION, VAL)
    assert data.classes == VOC_CLASSES
    assert {tuple(VOC_CLASSES[n - 1] for n in tags) for tags in data.tags("train_aug").values()} == {
        (name,) for name in CLASSES
    }
    for id in UNION:  # the mask agrees with the annotation, which SBD's does not where VOC has one
        assert set(np.unique(data.truth(id)).tolist()) == {0, *data.class_ids(id)}
    measured = pipeline.artifact("labels").metrics
    assert measured["images"] == len(UNION)
    segmenter = pipeline.artifact("segmenter")
    assert segmenter.complete
    assert 0 <= segmenter.metrics["miou"] <= 1
    assert all(pipeline.artifact("labels").read_mask(id).shape == (HEIGHT, WIDTH) for id in UNION)
    manifest = pipeline.artifact("labels").manifest
    assert manifest["data"]["tags"] == "xml"
