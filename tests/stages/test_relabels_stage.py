"""A round of self-training: a first segmenter labels the training images, a second one learns from that."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from conftest import MakePipeline
from torch import Tensor, nn

from wsss.build import build
from wsss.config import Labels
from wsss.data.transforms import to_tensor
from wsss.inference import Inference, inference_of
from wsss.pipeline import TEACHER, Pipeline
from wsss.stages.relabels import Parts, relabel
from wsss.training.shells import to_unit

ORDER = ("classifier", "seeds", "labels", TEACHER, "relabels", "segmenter")


@pytest.fixture
def adopted(tiny_pipeline: MakePipeline, finished: Pipeline) -> Pipeline:
    """The first segmenter and all before it are there."""
    pipeline = tiny_pipeline("labels=predicted")
    tiny.adopt(pipeline.teacher, finished, *tiny.STAGES)
    return pipeline


class Pointwise(nn.Module):
    """Probabilities of three labels from the three colours of a pixel."""

    def forward(self, images: Tensor) -> Tensor:
        return images.clamp(min=1e-9).log()


def parts() -> Parts:
    return Parts(Pointwise(), Inference())


def seen(*pixels: tuple[int, int, int], class_ids: tuple[int, ...], confidence: float = 0.0) -> list[int]:
    picture = np.array([pixels], dtype=np.uint8)
    return relabel(parts(), picture, class_ids, confidence=confidence, device=torch.device("cpu"))[0].tolist()


# --- one image --------------------------------------------------------------------------------------------------------


def test_a_class_without_a_tag_does_not_come_out() -> None:
    pixels = (200, 40, 15), (60, 45, 150), (30, 75, 150)
    assert seen(*pixels, class_ids=(1, 2)) == [0, 2, 2]
    assert seen(*pixels, class_ids=(1,)) == [0, 0, 1]
    assert seen(*pixels, class_ids=()) == [0, 0, 0]


def test_unsure_pixels_are_ignored() -> None:
    """Probabilities 0.5 and 0.9 of the winner; without class 2 the first is 0.5 of 0.8."""
    pixels = (125, 75, 50), (10, 225, 15)
    assert seen(*pixels, class_ids=(1, 2), confidence=0.6) == [255, 1]
    assert seen(*pixels, class_ids=(1,), confidence=0.6) == [0, 1]
    assert seen(*pixels, class_ids=(1, 2), confidence=0.95) == [255, 255]


class Contrary:
    """A CRF that gives every pixel to the last label."""

    def posteriors(self, image: np.ndarray, probabilities: list[np.ndarray]) -> list[np.ndarray]:
        return [np.arange(len(unary))[:, None, None] * np.ones_like(unary) for unary in probabilities]

    def to(self, device: str) -> bool:
        return False


def test_the_confidence_is_that_of_the_label_that_is_kept() -> None:
    """The CRF turns (0.8, 0.2) and (0.3, 0.7) both into class 1."""
    picture, device = np.array([[(204, 51, 0), (76, 179, 0)]], dtype=np.uint8), torch.device("cpu")
    contrary = Parts(Pointwise(), Inference(crf=Contrary()))
    assert relabel(contrary, picture, (1,), confidence=0.5, device=device)[0].tolist() == [255, 1]


# --- the stage --------------------------------------------------------------------------------------------------------


def test_the_order_of_the_stages(adopted: Pipeline) -> None:
    assert adopted.order("segmenter") == ORDER
    assert adopted.artifact(TEACHER) == adopted.with_labels(Labels.refined).artifact("segmenter")
    assert adopted.fingerprint("segmenter") != adopted.fingerprint(TEACHER)


def test_the_second_segmenter_learns_from_what_the_first_sees(adopted: Pipeline) -> None:
    final = adopted.make("segmenter")
    labels = adopted.artifact("relabels")
    assert adopted.made == {"relabels", "segmenter"}, "the finished first segmenter is the teacher"
    assert labels.manifest["upstream"] == {TEACHER: adopted.fingerprint(TEACHER)}
    assert final.manifest["upstream"] == {"relabels": labels.fingerprint}
    assert final.manifest["supervision"] == labels.manifest["supervision"] == "image tags (from masks)"
    assert set(labels.metrics) >= {"miou", "miou_ignored", "iou", "ignored"}
    network = build(adopted.config, "segmenter", num_labels=4, weights=None).eval()
    adopted.artifact(TEACHER).read_weights(network)
    inference = inference_of(adopted.config, "self_training")
    assert inference.crf is not None
    for id in tiny.TRAIN:
        picture, allowed = adopted.data.image(id), adopted.data.class_ids(id)
        wanted = inference.labels(network, to_unit(to_tensor(picture)), picture=picture, allowed=allowed)
        assert np.array_equal(labels.read_mask(id), wanted)


def test_all_is_built_from_nothing(tiny_pipeline: MakePipeline, tmp_path: Path) -> None:
    pipeline = tiny_pipeline(
        "labels=predicted", "upstream=build", f"paths.artifacts={tmp_path}", "recipe.segmenter.epochs=1"
    )
    pipeline.make("segmenter")
    assert all(pipeline.artifact(stage).complete for stage in ORDER)
    assert pipeline.made == set(ORDER)


def test_finished_images_stay(adopted: Pipeline) -> None:
    """As after a kill: a mask that is there is not made again."""
    adopted.make("relabels")
    artifact = adopted.artifact("relabels")
    (artifact.directory / "manifest.json").unlink()
    first, second = tiny.TRAIN[:2]
    before = artifact.read_mask(second)
    artifact.write_mask(first, np.full_like(artifact.read_mask(first), 3))
    (artifact.directory / "masks" / f"{second}.png").unlink()
    adopted.make("relabels")
    assert (artifact.read_mask(first) == 3).all()
    assert np.array_equal(artifact.read_mask(second), before)


@pytest.mark.parametrize(
    ("change", "moved"),
    [
        ("self_training.flip=false", {"relabels", "segmenter"}),
        ("self_training.confidence=0.5", {"relabels", "segmenter"}),
        ("recipe.segmenter.epochs=3", {TEACHER, "relabels", "segmenter"}),
    ],
)
def test_what_moves_which_fingerprint(change: str, moved: set[str], tiny_pipeline: MakePipeline) -> None:
    one, other = tiny_pipeline("labels=predicted"), tiny_pipeline("labels=predicted", change)
    assert {stage for stage in ORDER if one.fingerprint(stage) != other.fingerprint(stage)} == moved


def test_settings_of_self_training_do_not_move_other_runs(tiny_pipeline: MakePipeline) -> None:
    one, other = tiny_pipeline(), tiny_pipeline("self_training.confidence=0.5")
    assert one.fingerprint("segmenter") == other.fingerprint("segmenter")
