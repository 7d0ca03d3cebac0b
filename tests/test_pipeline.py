"""Fingerprints, reuse, upstream, resume and bad input: the contract between stages, on a pipeline of a second."""

from __future__ import annotations

import json
import logging
import re
import shlex
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from conftest import MakePipeline
from PIL import Image

from wsss.artifacts import Artifact
from wsss.config import Labels
from wsss.errors import ConfigError, CorruptArtifact, DataError, MissingArtifact
from wsss.metrics import ThresholdCurve
from wsss.pipeline import STAGES, Pipeline
from wsss.training.shells import ClassifierShell, SegmenterShell

ALL = set(tiny.STAGES)
AFTER_CLASSIFIER = ALL - {"classifier"}
AFTER_SEEDS = {"labels", "segmenter"}


def fingerprints(pipeline: Pipeline) -> dict[str, str]:
    return {stage: pipeline.fingerprint(stage) for stage in tiny.STAGES}


def moved(one: Pipeline, other: Pipeline) -> set[str]:
    """The stages whose fingerprints differ."""
    first, second = fingerprints(one), fingerprints(other)
    return {stage for stage in tiny.STAGES if first[stage] != second[stage]}


def complete(pipeline: Pipeline) -> set[str]:
    return {stage for stage in tiny.STAGES if pipeline.artifact(stage).complete}


# --- fingerprints -----------------------------------------------------------------------------------------------------


def test_what_cannot_move_a_number_moves_no_fingerprint(finished: Pipeline, tiny_pipeline: MakePipeline):
    other = tiny_pipeline(
        "workers=3",
        "trainer.accelerator=gpu",
        "trainer.devices=[3]",
        "trainer.strategy=ddp",
        "trainer.deterministic=false",
        "logger=wandb",
        "paths.data=elsewhere",
        "report.worst=1",
        "report.typical=7",
        "force=true",
        "upstream=build",
        "data.name=renamed",
    )
    assert other.config.paths.artifacts != finished.config.paths.artifacts
    assert other.config.paths.logs != finished.config.paths.logs
    assert moved(finished, other) == set()


@pytest.mark.parametrize(
    ("override", "stages"),
    [
        ("seed=1", ALL),
        ("trainer.precision=bf16-mixed", ALL),
        ("recipe.classifier.batch_size=4", ALL),
        ("recipe.classifier.optimizer.lr=0.5", ALL),
        ("recipe.classifier.keep=best_val", ALL),
        ("classifier.encoder=resnet18", ALL),
        ("classifier.weights=bundled", ALL),
        ("data.tags=xml", ALL),
        ("data.val=train", ALL),
        ("cam=cam", AFTER_CLASSIFIER),
        ("cam.gamma=3.5", AFTER_CLASSIFIER),
        ("cam.stages=[4,5]", AFTER_CLASSIFIER),
        ("cam.grid=pool", AFTER_CLASSIFIER),
        ("seeds.batch_size=2", AFTER_CLASSIFIER),
        ("seeds.precision=bf16-mixed", AFTER_CLASSIFIER),
        ("evaluation.seed_percentile=90", AFTER_CLASSIFIER),
        ("classifier.pooling=tap", ALL),
        ("classifier.fused_stages=[4,5]", ALL),
        ("threshold=pas", AFTER_SEEDS),
        ("threshold.background=0.4", AFTER_SEEDS),
        ("refiner=random_walk", AFTER_SEEDS),
        ("seeds.scales=[1.0,0.5]", AFTER_CLASSIFIER),
        ("seeds.flip=false", AFTER_CLASSIFIER),
        ("seeds.stride=8", AFTER_CLASSIFIER),
        ("refiner=superpixel", AFTER_SEEDS),
        ("refiner.labelling.background=0.4", AFTER_SEEDS),
        ("recipe.segmenter.batch_size=4", {"segmenter"}),
        ("segmenter.weights=bundled", {"segmenter"}),
        ("evaluation.flip=false", {"segmenter"}),
        ("evaluation.scales=[1.0,1.5]", {"segmenter"}),
        ("labels=ground_truth", {"segmenter"}),
    ],
)
def test_what_can_move_a_number_moves_its_stage_and_those_after_it(
    override: str, stages: set[str], finished: Pipeline, tiny_pipeline: MakePipeline
):
    assert moved(finished, tiny_pipeline(override)) == stages


