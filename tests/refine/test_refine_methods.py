from __future__ import annotations

import pickle

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from wsss.errors import ConfigError
from wsss.refine import (
    IRN,
    ConfidentCrf,
    ConstantBackground,
    Crf,
    DenseCrf,
    GraphCut,
    Pamr,
    PercentileBackground,
    PowerBackground,
    Refiner,
    Superpixels,
    Threshold,
)
from wsss.refine.methods import confident
from wsss.refine.refiner import Extras
from wsss.refine.threshold import percentile_scale, threshold

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (24, 32, 3), dtype=np.uint8)
SCORES = RNG.random((2, 24, 32), dtype=np.float32)
IDS = np.array([12, 5])
REFINERS = [
    Refiner(labelling=Threshold()),
    Refiner(smoothing=[Superpixels()], labelling=Threshold(background=PercentileBackground(percentile=90))),
    Refiner(
        smoothing=(Superpixels(algorithm="slic", segments=30), Superpixels(algorithm="felzenszwalb", scale=50)),
        labelling=DenseCrf(),
    ),
    Refiner(labelling=DenseCrf(background=PowerBackground(), unary="hard", crf=Crf(**IRN))),
    Refiner(labelling=ConfidentCrf(background=PowerBackground()), max_side=32),
    Refiner(smoothing=[Pamr()], labelling=DenseCrf(crf=Crf(backend="torch"))),
    Refiner(smoothing=[Superpixels(merge=20)], labelling=GraphCut(background=PowerBackground(), largest_region=True)),
]


@pytest.mark.parametrize("refiner", REFINERS, ids=repr)
def test_labels_pickle_and_empty_images(refiner):
    labels = refiner(IMAGE, IDS, SCORES)
    assert labels.shape == (24, 32)
    assert labels.dtype == np.uint8
    assert set(np.unique(labels)) <= {0, 12, 5, 255}
    assert (pickle.loads(pickle.dumps(refiner))(IMAGE, [12, 5], SCORES) == labels).all()
    assert not refiner(IMAGE, [], SCORES[:0]).any()


def test_steps_run_in_order():
    def add(image, class_ids, scores, extras):
        return scores + 0.1

    def double(image, class_ids, scores, extras):
        return scores * 2

    scores = np.full((1, 24, 32), 0.2, dtype=np.float32)
    for steps, expected in [((add, double), 7), ((double, add), 0)]:  # 0.6 against 0.5
        labels = Refiner(smoothing=steps, labelling=Threshold(background=0.55))(IMAGE, [7], scores)
        assert (labels == expected).all()


def test_backgrounds():
    """A number, a share of a percentile, and a power of what the classes leave."""
    for background, scores, value in [
        (None, SCORES, 0.3),
        (0.6, SCORES, 0.6),
        (PercentileBackground(background=0.6, percentile=50), percentile_scale(SCORES, percentile=50), 0.6),
        (PowerBackground(alpha=2), SCORES, (1 - SCORES.max(axis=0)) ** 2),
    ]:
        labels = Refiner(labelling=Threshold(background=background))(IMAGE, IDS, SCORES)
        assert (labels == threshold(scores, IDS, background=value)).all()
        assert 0 < (labels == 0).mean() < 1


def test_confident_labels_by_hand():
    strict, lenient = np.array([[3, 0, 0, 3]]), np.array([[3, 0, 3, 4]])
    assert confident(strict, lenient).tolist() == [[3, 0, 255, 3]]


def test_confident_labels_are_two_crfs():
    """What is ignored lies between the two, and the pairwise terms set up once give what two CRFs give."""
    settings = {"unary": "hard", "crf": Crf(**IRN)}
    low, high = (DenseCrf(background=value, **settings)(IMAGE, IDS, SCORES, Extras()) for value in (0.5, 0.8))
    labels = ConfidentCrf(background=0.65, margin=0.15, **settings)(IMAGE, IDS, SCORES, Extras())
    assert (labels == confident(high, low)).all()
    assert set(np.unique(labels)) == {0, 5, 12, 255}
    equal = ConfidentCrf(background=0.5, margin=0, **settings)(IMAGE, IDS, SCORES, Extras())
    assert (equal == low).all()


