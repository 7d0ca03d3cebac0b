from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from conftest import MakePipeline
from omegaconf import OmegaConf
from PIL import Image

from wsss.artifacts import Artifact, Seeds
from wsss.build import build
from wsss.cli import CONF
from wsss.errors import CorruptArtifact
from wsss.metrics import ConfusionMatrix, miou
from wsss.palette import voc_palette
from wsss.pipeline import Pipeline
from wsss.refine import ItemError, Refiner
from wsss.stages.labels import Source, refine_all, refine_image
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


# --- edges ------------------------------------------------------------------------------------------------------------


def refined(pipeline: Pipeline, image: Image.Image, scores: np.ndarray) -> np.ndarray:
    """The mask that the stage makes of the first training image, replaced by another with its own seeds."""
    id = tiny.TRAIN[0]
    path = pipeline.data.image_path(id)
    image.save(path, quality=90)
    seeds, labels = Artifact(path.parent, "seeds", "edge"), Artifact(path.parent, "labels", "edge")
    seeds.write_seeds(id, Seeds(np.array([1]), scores, image.size[::-1]))
    affinity = Artifact(path.parent, "affinity", "edge")
    affinity.write_boundaries(id, np.zeros([-(-side // 4) for side in image.size[::-1]]))
    refiner = build(pipeline.config, "refiner")
    reduced = refine_image(refiner, Source(seeds, affinity), labels, (id, path))
    mask = labels.read_mask(id)
    assert mask.shape == image.size[::-1]
    assert set(np.unique(mask)) <= {0, 1, IGNORE}
    assert reduced == (max(image.size) > (refiner.max_side or np.inf))
    return mask


REFINERS = sorted(path.stem for path in (CONF / "refiner").glob("*.yaml"))


@pytest.mark.parametrize("refiner", REFINERS)
def test_small_grey_and_narrow_images(refiner: str, tiny_pipeline: MakePipeline, own_set: Path):
    pipeline = tiny_pipeline(f"refiner={refiner}", root=own_set)
    ramp = np.linspace(0, 1, 16, dtype=np.float32).reshape(1, 4, 4)
    for image in [
        Image.new("L", (16, 16), 90),
        Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)),
        Image.new("RGB", (1, 40)),
    ]:
        refined(pipeline, image, ramp)
        assert not refined(pipeline, image, ramp * 0).any()  # a silent map is background


# superpixels take it in, and a walk without boundaries spreads it evenly over the image
@pytest.mark.parametrize("refiner", [name for name in REFINERS if not name.startswith(("superpixel", "random"))])
def test_an_object_of_one_pixel(refiner: str, tiny_pipeline: MakePipeline, own_set: Path):
    pixels = np.full((32, 32, 3), 60, dtype=np.uint8)
    pixels[9, 9] = 250
    scores = np.zeros((1, 32, 32), dtype=np.float32)
    scores[0, 9, 9] = 1
    mask = refined(tiny_pipeline(f"refiner={refiner}", root=own_set), Image.fromarray(pixels), scores)
    assert np.count_nonzero(mask == 1) <= 9
    if refiner == "none":
        assert np.argwhere(mask).tolist() == [[9, 9]]


@pytest.mark.slow
def test_an_image_of_4000_pixels_is_refined_smaller_and_this_is_said(
    tiny_pipeline: MakePipeline, own_set: Path, finished: Pipeline, caplog: pytest.LogCaptureFixture
):
    pipeline = tiny_pipeline("refiner=crf", "refiner.max_side=200", root=own_set)
    scores = np.zeros((1, 750, 1000), dtype=np.float32)
    scores[0, 200:500, 300:700] = 1
    pixels = np.full((3000, 4000, 3), 40, dtype=np.uint8)
    pixels[800:2000, 1200:2800] = 220
    mask = refined(pipeline, Image.fromarray(pixels), scores)
    truth = pixels[..., 0] > 100
    assert (truth & (mask == 1)).sum() / (truth | (mask == 1)).sum() > 0.97

    small = tiny_pipeline("refiner=crf", "refiner.max_side=50", base=own_set / "store")
    tiny.adopt(small, finished, "classifier", "seeds")
    caplog.set_level("INFO", "wsss")
    small.make("labels")
    assert (
        f"{len(tiny.TRAIN)} of {len(tiny.TRAIN)} images were refined at a reduced size (refiner.max_side)"
        in caplog.text
    )


def test_superpixels_are_kept_for_the_next_run(tiny_pipeline: MakePipeline, finished: Pipeline):
    """For another threshold the images are not segmented again; fewer superpixels than asked for are no matter."""
    few = ("refiner=superpixel", "refiner.smoothing.0.algorithm=slic", "refiner.smoothing.0.segments=100000")
    slic = (*few, "refiner.smoothing.0.scale=null", "refiner.smoothing.0.min_size=null")
    first = tiny_pipeline(*slic)
    tiny.adopt(first, finished, "classifier", "seeds")
    first.make("labels")
    kept = sorted((Path(first.config.paths.artifacts) / "superpixels").rglob("*.npz"))
    assert len(kept) == len(tiny.TRAIN) - 1  # none for the image without classes
    times = [path.stat().st_mtime_ns for path in kept]
    tiny_pipeline(*slic, "threshold.background=0.5").make("labels")
    assert sorted((Path(first.config.paths.artifacts) / "superpixels").rglob("*.npz")) == kept
    assert [path.stat().st_mtime_ns for path in kept] == times


def test_corrupt_seeds_are_named(tiny_pipeline: MakePipeline, finished: Pipeline):
    pipeline = tiny_pipeline()
    tiny.adopt(pipeline, finished, "classifier", "seeds")
    path = pipeline.artifact("seeds").directory / "maps" / f"{tiny.TRAIN[3]}.npz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CorruptArtifact, match=f"^{tiny.TRAIN[3]}: .*{path.name} cannot be read.*run its stage again"):
        pipeline.make("labels")
    assert pipeline.artifact("labels").has_mask(tiny.TRAIN[0])  # what was done before is kept


def test_seeds_of_another_image_are_refused(tiny_pipeline: MakePipeline, finished: Pipeline, own_set: Path):
    pipeline = tiny_pipeline(root=own_set)
    tiny.adopt(pipeline, finished, "classifier", "seeds")
    with Image.open(own_set / "JPEGImages" / f"{tiny.TRAIN[0]}.jpg") as image:
        image.crop((0, 0, 40, 40)).save(own_set / "JPEGImages" / f"{tiny.TRAIN[0]}.jpg")
    with pytest.raises(CorruptArtifact, match=f"{tiny.TRAIN[0]}.jpg has 40 x 40 pixels, its seeds .* of 48 x 64"):
        pipeline.make("labels")


def test_a_gpu_is_fed_by_threads_of_this_process(
    tiny_pipeline: MakePipeline, finished: Pipeline, monkeypatch: pytest.MonkeyPatch
):
    """The refiner is asked once, before the threads. No GPU is there, so the steps stay where they are."""
    asked: list[str] = []

    def to(refiner: Refiner, device: str) -> bool:
        asked.append(device)
        return True

    pipeline = tiny_pipeline("refiner=crf", "crf.backend=torch", "workers=2")
    tiny.adopt(pipeline, finished, "classifier", "seeds")
    monkeypatch.setattr(Refiner, "to", to)
    labels = pipeline.artifact("labels")
    paths = {id: pipeline.data.image_path(id) for id in tiny.TRAIN}
    refiner, source = build(pipeline.config, "refiner"), Source(pipeline.artifact("seeds"))
    refine_all(labels, refiner, source, paths, workers=2, device=torch.device("cuda"))
    assert asked == ["cuda"]
    threaded = {id: labels.read_mask(id) for id in tiny.TRAIN}
    labels.remove()
    refine_all(labels, refiner, source, paths, workers=0, device=torch.device("cpu"))
    assert all((labels.read_mask(id) == threaded[id]).all() for id in tiny.TRAIN)


@pytest.mark.slow
def test_a_worker_that_dies_is_named_by_its_image_and_finished_work_is_kept(
    tiny_pipeline: MakePipeline, finished: Pipeline
):
    pipeline = tiny_pipeline("workers=2")
    tiny.adopt(pipeline, finished, "classifier", "seeds")
    OmegaConf.update(pipeline.config, "refiner.smoothing", [{"_target_": "tiny.Deadly"}], force_add=True)
    labels = pipeline.artifact("labels")
    with pytest.raises(ItemError, match=f"^{tiny.TRAIN[1]}: the worker process died at it, twice"):
        pipeline.make("labels")
    assert not labels.complete
    assert labels.has_mask(tiny.TRAIN[0])
    assert not labels.has_mask(tiny.TRAIN[1])


def test_refiners_see_an_image_as_the_classifier_saw_it(own_set: Path, finished: Pipeline):
    """By the white of the set, not of 16 bits."""
    id = tiny.TRAIN[0]
    (own_set / "JPEGImages" / f"{id}.jpg").unlink()
    path = own_set / "JPEGImages" / f"{id}.png"
    Image.fromarray(np.full((tiny.HEIGHT, tiny.WIDTH), 4095, np.uint16)).save(path)
    source = Source(finished.artifact("seeds"), white=4095)
    assert source.read(id, path, build(finished.config, "refiner")).image.min() == 255


@pytest.mark.parametrize("stage", ["labels", "affinity"])
def test_the_white_of_the_set_reaches_the_refiner(
    stage: str, tiny_pipeline: MakePipeline, finished: Pipeline, monkeypatch
):
    sources: list[Source] = []

    def caught(artifact, refiner, source, paths, **_):
        sources.append(source)
        raise KeyboardInterrupt

    pipeline = tiny_pipeline("data.white=4095", "refiner=crf", "upstream=build")
    monkeypatch.setattr(f"wsss.stages.{stage}.refine_all", caught)
    tiny.adopt(pipeline, finished, "classifier", "seeds")
    with pytest.raises(KeyboardInterrupt):
        pipeline.make(stage)
    assert [source.white for source in sources] == [4095]