def test_what_a_refiner_takes_in_moves_its_labels_alone(tiny_pipeline: MakePipeline):
    """The CRF's widths where there is a CRF, the affinities where it walks along them."""
    for override, refiner in [("crf=psa", "crf"), ("affinity.radius=7", "random_walk")]:
        without = tiny_pipeline("refiner=none"), tiny_pipeline("refiner=none", override)
        assert moved(*without) == set()
        assert moved(tiny_pipeline(f"refiner={refiner}"), tiny_pipeline(f"refiner={refiner}", override)) == AFTER_SEEDS


def test_a_whole_number_is_the_same_with_and_without_a_point(tiny_pipeline: MakePipeline):
    keys = ("cam.gamma", "recipe.segmenter.optimizer.lr", "refiner.labelling.background", "evaluation.seed_threshold")
    without, with_point = ([f"{key}={value}" for key in keys] for value in ("1", "1.0"))
    assert moved(tiny_pipeline(*without, "seeds.scales=[1]"), tiny_pipeline(*with_point, "seeds.scales=[1.0]")) == set()


def test_a_copy_of_the_set_is_the_same_set(finished: Pipeline, tiny_pipeline: MakePipeline, own_set: Path):
    assert moved(finished, tiny_pipeline(root=own_set)) == set()


def test_a_weights_file_counts_by_its_content(tiny_pipeline: MakePipeline, tmp_path: Path):
    for name, content in (("one.pth", b"same"), ("two.safetensors", b"same"), ("other.pth", b"other")):
        (tmp_path / name).write_bytes(content)
    one, two, other = (
        tiny_pipeline(f"classifier.weights={tmp_path / name}", f"segmenter.weights={tmp_path / name}")
        for name in ("one.pth", "two.safetensors", "other.pth")
    )
    assert moved(one, two) == set()
    assert moved(one, other) == ALL
    labels = "labels=ground_truth"  # no upstream that could hide the segmenter's own weights
    one, other = (tiny_pipeline(f"segmenter.weights={tmp_path / name}", labels) for name in ("one.pth", "other.pth"))
    assert moved(one, other) == {"segmenter"}


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_ids_of_both_splits_count(split: str, finished: Pipeline, tiny_pipeline: MakePipeline, own_set: Path):
    path = own_set / "ImageSets" / "Segmentation" / f"{split}.txt"
    path.write_text("\n".join(path.read_text().split()[:-1]))
    assert moved(finished, tiny_pipeline(root=own_set)) == ALL


def test_tags_count_and_the_order_of_a_split_too(finished: Pipeline, tiny_pipeline: MakePipeline, own_set: Path):
    (own_set / "Annotations" / f"{tiny.TRAIN[0]}.xml").write_text(
        "<annotation><object><name>wedge</name></object></annotation>"
    )
    annotated = tiny_pipeline("data.tags=xml")
    assert moved(annotated, tiny_pipeline("data.tags=xml", root=own_set)) == ALL
    assert moved(finished, tiny_pipeline(root=own_set)) == set()  # tags from masks do not read the annotations


def test_the_classes_count(finished: Pipeline, tiny_pipeline: MakePipeline, own_set: Path):
    (own_set / "classes.txt").write_text("square\ndisc\ntriangle\n")
    assert moved(finished, tiny_pipeline(root=own_set)) == ALL


def test_the_ceiling_does_not_depend_on_weak_labels(tiny_pipeline: MakePipeline):
    full = tiny_pipeline("labels=ground_truth")
    assert full.order("segmenter") == ("segmenter",)
    weak = ("cam=cam", "refiner=superpixel", "recipe.classifier.epochs=3", "seeds.scales=[2.0]")
    assert moved(full, tiny_pipeline("labels=ground_truth", *weak)) == ALL - {"segmenter"}
    assert "segmenter" in moved(full, tiny_pipeline("labels=ground_truth", "recipe.segmenter.epochs=3"))


def test_a_fingerprint_has_twelve_digits_and_differs_between_stages(finished: Pipeline):
    values = list(fingerprints(finished).values())
    assert len(set(values)) == len(values)
    assert all(re.fullmatch("[0-9a-f]{12}", value) for value in values)


