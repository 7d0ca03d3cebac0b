from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from conftest import MakePipeline

from wsss.build import build
from wsss.cli import CONF
from wsss.metrics import ConfusionMatrix, miou
from wsss.pipeline import Pipeline
from wsss.refine.threshold import percentile_scale, threshold
from wsss.stages.seeds import full_size_scores


def test_metrics(made: Pipeline):
    metrics, settings = made.artifact("seeds").metrics, made.config.evaluation
    wanted = {"miou", "threshold", "miou_best", "threshold_best", "precision", "recall", "fp", "fn", "curve", "iou"}
    assert set(metrics) >= wanted
    assert list(metrics["iou"]) == ["background", *made.data.classes]
    assert metrics["threshold"] == settings.seed_threshold
    curve = dict(metrics["curve"])
    assert len(curve) >= settings.curve_steps
    assert list(curve) == sorted(curve)
    assert curve[metrics["threshold"]] == pytest.approx(metrics["miou"])
    assert max(curve.values()) == pytest.approx(metrics["miou_best"]) == curve[metrics["threshold_best"]]
    assert metrics["images"] == len(tiny.TRAIN)


def test_the_fixed_miou_is_that_of_the_thresholded_maps(finished: Pipeline):
    confusion, background = ConfusionMatrix(4), finished.config.evaluation.seed_threshold
    for id in tiny.TRAIN:
        seeds = finished.artifact("seeds").read_seeds(id)
        labels = threshold(full_size_scores(seeds).numpy(), seeds.class_ids, background=background)
        confusion.update(finished.data.mask(id), labels)
    assert finished.artifact("seeds").metrics["miou"] == pytest.approx(miou(confusion.matrix))


