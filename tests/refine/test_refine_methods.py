from __future__ import annotations

import pickle

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from wsss.errors import ConfigError
from wsss.refine import IRN, DenseCrf, Refiner, Superpixels, Threshold
from wsss.refine.threshold import threshold

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (24, 32, 3), dtype=np.uint8)
SCORES = RNG.random((2, 24, 32), dtype=np.float32)
IDS = np.array([12, 5])
REFINERS = [
    Refiner(),
    Refiner(smoothing=[Superpixels()]),
    Refiner(smoothing=(Superpixels(algorithm="slic", segments=30), Superpixels(scale=50)), labelling=DenseCrf()),
    Refiner(labelling=DenseCrf(power=4, unary="hard", **IRN)),
]


@pytest.mark.parametrize("refiner", REFINERS, ids=repr)
def test_labels_pickle_and_empty_images(refiner):
    labels = refiner(IMAGE, IDS, SCORES)
    assert labels.shape == (24, 32)
    assert labels.dtype == np.uint8
    assert set(np.unique(labels)) <= {0, 12, 5}
    assert (pickle.loads(pickle.dumps(refiner))(IMAGE, [12, 5], SCORES) == labels).all()
    assert not refiner(IMAGE, [], SCORES[:0]).any()


def test_steps_run_in_order():
    def add(image, class_ids, scores):
        return scores + 0.1

    def double(image, class_ids, scores):
        return scores * 2

    scores = np.full((1, 24, 32), 0.2, dtype=np.float32)
    for steps, expected in [((add, double), 7), ((double, add), 0)]:  # 0.6 against 0.5
        labels = Refiner(smoothing=steps, labelling=Threshold(background=0.55))(IMAGE, [7], scores)
        assert (labels == expected).all()


def test_default_is_a_threshold():
    assert (Refiner()(IMAGE, IDS, SCORES) == threshold(SCORES, IDS, background=0.3)).all()


def test_superpixel_vote_by_hand():
    image = np.zeros((20, 20, 3), dtype=np.uint8)
    image[:, 10:] = 255
    scores = np.zeros((1, 20, 20), dtype=np.float32)
    scores[0, :, 6:] = 0.5  # spills over the edge by 4 of 10 columns: mean 0.2 on the left
    labels = Refiner(smoothing=[Superpixels(scale=100, sigma=0, min_size=1)])(image, [3], scores)
    assert (labels == np.where(np.arange(20) >= 10, 3, 0)).all()


def test_hydra_builds_it():
    node = OmegaConf.create(
        {
            "_target_": "wsss.refine.Refiner",
            "smoothing": [{"_target_": "wsss.refine.Superpixels", "algorithm": "slic", "segments": 30}],
            "labelling": {"_target_": "wsss.refine.DenseCrf", "background": 0.4, "iterations": 3},
        }
    )
    refiner = pickle.loads(pickle.dumps(instantiate(node)))
    assert refiner.smoothing == (Superpixels(algorithm="slic", segments=30),)
    assert refiner.labelling == DenseCrf(background=0.4, iterations=3)
    assert refiner(IMAGE, IDS, SCORES).shape == (24, 32)
    assert instantiate(OmegaConf.create({"_target_": "wsss.refine.Refiner", "smoothing": None})).smoothing == ()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Threshold(background=1.5), r"Threshold.background: .*got 1.5"),
        (lambda: Threshold(background="high"), "got 'high'"),
        (lambda: Threshold(background=float("nan")), "got nan"),
        (lambda: Superpixels(algorithm="mcg"), "felzenszwalb, got 'mcg'"),
        (lambda: Superpixels(algorithm="slic", scale=3), "Superpixels.scale: expected null with slic"),
        (lambda: Superpixels(algorithm="slic", segments=0), "whole number"),
        (lambda: Superpixels(sigma=-1), "sigma"),
        (lambda: Superpixels(scale=0), "scale"),
        (lambda: DenseCrf(unary="firm"), "soft or hard, got 'firm'"),
        (lambda: DenseCrf(iterations=2.5), "iterations"),
        (lambda: DenseCrf(power=0), "power"),
        (lambda: DenseCrf(gt_prob=1), "gt_prob"),
        (lambda: DenseCrf(bilateral_srgb=0), "bilateral_srgb"),
        (lambda: DenseCrf(gaussian_compat=-1), "gaussian_compat"),
        (lambda: Refiner(smoothing=Superpixels()), "list of steps"),
        (lambda: Refiner(smoothing=["slic"]), r"smoothing\[0\].*'slic'"),
        (lambda: Refiner(labelling=0.3), "labelling.*0.3"),
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
        Refiner()(image, class_ids, scores)