# --- upstream, reuse, force -------------------------------------------------------------------------------------------


def test_missing_upstream_is_named_with_its_place_and_the_command(tiny_pipeline: MakePipeline):
    pipeline = tiny_pipeline("upstream=require", "data.name=two words")
    for stage in ("seeds", "labels", "segmenter"):
        with pytest.raises(MissingArtifact) as caught:
            pipeline.make(stage)
        message = str(caught.value)
        assert "no finished classifier" in message
        assert str(pipeline.artifact("classifier").directory) in message
        command = re.search(r"Run:  (.+?)     or add upstream=build", message)
        assert command is not None
        kept = [override for override in pipeline.overrides if override != "upstream=require"]
        assert shlex.split(command.group(1)) == ["python", "train.py", *kept]
    assert not Path(pipeline.config.paths.artifacts).exists()


def test_the_first_missing_stage_is_the_one_named(tiny_pipeline: MakePipeline, finished: Pipeline, tmp_path: Path):
    pipeline = tiny_pipeline()
    for stage, script in (("classifier", "generate_seeds.py"), ("seeds", "refine.py")):
        tiny.adopt(pipeline, finished, stage)
        with pytest.raises(MissingArtifact, match=rf"no finished \w+ .*\n.*python {script}"):
            pipeline.make("segmenter")


def test_build_makes_what_is_missing_in_order(tiny_pipeline: MakePipeline):
    pipeline = tiny_pipeline("upstream=build")
    pipeline.make("labels")
    assert complete(pipeline) == {"classifier", "seeds", "labels"}
    written = [
        (pipeline.artifact(stage).directory / "manifest.json").stat().st_mtime_ns for stage in pipeline.order("labels")
    ]
    assert written == sorted(written)
    assert pipeline.made == complete(pipeline)


def test_what_is_complete_is_reused_and_said_to_be(
    finished: Pipeline, tiny_pipeline: MakePipeline, caplog: pytest.LogCaptureFixture
):
    store = Path(finished.config.paths.artifacts)
    before = tiny.files(store)
    again = tiny_pipeline(base=store.parent)
    with caplog.at_level(logging.INFO, logger="wsss"):
        again.make_all()
    assert again.made == set()
    assert tiny.files(store) == before
    for stage in tiny.STAGES:
        assert f"{stage}: reusing {again.artifact(stage).directory}" in caplog.text


def test_force_redoes_this_stage_alone(finished: Pipeline, tiny_pipeline: MakePipeline, tmp_path: Path):
    shutil.copytree(Path(finished.config.paths.artifacts), tmp_path / "artifacts")
    before = tiny.files(tmp_path / "artifacts")
    pipeline = tiny_pipeline("force=true")
    pipeline.make("seeds")
    after = tiny.files(tmp_path / "artifacts")
    renewed = {name.split("/")[0] for name in after if not name.endswith(".lock") and after[name] != before.get(name)}
    assert renewed == {"seeds"}
    assert not set(before.items()) & {item for item in after.items() if "/maps/" in item[0]}
    assert tiny.results(pipeline.artifact("seeds")) == tiny.results(finished.artifact("seeds"))
    pipeline.make_all()
    assert pipeline.made == ALL