@pytest.mark.parametrize(("id", "tags"), list(zip(tiny.TRAIN, tiny.TRAIN_TAGS, strict=True)))
def test_the_maps_of_an_image(id: str, tags: tuple[int, ...], made: Pipeline):
    height, width = made.data.image(id).shape[:2]
    stride = made.config.seeds.stride
    with np.load(made.artifact("seeds").directory / "maps" / f"{id}.npz", allow_pickle=False) as file:
        assert set(file) == {"class_ids", "scores", "size"}
        assert (file["class_ids"].dtype, file["scores"].dtype) == (np.uint8, np.float16)
        assert tuple(file["class_ids"]) == tags
        assert tuple(file["size"]) == (height, width)
        assert file["scores"].shape == (len(tags), -(-height // stride), -(-width // stride))
        assert all(scores.min() >= 0 and scores.max() == 1 for scores in file["scores"])


def test_the_manifest_names_the_method_and_its_layers(tiny_pipeline: MakePipeline, finished: Pipeline):
    assert finished.artifact("seeds").manifest["facts"]["method"] == {
        "name": "LayerCam",
        "layers": {str(layer): f"encoder.{layer - 1}" for layer in finished.config.cam.stages},
    }
    pipeline = tiny_pipeline("cam=cam")
    tiny.adopt(pipeline, finished, "classifier")
    assert pipeline.make("seeds").manifest["facts"]["method"] == {"name": "Cam"}


def test_methods_and_views_differ(tiny_pipeline: MakePipeline, finished: Pipeline, tmp_path: Path):
    maps = {}
    for override in ("cam=cam", "cam=gradcam", "cam=layercam", "seeds.scales=[1.0,2.0]", "seeds.flip=false"):
        pipeline = tiny_pipeline(override, base=tmp_path / override)
        tiny.adopt(pipeline, finished, "classifier")
        maps[override] = pipeline.make("seeds").read_seeds(tiny.TRAIN[3]).scores
    plain = maps.pop("cam=cam")
    # under global average pooling and a linear head they are one, up to the half precision they are kept in
    np.testing.assert_allclose(maps.pop("cam=gradcam"), plain, atol=2e-3)
    assert all(np.abs(other - plain).max() > 0.1 for other in maps.values())
    assert len({other.tobytes() for other in maps.values()}) == 3


@pytest.mark.parametrize("option", sorted(path.stem for path in (CONF / "cam").glob("*.yaml")))
def test_every_cam_option_makes_seeds(option: str, tiny_pipeline: MakePipeline, finished: Pipeline):
    pipeline = tiny_pipeline(f"cam={option}", "seeds.scales=[1.0,0.5]")
    tiny.adopt(pipeline, finished, "classifier")
    seeds = pipeline.make("seeds")
    peaks = []
    for id, tags in zip(tiny.TRAIN, tiny.TRAIN_TAGS, strict=True):
        found = seeds.read_seeds(id)
        assert tuple(found.class_ids) == tags
        peaks += [scores.max() for scores in found.scores]
    assert set(peaks) <= {0, 1}  # two epochs make a classifier some of whose maps are silent
    assert np.mean(peaks) >= 0.3
    assert (seeds.read_tensors("prototypes") is not None) == option.startswith("lpcam")


def test_prototypes_of_an_interrupted_stage_are_taken_up(tiny_pipeline: MakePipeline, finished: Pipeline):
    """What was learnt is not learnt again, and the rest is that of an uninterrupted run."""
    pipeline = tiny_pipeline("cam=lpcam")
    tiny.adopt(pipeline, finished, "classifier")
    seeds = pipeline.make("seeds")
    expected, learnt = tiny.results(seeds), tiny.files(seeds.directory)["prototypes.safetensors"]
    for name in ("manifest.json", "metrics.json", f"maps/{tiny.TRAIN[2]}.npz"):
        (seeds.directory / name).unlink()
    pipeline.make("seeds")
    assert tiny.results(seeds) == expected
    assert tiny.files(seeds.directory)["prototypes.safetensors"] == learnt
    summary = seeds.manifest["facts"]["method"]["prototypes"]
    assert set(summary) == {"1", "2", "3"}
    assert all(item["foreground"]["kept"] >= 1 for item in summary.values())


def test_batches_of_images_give_the_same_seeds(tiny_pipeline: MakePipeline, finished: Pipeline):
    """One image of the set stands upright: groups are of one size."""
    pipeline = tiny_pipeline("seeds.batch_size=3")
    tiny.adopt(pipeline, finished, "classifier")
    together, alone = pipeline.make("seeds"), finished.artifact("seeds")
    for id in tiny.TRAIN:
        np.testing.assert_allclose(together.read_seeds(id).scores, alone.read_seeds(id).scores, atol=2e-3)


@pytest.mark.parametrize(("override", "tolerance"), [("fold_batch_norm=false", 2e-3), ("precision=bf16-mixed", 0.1)])
def test_unfolded_batch_norm_and_half_precision_stay_close(
    tiny_pipeline: MakePipeline, finished: Pipeline, override: str, tolerance: float
):
    pipeline = tiny_pipeline(f"seeds.{override}")
    tiny.adopt(pipeline, finished, "classifier")
    seeds = pipeline.make("seeds")
    assert pipeline.fingerprint("seeds") != finished.fingerprint("seeds")
    for id in tiny.TRAIN:
        expected = finished.artifact("seeds").read_seeds(id).scores
        np.testing.assert_allclose(seeds.read_seeds(id).scores, expected, atol=tolerance)


def test_seeds_may_be_measured_against_a_percentile(tiny_pipeline: MakePipeline, finished: Pipeline):
    """The maps are the same, and the curve is that of maps divided by their percentile."""
    pipeline = tiny_pipeline("evaluation.seed_percentile=80")
    tiny.adopt(pipeline, finished, "classifier")
    seeds = pipeline.make("seeds")
    confusion = ConfusionMatrix(4)
    for id in tiny.TRAIN:
        found = seeds.read_seeds(id)
        assert np.array_equal(found.scores, finished.artifact("seeds").read_seeds(id).scores)
        scores = percentile_scale(full_size_scores(found).numpy(), percentile=80)
        labels = threshold(scores, found.class_ids, background=pipeline.config.evaluation.seed_threshold)
        confusion.update(finished.data.mask(id), labels)
    assert seeds.metrics["miou"] == pytest.approx(miou(confusion.matrix))
    assert seeds.metrics["miou"] != finished.artifact("seeds").metrics["miou"]


def test_the_best_threshold_has_its_table_too(finished: Pipeline):
    metrics = finished.artifact("seeds").metrics
    assert metrics["best"]["miou"] == metrics["miou_best"]
    assert set(metrics["best"]) >= {"precision", "recall", "fp", "fn"}


def test_a_map_that_is_no_number_is_told_with_its_image(tiny_pipeline: MakePipeline, finished: Pipeline):
    pipeline = tiny_pipeline()
    tiny.adopt(pipeline, finished, "classifier")
    network = build(pipeline.config, "classifier", num_classes=3)
    torch.nn.init.constant_(network.head.weight, torch.nan)
    pipeline.artifact("classifier").write_weights(network)
    with pytest.raises(FloatingPointError, match=rf"image {tiny.TRAIN[0]}: .* learning rate too high"):
        pipeline.make("seeds")
    assert not pipeline.artifact("seeds").complete
