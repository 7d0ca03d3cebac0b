from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from conftest import MakePipeline
from torch import Tensor, nn
from torch.nn import functional as F

from wsss.config import check
from wsss.errors import ConfigError
from wsss.inference import AT_ONCE, Inference, inference_of
from wsss.metrics import BoundaryFScore
from wsss.pipeline import Pipeline
from wsss.refine import Crf
from wsss.refine.crf import dense_crf


class Pointwise(nn.Module):
    """Logits that depend on the pixel alone, so that a mirrored image has the mirrored logits."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(images[:, :1]), 4 * images[:, :2] - 2], dim=1)


class Leaning(Pointwise):
    """Prefers label 2 on the right: not symmetric."""

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        logits[:, 2] += torch.linspace(-3, 3, images.shape[-1])
        return logits


class ByWidth(nn.Module):
    """Gives the same probabilities everywhere, chosen by the width of the view."""

    def __init__(self, probabilities: dict[int, tuple[float, ...]]) -> None:
        super().__init__()
        self.probabilities = probabilities

    def forward(self, images: Tensor) -> Tensor:
        row = torch.tensor(self.probabilities[images.shape[-1]]).log()
        return row.view(1, -1, 1, 1).expand(len(images), -1, *images.shape[-2:])


class Recorder(Leaning):
    """Keeps the shapes it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.shapes.append(tuple(images.shape))
        return super().forward(images)


