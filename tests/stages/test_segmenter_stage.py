from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
from conftest import MakePipeline
from PIL import Image

from wsss.build import build
from wsss.errors import ConfigError
from wsss.metrics import ConfusionMatrix, miou
from wsss.pipeline import Pipeline


def test_metrics(made: Pipeline):
    metrics = made.artifact("segmenter").metrics
    assert set(metrics) >= {"miou", "iou", "pixel_accuracy", "images"}
    assert list(metrics["iou"]) == ["background", *made.data.classes]
    assert metrics["images"] == len(tiny.VAL)
    known = [value for value in metrics["iou"].values() if value is not None]
    assert metrics["miou"] == pytest.approx(sum(known) / len(known))


def test_the_miou_is_that_of_the_predictions_over_the_whole_set(made: Pipeline):
    """One confusion matrix, not a mean over images."""
    confusion, artifact = ConfusionMatrix(4), made.artifact("segmenter")
    for id in tiny.VAL:
        confusion.update(made.data.mask(id), artifact.read_mask(id, folder="predictions"))
    assert artifact.metrics["miou"] == pytest.approx(miou(confusion.matrix))
    assert set(json.loads((artifact.directory / "per_image.json").read_text())) == set(tiny.VAL)


@pytest.mark.parametrize("id", tiny.VAL)
def test_the_prediction_of_an_image(id: str, made: Pipeline):
    with Image.open(made.artifact("segmenter").directory / "predictions" / f"{id}.png") as mask:
        assert mask.mode == "P"
        assert mask.size == (tiny.WIDTH, tiny.HEIGHT)
        assert set(np.unique(mask)) <= {0, 1, 2, 3}


def test_the_weights_are_those_of_the_network(made: Pipeline):
    network = build(made.config, "segmenter", num_labels=4, weights=None)
    made.artifact("segmenter").read_weights(network)


def test_it_learns_from_what_it_is_given(tiny_pipeline: MakePipeline, finished: Pipeline, tmp_path: Path):
    """Labels of nothing but disc: the network soon sees discs everywhere. The true masks are not looked at."""
    pipeline = tiny_pipeline("recipe.segmenter.epochs=5", "recipe.segmenter.optimizer.lr=0.05")
    tiny.adopt(pipeline, finished, "classifier", "seeds", "labels")
    for id in tiny.TRAIN:
        labels = pipeline.artifact("labels").read_mask(id)
        pipeline.artifact("labels").write_mask(id, np.full_like(labels, 2))
    artifact = pipeline.make("segmenter")
    for id in tiny.VAL:
        assert (artifact.read_mask(id, folder="predictions") == 2).mean() > 0.95


def test_true_masks_are_declared(tiny_pipeline: MakePipeline, finished: Pipeline):
    pipeline = tiny_pipeline("recipe.segmenter.keep=best_val", "recipe.segmenter.epochs=1")
    tiny.adopt(pipeline, finished, "classifier", "seeds", "labels")
    supervision = pipeline.make("segmenter").manifest["supervision"]
    assert supervision == "image tags (from masks); val masks (checkpoint)"


def test_another_test_of_the_same_network_trains_nothing(tiny_pipeline: MakePipeline, finished: Pipeline):
    pipeline = tiny_pipeline("evaluation.scales=[0.5,1.5]", "evaluation.tags=true")
    tiny.adopt(pipeline, finished, "classifier", "seeds", "labels")
    before = finished.artifact("segmenter")
    shutil.copytree(before.directory, pipeline.artifact("segmenter").directory.parent / before.fingerprint)
    artifact = pipeline.make("segmenter")
    assert artifact != before
    assert artifact.manifest["facts"]["weights_of"] == before.fingerprint
    assert not artifact.checkpoint.exists()
    weights = (found.directory / "weights.safetensors" for found in (artifact, before))
    assert next(weights).read_bytes() == next(weights).read_bytes()
    assert artifact.manifest["supervision"].endswith("; val image tags (inference)")
    assert artifact.metrics["boundary_f"] != before.metrics["boundary_f"]
    for id in tiny.VAL:
        found = set(np.unique(artifact.read_mask(id, folder="predictions")).tolist())
        assert found <= {0, *pipeline.data.class_ids(id)}


def test_the_crf_of_the_test_is_built_before_the_training(tiny_pipeline: MakePipeline, finished: Pipeline):
    pipeline = tiny_pipeline("+evaluation.crf._target_=wsss.refine.Nothing")
    tiny.adopt(pipeline, finished, "classifier", "seeds", "labels")
    with pytest.raises(ConfigError, match=r"evaluation\.crf"):
        pipeline.make("segmenter")
    assert not pipeline.artifact("segmenter").checkpoint.exists()
