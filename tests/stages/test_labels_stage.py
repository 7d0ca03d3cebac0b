from __future__ import annotations

import numpy as np
import pytest
import tiny
from conftest import MakePipeline
from PIL import Image

from wsss.metrics import ConfusionMatrix, miou
from wsss.palette import voc_palette
from wsss.pipeline import Pipeline
from wsss.types import IGNORE


def test_metrics(made: Pipeline):
    metrics = made.artifact("labels").metrics
    assert set(metrics) >= {"miou", "miou_ignored", "ignored", "iou", "images"}
    assert list(metrics["iou"]) == ["background", *made.data.classes]
    assert metrics["images"] == len(tiny.TRAIN)


def test_the_miou_is_that_of_the_masks_over_the_whole_set(finished: Pipeline):
    confusion, artifact = ConfusionMatrix(4), finished.artifact("labels")
    for id in tiny.TRAIN:
        confusion.update(finished.data.mask(id), artifact.read_mask(id))
    assert artifact.metrics["miou"] == pytest.approx(miou(confusion.matrix))
    assert artifact.metrics["miou_ignored"] == pytest.approx(miou(confusion.matrix_ignored))


@pytest.mark.parametrize(("id", "tags"), list(zip(tiny.TRAIN, tiny.TRAIN_TAGS, strict=True)))
def test_the_mask_of_an_image(id: str, tags: tuple[int, ...], made: Pipeline):
    with Image.open(made.artifact("labels").directory / "masks" / f"{id}.png") as mask:
        assert mask.mode == "P"
        assert mask.size == made.data.image(id).shape[1::-1]
        assert mask.getpalette()[: 3 * 4] == voc_palette()[:4].flatten().tolist()
        assert set(np.unique(mask)) <= {0, *tags, IGNORE}


@pytest.mark.slow
def test_processes_give_what_one_process_gives(tiny_pipeline: MakePipeline, finished: Pipeline, tmp_path):
    """Superpixels and dense CRF; image by image, so neither their number nor their order matters."""
    made = {}
    for workers in (0, 2):
        pipeline = tiny_pipeline(f"workers={workers}", "refiner=superpixel_crf", base=tmp_path / str(workers))
        tiny.adopt(pipeline, finished, "classifier", "seeds")
        made[workers] = tiny.results(pipeline.make("labels"))
    assert made[0] == made[2]


def test_changing_the_refiner_reads_the_same_seeds(tiny_pipeline: MakePipeline, finished: Pipeline):
    pipeline = tiny_pipeline("refiner.labelling.background=0.9")
    tiny.adopt(pipeline, finished, "classifier", "seeds")
    strict = pipeline.make("labels")
    assert strict.manifest["upstream"] == finished.artifact("labels").manifest["upstream"]
    assert "background=0.9" in strict.manifest["facts"]["refiner"]
    objects = [np.count_nonzero(p.artifact("labels").read_mask(tiny.TRAIN[0])) for p in (pipeline, finished)]
    assert objects[0] < objects[1]