def test_the_torch_backend_gives_the_same_labels():
    settings = {"background": 0.65, "margin": 0.15}
    ours, theirs = (
        ConfidentCrf(**settings, crf=Crf(backend=backend))(IMAGE, IDS, SCORES, Extras())
        for backend in ("torch", "pydensecrf")
    )
    assert (ours == theirs).mean() > 0.999


def test_what_can_use_a_device():
    """Where a step computes is no setting: it moves no fingerprint and makes no step another."""
    torch_crf = Refiner(labelling=ConfidentCrf(crf=Crf(backend="torch")))
    before = repr(torch_crf)
    assert torch_crf.to("meta")
    assert repr(torch_crf) == before
    assert torch_crf.labelling == ConfidentCrf(crf=Crf(backend="torch"))
    assert Refiner(smoothing=[Pamr()], labelling=Threshold()).to("meta")
    mixed = Refiner(smoothing=[Pamr()], labelling=DenseCrf())  # pydensecrf in threads would be one after the other
    assert not mixed.to("meta")
    assert mixed(IMAGE, IDS, SCORES).shape == (24, 32)  # on the CPU still
    assert not Refiner(smoothing=[Superpixels()], labelling=DenseCrf()).to("meta")


def test_working_size():
    refiner = Refiner(labelling=Threshold(), max_side=100)
    assert [refiner.working_size(size) for size in [(100, 80), (400, 300), (4000, 1)]] == [
        (100, 80),
        (100, 75),
        (100, 1),
    ]
    assert Refiner(labelling=Threshold()).working_size((9000, 9000)) == (9000, 9000)


def test_a_step_of_ones_own_must_keep_the_contract():
    for wrong, message in [(lambda *_: SCORES[0], "made scores"), (lambda *_: SCORES * 2, "in \\[0, 1\\]")]:
        with pytest.raises(ValueError, match=message):
            Refiner(smoothing=[wrong], labelling=Threshold())(IMAGE, IDS, SCORES)


def test_superpixels_say_what_they_were_made_with():
    assert Superpixels() == Superpixels(segments=400, compactness=20, sigma=0)
    assert "segments=400" in repr(Superpixels())
    assert "scale=200.0, min_size=20, sigma=0.8" in repr(Superpixels(algorithm="felzenszwalb"))


def test_superpixels_are_asked_of_the_extras():
    class Kept(Extras):
        def superpixels(self, image, settings, make):
            assert settings == repr(Superpixels())
            return np.arange(24 * 32).reshape(24, 32) // (12 * 32)  # an upper and a lower half

    labels = Refiner(smoothing=[Superpixels()], labelling=Threshold())(IMAGE, [1], SCORES[:1] * 0.5, Kept())
    assert len(np.unique(labels[:12])) == len(np.unique(labels[12:])) == 1


def test_superpixel_vote_by_hand():
    image = np.zeros((20, 20, 3), dtype=np.uint8)
    image[:, 10:] = 255
    scores = np.zeros((1, 20, 20), dtype=np.float32)
    scores[0, :, 6:] = 0.5  # spills over the edge by 4 of 10 columns: mean 0.2 on the left
    refiner = Refiner(
        smoothing=[Superpixels(algorithm="felzenszwalb", scale=100, sigma=0, min_size=1)], labelling=Threshold()
    )
    labels = refiner(image, [3], scores)
    assert (labels == np.where(np.arange(20) >= 10, 3, 0)).all()


def test_superpixels_of_one_colour_are_merged():
    image = np.zeros((20, 20, 3), dtype=np.uint8)
    image[:, 10:] = 255
    segments = Superpixels(segments=16).segment(image), Superpixels(segments=16, merge=10).segment(image)
    assert [found.max() + 1 for found in segments] == [16, 2]
    assert (segments[1] == (np.arange(20) >= 10)).all()