def test_a_forced_run_that_fails_costs_nothing_of_what_was_there(
    finished: Pipeline, tiny_pipeline: MakePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pipeline = tiny_pipeline("force=true")
    tiny.adopt(pipeline, finished, *tiny.STAGES)
    before = tiny.files(tmp_path / "artifacts")
    with monkeypatch.context() as patch:
        killed_at(patch, Artifact, "write_mask", 3)
        with pytest.raises(Killed):
            pipeline.make("labels")
    assert complete(pipeline) == ALL
    after = tiny.files(tmp_path / "artifacts")
    assert {file: after[file] for file in after if not file.endswith(".lock")} == before


def test_a_forced_run_that_was_killed_is_finished_by_the_next(
    finished: Pipeline, tiny_pipeline: MakePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pipeline = tiny_pipeline("force=true")
    tiny.adopt(pipeline, finished, *tiny.STAGES)
    with monkeypatch.context() as patch:
        killed_at(patch, Artifact, "write_mask", 3)
        patch.setattr(Artifact, "restore", lambda artifact: None)  # a killed process cleans up nothing
        with pytest.raises(Killed):
            pipeline.make("labels")
    assert complete(pipeline) == ALL - {"labels"}
    artifact = tiny_pipeline().make("labels")
    assert tiny.results(artifact) == tiny.results(finished.artifact("labels"))
    assert {path.name for path in (tmp_path / "artifacts" / "labels").glob("*/")} == {artifact.fingerprint}


def test_every_object_is_built_before_any_work(tiny_pipeline: MakePipeline):
    pipeline = tiny_pipeline("upstream=build", "refiner.labelling.background=2")
    with pytest.raises(ConfigError, match="background"):
        pipeline.make("labels")
    assert not Path(pipeline.config.paths.artifacts).exists()


def test_the_ceiling_is_recorded_where_it_is_known(tiny_pipeline: MakePipeline, finished: Pipeline):
    assert "ceiling" not in finished.artifact("segmenter").metrics
    tiny.adopt(tiny_pipeline(), finished, "classifier", "seeds", "labels")
    full = tiny_pipeline("labels=ground_truth").make("segmenter")
    assert full.manifest["supervision"] == "train masks"
    assert full.manifest["upstream"] == {}
    weak = tiny_pipeline().make("segmenter")
    assert weak.metrics["ceiling"] == full.metrics["miou"]
    assert "ceiling" not in full.metrics


# --- determinism ------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes(finished: Pipeline, tiny_pipeline: MakePipeline):
    """Four scripts give what one ``python -m wsss`` gives, whatever ran before in the process."""
    for stage in tiny.STAGES:
        torch.rand(7)
        artifact = tiny_pipeline().make(stage)
        assert tiny.results(artifact) == tiny.results(finished.artifact(stage)), stage


def test_another_seed_gives_other_results(finished: Pipeline, tiny_pipeline: MakePipeline):
    other = tiny_pipeline("seed=1")
    other.make_all()
    for stage in tiny.STAGES:
        results, expected = tiny.results(other.artifact(stage)), tiny.results(finished.artifact(stage))
        assert set(results) == set(expected)
        assert results != expected, stage
        assert results.get("weights.safetensors", b"") != expected.get("weights.safetensors"), stage


def test_loader_processes_change_nothing(finished: Pipeline, tiny_pipeline: MakePipeline):
    pipeline = tiny_pipeline("workers=2", "upstream=build")
    pipeline.make("seeds")
    for stage in ("classifier", "seeds"):
        assert tiny.results(pipeline.artifact(stage)) == tiny.results(finished.artifact(stage)), stage


# --- resume -----------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for the end of the process."""


def killed_at(patch: pytest.MonkeyPatch, owner: type, name: str, call: int) -> None:
    """Let the ``call``-th call of a method end the run."""
    original, calls = getattr(owner, name), 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Killed
        return original(*arguments, **options)

    patch.setattr(owner, name, counted)


STEPS = len(tiny.TRAIN) // 2  # per epoch, at batch size 2
INTERRUPTIONS = {
    "classifier, first epoch": ("classifier", ClassifierShell, "training_step", 2),
    "classifier, second epoch": ("classifier", ClassifierShell, "training_step", STEPS + 2),
    "classifier, validation": ("classifier", ClassifierShell, "validation_step", 2),
    "classifier, last checkpoint": ("classifier", Artifact, "write_weights", 1),
    "classifier, manifest": ("classifier", Artifact, "publish", 1),
    "seeds, maps": ("seeds", Artifact, "write_seeds", 4),
    "seeds, evaluation": ("seeds", ThresholdCurve, "update", 3),
    "labels, masks": ("labels", Artifact, "write_mask", 4),
    "labels, manifest": ("labels", Artifact, "publish", 1),
    "segmenter, second epoch": ("segmenter", SegmenterShell, "training_step", STEPS + 2),
    "segmenter, predictions": ("segmenter", Artifact, "write_mask", 2),
    "segmenter, manifest": ("segmenter", Artifact, "publish", 1),
}


@pytest.mark.parametrize("moment", INTERRUPTIONS)
def test_a_killed_stage_goes_on_to_the_same_result(
    moment: str, finished: Pipeline, tiny_pipeline: MakePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    stage, owner, name, call = INTERRUPTIONS[moment]
    pipeline = tiny_pipeline()
    tiny.adopt(pipeline, finished, *pipeline.order(stage)[:-1])
    with monkeypatch.context() as patch:
        killed_at(patch, owner, name, call)
        with pytest.raises(Killed):
            pipeline.make(stage)
    artifact = pipeline.artifact(stage)
    assert not artifact.complete
    before = tiny.files(artifact.directory)

    again = tiny_pipeline()
    again.make(stage)
    assert again.made == {stage}
    assert tiny.results(artifact) == tiny.results(finished.artifact(stage))
    after = tiny.files(artifact.directory)
    kept = {file for file in before if file.startswith(("maps/", "masks/"))}
    if name in ("write_seeds", "write_mask") and stage != "segmenter":
        assert len(kept) == call - 1
    assert {file: after[file] for file in kept} == {file: before[file] for file in kept}


def test_the_time_of_an_interrupted_run_counts(
    finished: Pipeline, tiny_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch
):
    pipeline = tiny_pipeline()
    tiny.adopt(pipeline, finished, "classifier", "seeds")
    whole = STAGES["labels"]

    def interrupted(*arguments: Any) -> None:
        whole.run(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setitem(STAGES, "labels", replace(whole, run=interrupted))
    with pytest.raises(KeyboardInterrupt):
        pipeline.make("labels")
    artifact = pipeline.artifact("labels")
    artifact.add_seconds(50)
    monkeypatch.setitem(STAGES, "labels", whole)
    pipeline.make("labels")
    first, told, last = artifact.manifest["wall_parts"]
    assert told == 50
    assert artifact.manifest["wall_seconds"] == pytest.approx(first + told + last, abs=0.2)


@pytest.mark.parametrize(("network", "owner"), [("classifier", ClassifierShell), ("segmenter", SegmenterShell)])
def test_the_best_weights_survive_an_interruption(
    network: str, owner: type, tiny_pipeline: MakePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """``keep=best_val``: killed in the last epoch, and once more after training, before the artifact is complete."""
    overrides = (f"recipe.{network}.keep=best_val", f"recipe.{network}.epochs=3", "labels=ground_truth")
    expected = tiny_pipeline(*overrides, base=tmp_path / "whole").make(network)
    for where, name, call in ((owner, "training_step", 2 * STEPS + 2), (Artifact, "publish", 1)):
        with monkeypatch.context() as patch:
            killed_at(patch, where, name, call)
            with pytest.raises(Killed):
                tiny_pipeline(*overrides).make(network)
    resumed = tiny_pipeline(*overrides).make(network)
    assert tiny.results(resumed) == tiny.results(expected)
    assert "checkpoint" in resumed.manifest["supervision"]


@pytest.mark.parametrize("workers", [0, 1])
def test_training_goes_on_from_its_last_epoch(
    workers: int, finished: Pipeline, tiny_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch
):
    """Loader processes read ahead: they too must begin with the views of the epoch that the run goes on with."""
    with monkeypatch.context() as patch:
        killed_at(patch, ClassifierShell, "training_step", STEPS + 2)
        with pytest.raises(Killed):
            tiny_pipeline(f"workers={workers}").make("classifier")
    steps, step = [], ClassifierShell.training_step
    monkeypatch.setattr(ClassifierShell, "training_step", lambda *args: steps.append(1) or step(*args))
    artifact = tiny_pipeline(f"workers={workers}").make("classifier")
    assert len(steps) == STEPS
    assert tiny.results(artifact) == tiny.results(finished.artifact("classifier"))


def test_what_a_killed_process_left_half_written_is_dropped(finished: Pipeline, tiny_pipeline: MakePipeline):
    pipeline = tiny_pipeline()
    directory = pipeline.artifact("seeds").directory
    tiny.adopt(pipeline, finished, "classifier")
    (directory / "maps").mkdir(parents=True)
    (directory / "maps" / f"{tiny.TRAIN[0]}.npz.4711.partial").write_bytes(b"half")
    pipeline.make("seeds")
    assert not list(directory.rglob("*.partial"))
    assert tiny.results(pipeline.artifact("seeds")) == tiny.results(finished.artifact("seeds"))


# --- two at once ------------------------------------------------------------------------------------------------------


def test_a_second_run_waits_for_the_first_and_reuses_its_result(
    finished: Pipeline, tiny_pipeline: MakePipeline, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, logger="wsss")
    second = tiny_pipeline()
    artifact = second.artifact("classifier")
    with artifact.locked():
        thread = threading.Thread(target=second.make, args=("classifier",))
        thread.start()
        while "waiting: process" not in caplog.text and thread.is_alive():
            thread.join(timeout=0.05)
        assert thread.is_alive()
        tiny.adopt(second, finished, "classifier")
        before = tiny.files(artifact.directory)
    thread.join(timeout=30)
    assert not thread.is_alive()
    assert second.made == set()
    assert "reusing" in caplog.text
    assert tiny.files(artifact.directory) == before


# --- bad input --------------------------------------------------------------------------------------------------------


def rewrite(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def wrong_size(root: Path) -> Path:
    path = root / "SegmentationClass" / f"{tiny.TRAIN[2]}.png"
    Image.new("L", (10, 10), 3).save(path)
    return path


def wrong_value(root: Path) -> Path:
    path = root / "SegmentationClass" / f"{tiny.TRAIN[2]}.png"
    mask = np.array(Image.open(path))
    mask[0, 0] = 77
    Image.fromarray(mask).save(path)
    return path


def truncated(root: Path, id: str) -> Path:
    path = root / "JPEGImages" / f"{id}.jpg"
    return rewrite(path, path.read_bytes()[:700])


def untagged(root: Path) -> Path:
    for path in (root / "SegmentationClass").glob("train_*.png"):
        Image.fromarray(np.zeros_like(np.array(Image.open(path)))).save(path)
    return root


BAD: dict[str, tuple[Callable[[Path], Path], list[str], str]] = {
    "id without an image": (
        lambda root: rewrite(root / "ImageSets" / "Segmentation" / "train.txt", f"{tiny.TRAIN[0]}\nghost\n"),
        [],
        "ghost",
    ),
    "no such split": (
        lambda root: root / "ImageSets" / "Segmentation" / "trainaug.txt",
        ["data.train=trainaug"],
        "val",
    ),
    "empty split": (lambda root: rewrite(root / "ImageSets" / "Segmentation" / "val.txt", ""), [], "names no image"),
    "training image of noise": (
        lambda root: rewrite(root / "JPEGImages" / f"{tiny.TRAIN[1]}.jpg", b"no image"),
        [],
        "does not decode",
    ),
    "training image cut short": (lambda root: truncated(root, tiny.TRAIN[1]), [], "does not decode"),
    "training image, with loader processes": (
        lambda root: truncated(root, tiny.TRAIN[1]),
        ["workers=1"],
        "does not decode",
    ),
    "validation image cut short": (lambda root: truncated(root, tiny.VAL[1]), [], "does not decode"),
    "mask of another size": (wrong_size, [], "10x10"),
    "mask with a strange value": (wrong_value, [], "77"),
    "mask missing": (
        lambda root: (path := root / "SegmentationClass" / f"{tiny.TRAIN[2]}.png").unlink() or path,
        [],
        "no mask",
    ),
    "no tag anywhere": (untagged, [], "nothing to learn"),
    "mask of noise": (
        lambda root: rewrite(root / "SegmentationClass" / f"{tiny.VAL[2]}.png", b"no mask"),
        [],
        "does not decode",
    ),
    "unknown class": (
        lambda root: rewrite(
            root / "Annotations" / f"{tiny.TRAIN[0]}.xml", "<a><object><name>squaer</name></object></a>"
        ),
        ["data.tags=xml"],
        "Did you mean 'square'?",
    ),
    "broken annotation": (
        lambda root: rewrite(root / "Annotations" / f"{tiny.VAL[0]}.xml", "<annotation>"),
        ["data.tags=xml"],
        "no valid XML",
    ),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_input_is_told_with_the_file_and_completes_nothing(
    fault: str, tiny_pipeline: MakePipeline, own_set: Path, tmp_path: Path
):
    spoil, overrides, told = BAD[fault]
    path = spoil(own_set)
    with pytest.raises(DataError) as caught:
        tiny_pipeline(*overrides, root=own_set).make("classifier")
    message = str(caught.value)
    assert str(path) in message
    assert told in message
    assert "\n" not in message
    assert not list(tmp_path.rglob("manifest.json"))


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_input_ends_a_script_with_code_2_and_one_line(workers: int, own_set: Path, tmp_path: Path):
    path = truncated(own_set, tiny.VAL[1])
    code, output = tiny.call("train.py", *tiny.command(own_set, tmp_path, f"workers={workers}"))
    assert code == 2, output
    (line,) = output[output.index("ERROR") :].splitlines()
    assert line.startswith(f"ERROR DataError: the image {path} does not decode")
    assert "Traceback" not in output


def test_a_mended_image_is_all_it_takes_to_go_on(
    finished: Pipeline, tiny_pipeline: MakePipeline, own_set: Path, tiny_set: Path
):
    path = truncated(own_set, tiny.TRAIN[1])
    with pytest.raises(DataError, match=re.escape(str(path))):
        tiny_pipeline(root=own_set).make("classifier")
    shutil.copy(tiny_set / "JPEGImages" / path.name, path)
    artifact = tiny_pipeline(root=own_set).make("classifier")
    assert tiny.results(artifact) == tiny.results(finished.artifact("classifier"))


def test_ground_truth_without_masks_is_refused_before_any_work(tiny_pipeline: MakePipeline, own_set: Path):
    shutil.rmtree(own_set / "SegmentationClass")
    pipeline = tiny_pipeline("data.tags=xml", "labels=ground_truth", root=own_set)
    with pytest.raises(ConfigError, match="labels=ground_truth needs true masks"):
        pipeline.make("segmenter")
    assert not Path(pipeline.config.paths.artifacts).exists()


def test_a_set_without_masks_goes_through_all_stages(tiny_pipeline: MakePipeline, own_set: Path):
    shutil.rmtree(own_set / "SegmentationClass")
    pipeline = tiny_pipeline("data.tags=xml", root=own_set)
    pipeline.make_all()
    assert complete(pipeline) == ALL
    for stage in ("seeds", "labels", "segmenter"):
        assert pipeline.artifact(stage).metrics["miou"] is None
    assert pipeline.artifact("classifier").manifest["data"]["tags"] == "xml"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:100]),
        lambda path: np.savez(
            path.open("wb"), class_ids=np.uint8([1]), scores=np.ones((2, 3, 4)), size=np.int32([9, 9])
        ),
        lambda path: np.savez(
            path.open("wb"), class_ids=np.uint8([1]), scores=np.full((1, 3, 4), np.nan), size=[12, 16]
        ),
    ],
    ids=["missing", "cut short", "mismatched", "not a number"],
)
def test_broken_seeds_are_named_with_the_remedy(
    spoil: Callable[[Path], object], finished: Pipeline, tiny_pipeline: MakePipeline
):
    pipeline = tiny_pipeline()
    tiny.adopt(pipeline, finished, "classifier", "seeds")
    path = pipeline.artifact("seeds").directory / "maps" / f"{tiny.TRAIN[3]}.npz"
    spoil(path)
    with pytest.raises(CorruptArtifact, match=re.escape(str(path))) as caught:
        pipeline.make("labels")
    assert "run its stage again" in str(caught.value)
    assert not pipeline.artifact("labels").complete

    shutil.rmtree(pipeline.artifact("seeds").directory)  # the remedy
    pipeline.make("seeds")
    pipeline.make("labels")
    assert tiny.results(pipeline.artifact("labels")) == tiny.results(finished.artifact("labels"))


def test_an_image_without_tags_goes_through_all_stages(finished: Pipeline):
    seeds = finished.artifact("seeds").read_seeds(tiny.UNTAGGED)
    assert seeds.scores.shape == (0, tiny.HEIGHT // 4, tiny.WIDTH // 4)
    assert seeds.size == (tiny.HEIGHT, tiny.WIDTH)
    mask = finished.artifact("labels").read_mask(tiny.UNTAGGED)
    assert mask.shape == (tiny.HEIGHT, tiny.WIDTH)
    assert not mask.any()


def test_with_labels_leaves_the_pipeline_itself_alone(finished: Pipeline):
    full = finished.with_labels(Labels.ground_truth)
    assert full.config.labels is Labels.ground_truth
    assert finished.config.labels is Labels.refined
    assert full.fingerprint("classifier") == finished.fingerprint("classifier")


def test_what_the_test_alone_reads_does_not_decide_the_weights(tiny_pipeline: MakePipeline):
    one, other = tiny_pipeline(), tiny_pipeline("evaluation.flip=false", "evaluation.scales=[0.5]")
    assert one.fingerprint("segmenter") != other.fingerprint("segmenter")
    assert one.training_fingerprint("segmenter") == other.training_fingerprint("segmenter")
    longer = tiny_pipeline("recipe.segmenter.epochs=3")
    assert one.training_fingerprint("segmenter") != longer.training_fingerprint("segmenter")


def test_another_test_of_the_first_segmenter_does_not_move_what_it_labels(tiny_pipeline: MakePipeline):
    one, other = (tiny_pipeline("labels=predicted", f"evaluation.flip={flip}") for flip in ("true", "false"))
    assert one.fingerprint("teacher") != other.fingerprint("teacher")
    assert one.fingerprint("relabels") == other.fingerprint("relabels")


@pytest.mark.parametrize(
    ("change", "moves"),
    [
        ("recipe.classifier.iterations=null", False),
        ("recipe.classifier.accumulate=1", False),
        ("recipe.classifier.accumulate=2", True),
        ("recipe.classifier.bias_lr_factor=2", True),
    ],
)
def test_keys_that_came_later_move_no_fingerprint_until_they_are_used(
    change: str, moves: bool, tiny_pipeline: MakePipeline
):
    one, other = tiny_pipeline(), tiny_pipeline(change)
    assert (one.fingerprint("classifier") != other.fingerprint("classifier")) is moves
    assert "accumulate" not in one.read_config("classifier")["recipe.classifier"]


def test_a_forced_training_that_was_killed_is_not_undone(tiny_pipeline: MakePipeline, finished: Pipeline):
    """What it had set aside holds the weights of before: the next run goes on from the checkpoint."""
    pipeline = tiny_pipeline()
    tiny.adopt(pipeline, finished, *tiny.STAGES)
    artifact = pipeline.artifact("segmenter")
    checkpoint = artifact.checkpoint.read_bytes()
    artifact.set_aside()
    artifact.prepare()
    assert pipeline._trained("segmenter") is None
    artifact.checkpoint.write_bytes(checkpoint)
    assert "weights_of" not in pipeline.make("segmenter").manifest["facts"]


def test_a_second_force_keeps_what_a_killed_one_had_set_aside(tiny_pipeline: MakePipeline, finished: Pipeline):
    pipeline = tiny_pipeline()
    tiny.adopt(pipeline, finished, *tiny.STAGES)
    artifact = pipeline.artifact("segmenter")
    manifest = artifact.manifest
    artifact.set_aside()
    artifact.prepare()  # killed here
    artifact.set_aside()
    artifact.restore()
    assert artifact.manifest == manifest


def test_of_several_tests_the_weights_trained_last_are_taken(tiny_pipeline: MakePipeline, finished: Pipeline):
    pipeline = tiny_pipeline("evaluation.scales=[0.5]")
    stage = pipeline.artifact("segmenter").directory.parent
    source = finished.artifact("segmenter").directory
    facts = {
        "a" * 12: {"created": "2026-01-02", "facts": {}},
        "b" * 12: {"created": "2026-01-03", "facts": {}},
        "c" * 12: {"created": "2026-01-04", "facts": {"weights_of": "a" * 12}},
        "d" * 12 + ".old": {"created": "2026-01-05", "facts": {}},
        "e" * 12: None,
    }
    for name, change in facts.items():
        shutil.copytree(source, stage / name)
        manifest = json.loads((source / "manifest.json").read_text())
        (stage / name / "manifest.json").write_text("{" if change is None else json.dumps(manifest | change))
    assert pipeline._trained("segmenter").fingerprint == "b" * 12


def test_what_an_earlier_stage_was_chosen_with_is_declared_by_the_later_ones(tiny_pipeline: MakePipeline):
    pipeline = tiny_pipeline("recipe.classifier.keep=best_val", "upstream=build", "evaluation.tags=true")
    pipeline.make("segmenter")
    for stage in tiny.STAGES:
        supervision = pipeline.artifact(stage).manifest["supervision"]
        assert supervision.startswith("image tags (from masks); val tags (checkpoint)")
        assert ("(inference)" in supervision) is (stage == "segmenter")