def constant(*logits: float) -> nn.Module:
    """A network that gives these logits at every pixel."""

    class Constant(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.tensor(logits).view(1, -1, 1, 1).expand(len(images), -1, *images.shape[-2:])

    return Constant()


def labels_of(network: nn.Module, image: Tensor, **settings: object) -> Tensor:
    return torch.from_numpy(Inference(**settings).labels(network, image))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# --- views ------------------------------------------------------------------------------------------------------------


def test_labels_by_hand() -> None:
    """Logits are (0, 4 r - 2, 4 g - 2): red above one half is label 1, green 2, both low 0."""
    image = torch.tensor([[[1.0, 0.1, 0.2]], [[0.0, 0.9, 0.2]], [[0.0, 0.0, 0.0]]])
    labels = Inference().labels(Pointwise(), image)
    assert labels.tolist() == [[1, 2, 0]]
    assert labels.dtype == np.uint8


def test_probabilities_by_hand() -> None:
    """One view says (0.5, 0.25, 0.25), the other (0.25, 0.25, 0.5)."""
    network = ByWidth({64: (0.5, 0.25, 0.25), 32: (0.25, 0.25, 0.5)})
    found = Inference(scales=(1.0, 0.5)).probabilities(network, noise(3, 64, 64))
    assert found.shape == (3, 64, 64)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    torch.testing.assert_close(found[:, 10, 20], torch.tensor([0.375, 0.25, 0.375]))


def test_a_symmetric_network_gains_nothing_from_flips() -> None:
    image = noise(3, 33, 41)
    assert torch.equal(labels_of(Pointwise(), image, flip=True), labels_of(Pointwise(), image))


def test_with_flips_a_mirrored_image_has_mirrored_labels() -> None:
    image = noise(3, 40, 33)
    scales = (0.8, 1.0, 1.5)
    plain, flipped = (labels_of(Leaning(), image, scales=scales, flip=flip) for flip in (False, True))
    assert torch.equal(labels_of(Leaning(), image.flip(-1), scales=scales, flip=True), flipped.flip(-1))
    assert not torch.equal(labels_of(Leaning(), image.flip(-1), scales=scales), plain.flip(-1))


def test_probabilities_are_averaged_over_scales() -> None:
    """Each sum is beside its line. Averaged logits would be pulled down by the one view that rules a label out."""
    network = ByWidth({64: (0.6, 0.3, 0.1), 32: (0.05, 0.5, 0.45), 96: (0.001, 0.2, 0.799)})
    image = noise(3, 64, 64)
    assert labels_of(network, image).unique().tolist() == [0]
    assert labels_of(network, image, scales=(0.5,)).unique().tolist() == [1]
    assert labels_of(network, image, scales=(1.0, 0.5)).unique().tolist() == [1]  # 0.65, 0.8, 0.55
    assert labels_of(network, image, scales=(1.0, 0.5, 1.5)).unique().tolist() == [2]  # 0.651, 1.0, 1.349
    # 1.201, 0.8, 0.999; by logits it would be label 1, since the last view all but rules 0 out
    assert labels_of(network, image, scales=(1.0, 1.0, 1.5)).unique().tolist() == [0]


def test_scales_keep_the_size_and_the_place() -> None:
    image = torch.zeros(3, 40, 60)
    image[0, :, 30:] = 1
    labels = labels_of(Pointwise(), image, scales=(1.0, 0.8, 1.5), flip=True)
    assert labels.shape == (40, 60)
    assert not labels[:, :29].any()
    assert (labels[:, 31:] == 1).all()


def test_a_view_has_at_least_32_pixels_a_side() -> None:
    network = ByWidth({32: (1.0, 0.0)})
    assert labels_of(network, noise(3, 40, 40), scales=(0.1,)).shape == (40, 40)


@pytest.mark.parametrize("flip", [False, True])
def test_whole_views_equal_a_literal_loop_to_the_bit(flip: bool) -> None:
    """Published numbers were measured with these operations in this order."""
    network = nn.Conv2d(3, 5, kernel_size=3, padding=1)
    image, total = noise(3, 45, 61), torch.zeros(1, 5, 45, 61)
    with torch.no_grad():
        for scale, side in ((1, (45, 61)), (0.75, (34, 46)), (1.25, (56, 76))):
            view = image[None]
            if scale != 1:
                view = F.interpolate(view, size=side, mode="bilinear", align_corners=False, antialias=scale < 1)
            if flip:
                both = network(torch.cat([view, view.flip(-1)])).softmax(dim=1)
                seen = both[:1] + both[1:].flip(-1)
            else:
                seen = network(view).softmax(dim=1)
            if scale != 1:
                seen = F.interpolate(seen, size=(45, 61), mode="bilinear", align_corners=False)
            total = total + seen
    inference = Inference(scales=(1.0, 0.75, 1.25), flip=flip)
    assert torch.equal(torch.from_numpy(inference.labels(network, image)), total[0].argmax(dim=0).to(torch.uint8))
    torch.testing.assert_close(inference.probabilities(network, image), total[0] / (6 if flip else 3))


# --- windows ----------------------------------------------------------------------------------------------------------


def test_windows_by_hand() -> None:
    """80 pixels, windows of 32 that overlap by half: they begin at 0, 16, 32 and 48, and the last one ends at 80."""
    network = Recorder()
    Inference(window=32, overlap=0.5).labels(network, noise(3, 20, 80))
    assert network.shapes == [(4, 3, 20, 32)]


def test_few_windows_at_once_and_the_last_one_ends_with_the_view() -> None:
    network = Recorder()
    Inference(window=32, overlap=0, flip=True).labels(network, noise(3, 70, 33))
    assert network.shapes == [(4, 3, 32, 32)] * 3  # rows 0, 32, 38; columns 0, 1; and each mirrored
    assert max(shape[0] for shape in network.shapes) <= AT_ONCE


@pytest.mark.parametrize("overlap", [0, 1 / 3, 0.9])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("scales", [(1.0,), (0.8, 1.5)])
def test_a_network_that_sees_single_pixels_does_not_notice_windows(
    overlap: float, flip: bool, scales: tuple[float, ...]
) -> None:
    image = noise(3, 70, 101)
    whole = Inference(scales=scales, flip=flip).probabilities(Pointwise(), image)
    windows = Inference(scales=scales, flip=flip, window=32, overlap=overlap).probabilities(Pointwise(), image)
    torch.testing.assert_close(windows, whole)


def test_an_image_smaller_than_the_window_goes_whole() -> None:
    network, image = Recorder(), noise(3, 40, 50)
    small = Inference(window=64).probabilities(network, image)
    assert network.shapes == [(1, 3, 40, 50)]
    assert torch.equal(small, Inference().probabilities(network, image))


def test_windows_equal_a_loop_over_them() -> None:
    network, image = Leaning(), noise(3, 50, 72)
    total, count = torch.zeros(3, 50, 72), torch.zeros(50, 72)
    for y in (0, 18):
        for x in (0, 21, 40):  # steps of 32 (1 - 1/3)
            crop = image[None, :, y : y + 32, x : x + 32]
            mirrored = network(crop.flip(-1)).softmax(dim=1).flip(-1)
            total[:, y : y + 32, x : x + 32] += (network(crop).softmax(dim=1) + mirrored)[0] / 2
            count[y : y + 32, x : x + 32] += 1
    found = Inference(window=32, flip=True).probabilities(network, image)
    torch.testing.assert_close(found, total / count)


# --- allowed labels ---------------------------------------------------------------------------------------------------


def test_only_allowed_labels_come_out_and_background_always_may() -> None:
    network, image = constant(0.1, 0.3, 0.2), noise(3, 4, 5)
    assert np.unique(Inference().labels(network, image)).tolist() == [1]
    assert np.unique(Inference().labels(network, image, allowed=[2])).tolist() == [2]
    assert np.unique(Inference().labels(network, image, allowed=[])).tolist() == [0]
    found = Inference().probabilities(network, image, allowed=[2])
    assert not found[1].any()
    torch.testing.assert_close(found[:, 0, 0], torch.tensor([0.1, -torch.inf, 0.2]).softmax(dim=0))
    assert torch.equal(Inference().probabilities(network, image, allowed=[])[0], torch.ones(4, 5))


def test_all_labels_allowed_is_no_restriction() -> None:
    image, inference = noise(3, 40, 33), Inference(scales=(1.0, 0.8), flip=True)
    restricted, free = (inference.probabilities(Leaning(), image, allowed=allowed) for allowed in ((1, 2), None))
    assert torch.equal(restricted, free)
    torch.testing.assert_close(free.sum(dim=0), torch.ones(40, 33))


def test_allowed_labels_without_any_probability_are_no_nan() -> None:
    network, image = constant(-1000.0, 1000.0, -1000.0), noise(3, 4, 5)
    found = Inference().probabilities(network, image, allowed=[2])
    assert found[:, 0, 0].tolist() == [0.5, 0, 0.5]
    assert not Inference().labels(network, image, allowed=[2]).any()


# --- CRF --------------------------------------------------------------------------------------------------------------


def test_the_crf_is_the_one_of_the_refiners() -> None:
    """Three labels, all likely: as if the probabilities had been handed to it."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (24, 30, 3), dtype=np.uint8)
    image = torch.from_numpy(picture).permute(2, 0, 1) / 255
    crf = Crf(iterations=3, bilateral_sxy=20, bilateral_srgb=20)
    found = Inference(crf=crf).labels(Pointwise(), image, picture=picture)
    probabilities = Inference().probabilities(Pointwise(), image).numpy()
    posterior = dense_crf(
        picture,
        probabilities,
        iterations=3,
        gaussian_sxy=1,
        gaussian_compat=3,
        bilateral_sxy=20,
        bilateral_srgb=20,
        bilateral_compat=4,
    )
    assert found.dtype == np.uint8
    assert (found == posterior.argmax(axis=0)).all()
    assert (found != probabilities.argmax(axis=0)).any()


def test_labels_are_decided_from_probabilities() -> None:
    picture, image = np.random.default_rng(0).integers(0, 256, (24, 30, 3), dtype=np.uint8), noise(3, 24, 30)
    for inference in (Inference(), Inference(crf=Crf(iterations=2, bilateral_sxy=20, bilateral_srgb=20))):
        decided = inference.decide(inference.probabilities(Pointwise(), image), picture=picture)
        assert (decided == inference.labels(Pointwise(), image, picture=picture)).all()


class Spy:
    """A CRF that changes nothing and keeps what it was given."""

    def posteriors(self, image: np.ndarray, probabilities: list[np.ndarray]) -> list[np.ndarray]:
        self.image, self.given = image, probabilities
        return probabilities

    def to(self, device: str) -> bool:
        self.device = device
        return True


def test_the_crf_sees_likely_labels_alone() -> None:
    """Label 2 is forbidden, label 1 unlikely: planes 0 and 3 are left, and come back under their own numbers."""
    picture, spy = np.zeros((4, 5, 3), np.uint8), Spy()
    network = constant(*np.log([0.2, 0.001, 0.4, 0.3]).tolist())
    labels = Inference(crf=spy).labels(network, noise(3, 4, 5), picture=picture, allowed=[1, 3])
    assert np.unique(labels).tolist() == [3]
    assert spy.given[0].shape == (2, 4, 5)
    assert spy.given[0][:, 0, 0] == pytest.approx(np.array([0.2, 0.3]) / 0.501)
    assert spy.image is picture
    assert spy.device == "cpu"


def test_a_label_that_wins_takes_part_however_unlikely() -> None:
    """Of 50 labels alike, each has 0.02."""
    spy = Spy()
    picture = np.zeros((4, 5, 3), np.uint8)
    assert not Inference(crf=spy).labels(constant(*[0.0] * 50), noise(3, 4, 5), picture=picture).any()
    assert len(spy.given[0]) == 1


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"scales": ()}, "evaluation.scales must be at least one factor"),
        ({"scales": (1.0, 0.0)}, r"evaluation.scales .* got \[1.0, 0.0\]"),
        ({"window": 31}, "evaluation.window must be 32 pixels or more, or null, got 31"),
        ({"overlap": 1.0}, "evaluation.overlap must be 0 or more and below 1, got 1.0"),
        ({"overlap": -0.1}, "evaluation.overlap"),
        ({"crf": "deeplab"}, "evaluation.crf must be an option of conf/crf/ .*got 'deeplab'"),
    ],
)
def test_values_that_cannot_be(settings: dict, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Inference(**settings)


def test_what_does_not_fit_the_network_or_the_image() -> None:
    image = noise(3, 4, 5)
    for allowed in ([3], [-1]):
        with pytest.raises(ValueError, match=r"allowed labels lie in 0..2, got \["):
            Inference().labels(Pointwise(), image, allowed=allowed)
    with pytest.raises(ValueError, match=r"expected an image \(3, H, W\), got \(1, 3, 4, 5\)"):
        Inference().labels(Pointwise(), image[None])
    with pytest.raises(ValueError, match="the CRF needs the picture"):
        Inference(crf=Crf()).labels(Pointwise(), image)


# --- configuration ----------------------------------------------------------------------------------------------------


def test_the_inference_of_a_configuration() -> None:
    assert inference_of(tiny.composed()) == Inference(scales=(1.0,), flip=True)
    five = (0.5, 0.75, 1.0, 1.25, 1.5)
    assert inference_of(tiny.composed("evaluation=multiscale")) == Inference(scales=five, flip=True)
    settings = ("evaluation=paper", "crf=psa", "evaluation.window=64", "evaluation.overlap=0.5", "evaluation.tags=true")
    found = inference_of(tiny.composed(*settings))
    assert (found.scales, found.window, found.overlap, found.tags) == (five, 64, 0.5, True)
    assert isinstance(found.crf, Crf)
    assert found.crf.bilateral_sxy == 67  # DeepLab's, whatever CRF refines the labels
    assert inference_of(tiny.composed("evaluation=crf", "crf=psa")).crf.bilateral_sxy == 80


@pytest.mark.parametrize("setting", ["window=16", "overlap=1.0", "scales=[]"])
def test_a_mistake_in_the_configuration_is_told_before_any_work(setting: str) -> None:
    with pytest.raises(ConfigError, match=rf"evaluation\.{setting.partition('=')[0]}="):
        check(tiny.composed(f"evaluation.{setting}"))


def test_the_stage_predicts_by_tags_through_windows_and_a_crf_and_says_so(
    tiny_pipeline: MakePipeline, finished: Pipeline
) -> None:
    settings = ("evaluation=crf", "evaluation.window=32", "evaluation.tags=true", "recipe.segmenter.epochs=1")
    pipeline = tiny_pipeline(*settings)
    tiny.adopt(pipeline, finished, "classifier", "seeds", "labels")
    artifact = pipeline.make("segmenter")
    assert artifact.manifest["supervision"] == "image tags (from masks); val image tags (inference)"
    assert artifact.manifest["config"]["evaluation.crf"]["_target_"] == "wsss.refine.Crf"
    score = BoundaryFScore(4)
    for id in tiny.VAL:
        predicted = artifact.read_mask(id, folder="predictions")
        assert set(np.unique(predicted)) <= {0, *pipeline.data.class_ids(id)}
        score.update(pipeline.data.mask(id), predicted)
    assert artifact.metrics["boundary_f"] == pytest.approx(score.mean)
    assert list(artifact.metrics["boundary_f_per_class"]) == ["background", *tiny.CLASSES]
    fingerprints = {tiny_pipeline(*settings[:count]).fingerprint("segmenter") for count in range(4)}
    assert len(fingerprints) == 4