def test_hydra_builds_it():
    node = OmegaConf.create(
        {
            "_target_": "wsss.refine.Refiner",
            "smoothing": [{"_target_": "wsss.refine.Superpixels", "algorithm": "slic", "segments": 30}],
            "labelling": {
                "_target_": "wsss.refine.DenseCrf",
                "background": "${threshold}",
                "crf": {"_target_": "wsss.refine.Crf", "iterations": 3},
            },
            "threshold": {"_target_": "wsss.refine.PowerBackground", "alpha": 2},
        }
    )
    threshold = node.pop("threshold")
    node = OmegaConf.create({"refiner": node, "threshold": threshold}).refiner
    refiner = pickle.loads(pickle.dumps(instantiate(node)))
    assert refiner.smoothing == (Superpixels(algorithm="slic", segments=30),)
    assert refiner.labelling == DenseCrf(background=PowerBackground(alpha=2), crf=Crf(iterations=3))
    assert refiner(IMAGE, IDS, SCORES).shape == (24, 32)
    assert Refiner(smoothing=None, labelling=Threshold()).smoothing == ()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Threshold(background=1.5), r"ConstantBackground.background: .*got 1.5"),
        (lambda: Threshold(background="high"), "got 'high'"),
        (lambda: Threshold(background=float("nan")), "got nan"),
        (lambda: Superpixels(algorithm="mcg"), "felzenszwalb, got 'mcg'"),
        (lambda: Superpixels(algorithm="slic", scale=3), "Superpixels.scale: expected null with slic"),
        (lambda: Superpixels(algorithm="slic", segments=0), "whole number"),
        (lambda: Superpixels(sigma=-1), "sigma"),
        (lambda: Superpixels(algorithm="felzenszwalb", scale=0), "scale"),
        (lambda: DenseCrf(unary="firm"), "soft, hard, got 'firm'"),
        (lambda: Crf(iterations=2.5), "iterations"),
        (lambda: PowerBackground(alpha=0), "alpha"),
        (lambda: Superpixels(merge=0), "merge"),
        (lambda: GraphCut(smoothness=-1), "smoothness"),
        (lambda: Pamr(dilations=[]), "dilations"),
        (lambda: Pamr(dilations=4), "dilations.*got 4"),
        (lambda: Pamr(dilations=None), "dilations.*got None"),
        (lambda: DenseCrf(crf={"backend": "torch"}), "crf.backend=torch"),
        (lambda: ConfidentCrf(crf="irn"), "crf: expected an option of conf/crf/"),
        (lambda: Refiner(smoothing=[DenseCrf()], labelling=Threshold()), r"smoothing\[0\]: .* gives scores"),
        (lambda: Refiner(labelling=Superpixels()), "labelling: .* gives labels"),
        (lambda: Refiner(smoothing=[ConstantBackground()], labelling=Threshold()), "gives scores, got Constant"),
        (lambda: Crf(backend="numpy"), "pydensecrf, torch, got 'numpy'"),
        (lambda: PercentileBackground(percentile=0), "percentile"),
        (lambda: ConfidentCrf(margin=0.6), "margin: expected a number from 0 to 0.5"),
        (lambda: DenseCrf(gt_prob=1), "gt_prob"),
        (lambda: Crf(bilateral_srgb=0), "bilateral_srgb"),
        (lambda: Crf(gaussian_compat=-1), "gaussian_compat"),
        (lambda: Refiner(smoothing=Superpixels(), labelling=Threshold()), "list of steps"),
        (lambda: Refiner(smoothing=["slic"], labelling=Threshold()), r"smoothing\[0\].*'slic'"),
        (lambda: Refiner(labelling=0.3), "labelling.*0.3"),
        (lambda: Refiner(labelling=Threshold(), max_side=2.5), "max_side.*2.5"),
    ],
)
def test_configuration_is_checked_when_built(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


@pytest.mark.parametrize(
    ("image", "class_ids", "scores", "message"),
    [
        (IMAGE.astype(float), IDS, SCORES, "float64"),
        (IMAGE[..., 0], IDS, SCORES, r"got \(24, 32\)"),
        (IMAGE[1:], IDS, SCORES, "do not fit"),
        (IMAGE, [12], SCORES, "do not fit"),
        (IMAGE, [12, 12], SCORES, r"got \[12, 12\]"),
        (IMAGE, [0, 1], SCORES, r"1..254, got \[0, 1\]"),
        (IMAGE, [1, 255], SCORES, r"got \[1, 255\]"),
        (IMAGE, IDS, SCORES * 2, "in \\[0, 1\\]"),
        (IMAGE, IDS, SCORES - 0.5, "in \\[0, 1\\]"),
        (IMAGE, IDS, np.where(SCORES > 0.5, np.nan, SCORES), "finite"),
    ],
)
def test_the_contract_is_checked_at_the_door(image, class_ids, scores, message):
    with pytest.raises(ValueError, match=message):
        Refiner(labelling=Threshold())(image, class_ids, scores)
