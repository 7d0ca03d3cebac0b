from __future__ import annotations

import numpy as np
import pytest
import tiny
from conftest import MakePipeline

from wsss.data.transforms import to_tensor
from wsss.errors import ConfigError, DataError, MissingArtifact
from wsss.pipeline import Pipeline
from wsss.stages.affinity import build
from wsss.training.shells import to_unit
from wsss.types import IGNORE

WALK = (
    "refiner=random_walk",
    "refiner.smoothing.0.steps=8",
    "recipe.affinity.epochs=2",
    "recipe.affinity.batch_size=2",
    "recipe.affinity.augment.size=32",
    "affinity.network.stages=[1,2]",
    "affinity.network.channels=8",
    "threshold.background=0.6",  # where the tiny classifier's confident labels have objects and background
)


@pytest.fixture(scope="module")
def walked(tiny_set, tmp_path_factory, finished) -> Pipeline:
    with tiny.contained():
        pipeline = tiny.pipeline(tiny_set, tmp_path_factory.mktemp("walked"), *WALK)
        tiny.adopt(pipeline, finished, "classifier", "seeds")
        pipeline.make("labels")  # and, being of the same script, the affinities before them
    return pipeline


def test_the_files_of_the_artifact(walked: Pipeline):
    artifact = walked.artifact("affinity")
    expected = {"manifest.json", "metrics.json", "per_image.json", "weights.safetensors", "last.ckpt"}
    expected |= {f"masks/{id}.png" for id in tiny.TRAIN} | {f"boundaries/{id}.npz" for id in tiny.TRAIN}
    assert set(tiny.files(artifact.directory)) == expected
    assert artifact.manifest["supervision"] == "image tags (from masks)"
    assert set(artifact.manifest["upstream"]) == {"classifier", "seeds"}
    assert walked.artifact("labels").manifest["upstream"]["affinity"] == artifact.fingerprint
    assert set(artifact.metrics) >= {"miou", "miou_ignored", "ignored"}  # of the confident labels


def test_boundaries_are_of_their_image(walked: Pipeline):
    for id in tiny.TRAIN:
        height, width = walked.data.image(id).shape[:2]
        boundaries = walked.artifact("affinity").read_boundaries(id)
        assert boundaries.shape == (-(-height // 4), -(-width // 4))
        assert 0 < boundaries.mean() < 1


def test_boundaries_are_those_of_the_network_that_was_kept(walked: Pipeline):
    parts = build(walked.config, walked.data)
    walked.artifact("affinity").read_weights(parts.network)
    found = {}
    for id in tiny.TRAIN[:3]:
        image = to_unit(to_tensor(walked.data.image(id)))
        found[id] = parts.network.eval().boundaries(image).numpy()
        assert np.abs(found[id] - walked.artifact("affinity").read_boundaries(id)).max() < 2e-3
    assert np.abs(found[tiny.TRAIN[0]] - found[tiny.TRAIN[2]]).max() > 1e-2  # and of that image


def test_large_images_have_boundaries_of_a_bounded_grid(tiny_pipeline: MakePipeline, finished: Pipeline):
    pipeline = tiny_pipeline(*WALK, "affinity.labels.max_side=32")
    tiny.adopt(pipeline, finished, "classifier", "seeds")
    pipeline.make("labels")
    assert max(pipeline.artifact("affinity").read_boundaries(tiny.TRAIN[0]).shape) == 8
    assert pipeline.artifact("labels").read_mask(tiny.TRAIN[0]).shape == (tiny.HEIGHT, tiny.WIDTH)


def test_labels_without_anything_to_learn_from_are_refused(tiny_pipeline: MakePipeline, finished: Pipeline):
    pipeline = tiny_pipeline(*WALK, "threshold.background=1.0")
    tiny.adopt(pipeline, finished, "classifier", "seeds")
    with pytest.raises(DataError, match="no boundary to learn"):
        pipeline.make("labels")


@pytest.mark.parametrize("override", ["keep=best_val", "frozen_stages=1", "encoder_lr_factor=0.5"])
def test_settings_of_the_recipe_that_would_do_nothing_are_refused(override: str, tiny_pipeline: MakePipeline):
    with pytest.raises(ConfigError, match=f"recipe.affinity.{override.partition('=')[0]}"):
        tiny_pipeline(*WALK, f"recipe.affinity.{override}")


def test_the_confident_labels_hold_what_is_learnt_from(walked: Pipeline):
    for id, tags in zip(tiny.TRAIN, tiny.TRAIN_TAGS, strict=True):
        assert set(np.unique(walked.artifact("affinity").read_mask(id))) <= {0, *tags, IGNORE}


def test_the_order_of_stages(walked: Pipeline, finished: Pipeline):
    assert walked.order("segmenter") == ("classifier", "seeds", "affinity", "labels", "segmenter")
    assert finished.order("segmenter") == tiny.STAGES
    assert not (finished.artifact("affinity").directory).exists()


def test_another_walk_reads_the_same_affinities(walked: Pipeline, tiny_pipeline: MakePipeline):
    other = tiny_pipeline(*WALK, "refiner.smoothing.0.beta=2")
    assert other.fingerprint("affinity") == walked.fingerprint("affinity")
    assert other.fingerprint("labels") != walked.fingerprint("labels")


def test_it_is_the_same_again_and_goes_on_where_it_stopped(
    walked: Pipeline, tiny_pipeline: MakePipeline, finished: Pipeline
):
    pipeline = tiny_pipeline(*WALK)
    tiny.adopt(pipeline, finished, "classifier", "seeds")
    kept, lost = tiny.TRAIN[0], tiny.TRAIN[1]
    half, whole = pipeline.artifact("affinity"), walked.artifact("affinity")
    half.write_mask(kept, whole.read_mask(kept))
    half.write_boundaries(kept, np.zeros((3, 3)))  # would not be computed: it stays
    pipeline.make("labels")
    assert half.read_boundaries(kept).shape == (3, 3)
    assert (half.read_boundaries(lost) == whole.read_boundaries(lost)).all()
    assert (half.read_mask(lost) == whole.read_mask(lost)).all()
    labels = [p.artifact("labels").read_mask(lost) for p in (pipeline, walked)]
    assert (labels[0] == labels[1]).all()


def test_missing_seeds_are_asked_for_by_their_own_command(tiny_pipeline: MakePipeline):
    pipeline = tiny_pipeline(*WALK)
    with pytest.raises(MissingArtifact, match=r"no finished classifier[^\n]*\nRun:  python train.py "):
        pipeline.make("labels")


def test_labels_that_need_boundaries_cannot_be_learnt_from(tiny_pipeline: MakePipeline):
    pipeline = tiny_pipeline(*WALK, "upstream=build")
    pipeline.config.affinity.labels = pipeline.config.refiner
    with pytest.raises(ConfigError, match=r"affinity\.labels"):
        pipeline.make("labels")
