from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from conftest import MakePipeline

from wsss.artifacts import Seeds
from wsss.errors import ConfigError, DataError
from wsss.pipeline import Pipeline
from wsss.refine import AutoBackground, Refiner, Threshold
from wsss.stages.threshold import at_side, spread


@pytest.fixture(scope="module")
def chosen(tiny_set, tmp_path_factory, finished) -> Pipeline:
    with tiny.contained():
        pipeline = tiny.pipeline(tiny_set, tmp_path_factory.mktemp("chosen"), "threshold=auto")
        tiny.adopt(pipeline, finished, "classifier", "seeds")
        pipeline.make("labels")  # and, being of the same script, the threshold before them
    return pipeline


def test_the_artifact(chosen: Pipeline):
    artifact = chosen.artifact("threshold")
    assert set(tiny.files(artifact.directory)) == {"manifest.json", "metrics.json"}
    assert artifact.manifest["supervision"] == "image tags (from masks)"
    metrics = artifact.metrics
    assert metrics["images"] == sum(map(bool, tiny.TRAIN_TAGS))
    candidates = {at: value for at, value in metrics["criterion"] if value is not None}
    assert candidates[metrics["threshold"]] == max(candidates.values())


def test_the_seeds_own_curve_tells_what_the_choice_is_worth(chosen: Pipeline):
    metrics, seeds = chosen.artifact("threshold").metrics, chosen.artifact("seeds").metrics
    assert metrics["miou"] == dict(map(tuple, seeds["curve"]))[metrics["threshold"]]
    assert (metrics["miou_best"], metrics["threshold_best"]) == (seeds["miou_best"], seeds["threshold_best"])


def test_labels_are_those_of_the_chosen_threshold(chosen: Pipeline, tiny_pipeline: MakePipeline, finished: Pipeline):
    threshold = chosen.artifact("threshold").metrics["threshold"]
    given = tiny_pipeline(f"threshold.background={threshold}")
    tiny.adopt(given, finished, "classifier", "seeds")
    labels, expected = chosen.artifact("labels"), given.make("labels")
    for id in tiny.TRAIN:
        assert (labels.read_mask(id) == expected.read_mask(id)).all()
    assert labels.metrics == expected.metrics | {"threshold": threshold}
    assert set(labels.manifest["upstream"]) == {"seeds", "threshold"}
    assert set(expected.manifest["upstream"]) == {"seeds"}


def test_the_order_of_stages(chosen: Pipeline, tiny_pipeline: MakePipeline):
    assert chosen.order("segmenter") == ("classifier", "seeds", "threshold", "labels", "segmenter")
    both = tiny_pipeline("threshold=auto", "refiner=random_walk")
    assert both.order("labels") == ("classifier", "seeds", "threshold", "affinity", "labels")
    assert both.needs("affinity") == ("classifier", "seeds", "threshold")
    given = tiny_pipeline("threshold=auto", "refiner.labelling.background=0.4")
    assert given.order("labels") == ("classifier", "seeds", "labels")


def test_refiners_share_the_threshold(chosen: Pipeline, tiny_pipeline: MakePipeline):
    other = tiny_pipeline("threshold=auto", "refiner=superpixel")
    assert other.fingerprint("threshold") == chosen.fingerprint("threshold")
    assert other.fingerprint("labels") != chosen.fingerprint("labels")


def test_silent_seeds_are_refused(tiny_pipeline: MakePipeline, finished: Pipeline):
    pipeline = tiny_pipeline("threshold=auto")
    tiny.adopt(pipeline, finished, "classifier", "seeds")
    seeds = pipeline.artifact("seeds")
    for id in tiny.TRAIN:
        found = seeds.read_seeds(id)
        seeds.write_seeds(id, Seeds(found.class_ids, np.zeros_like(found.scores), found.size))
    with pytest.raises(DataError, match="threshold=auto: no seed"):
        pipeline.make("labels")


def test_before_it_is_chosen_there_is_none():
    image, scores = np.zeros((4, 4, 3), dtype=np.uint8), np.ones((1, 4, 4), dtype=np.float32)
    refiner = Refiner(labelling=Threshold(background=AutoBackground()))
    before = repr(refiner)
    with pytest.raises(ValueError, match="no threshold has been chosen"):
        refiner(image, [1], scores)
    refiner.choose(0.5)
    assert (refiner(image, [1], scores) == 1).all()
    assert not refiner(image, [1], scores * 0.4).any()
    assert repr(refiner) == before


def test_configuration_mistakes_show_before_the_work(tiny_pipeline: MakePipeline):
    for override, message in [("threshold.stage=9", "no stage 9"), ("threshold.images=1", "images")]:
        pipeline = tiny_pipeline("threshold=auto", override, "upstream=build")
        with pytest.raises(ConfigError, match=message):
            pipeline.make("labels")
        assert not pipeline.artifact("classifier").complete


def test_the_power_that_gives_the_same_labels():
    image, rng = np.zeros((20, 20, 3), dtype=np.uint8), np.random.default_rng(0)
    scores = rng.random((2, 20, 20), dtype=np.float32)
    for threshold in (0.1, 0.35, 0.5, 0.8):
        labels = {}
        for form in ("constant", "power"):
            refiner = Refiner(labelling=Threshold(background=AutoBackground(form=form)))
            refiner.choose(threshold)
            labels[form] = refiner(image, [1, 2], scores)
        assert (labels["constant"] == labels["power"]).all()
        assert len(np.unique(labels["power"])) == 3


def test_images_are_brought_to_one_side():
    for size, expected in [((100, 200), (256, 480)), ((4, 400), (32, 480)), ((960, 720), (480, 352))]:
        view = at_side(torch.rand(3, *size), 480)
        assert tuple(view.shape) == (3, *expected)
        assert 0 <= view.min() <= view.max() <= 1


def test_images_are_spread_over_the_split():
    assert spread(list("abcdefgh"), 4) == list("aceg")
    assert spread(list("abc"), 4) == spread(list("abc"), None) == list("abc")
