from __future__ import annotations

import numpy as np
import pytest
from pydensecrf import densecrf, utils

from wsss.refine import DEEPLAB, IRN, PSA
from wsss.refine.crf import dense_crf, hard_probabilities, soft_probabilities

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
SCORES = RNG.random((2, 20, 30), dtype=np.float32)


def reference(unary: np.ndarray, labels: int, image: np.ndarray = IMAGE) -> np.ndarray:
    crf = densecrf.DenseCRF2D(image.shape[1], image.shape[0], labels)
    crf.setUnaryEnergy(np.ascontiguousarray(unary.astype(np.float32)))
    crf.addPairwiseGaussian(sxy=3, compat=3)
    crf.addPairwiseBilateral(sxy=50, srgb=5, rgbim=image, compat=10)
    return np.array(crf.inference(5)).reshape(labels, *image.shape[:2])


def test_soft_unary_agrees_with_pydensecrf():
    probabilities = soft_probabilities(SCORES, background=0.3)
    expected = reference(utils.unary_from_softmax(probabilities, clip=1e-5), 3)
    assert np.allclose(dense_crf(IMAGE, probabilities, iterations=5, **IRN), expected, atol=1e-5)


def test_hard_unary_agrees_with_pydensecrf():
    labels = RNG.choice([0, 4, 9], size=(20, 30)).astype(np.uint8)
    index = np.searchsorted([0, 4, 9], labels)
    probabilities = hard_probabilities(labels, np.array([4, 9]), gt_prob=0.7)
    expected = reference(utils.unary_from_labels(index, 3, gt_prob=0.7, zero_unsure=False), 3)
    assert np.allclose(dense_crf(IMAGE, probabilities, iterations=5, **IRN), expected, atol=1e-5)


def test_probabilities_by_hand():
    soft = soft_probabilities(np.array([[[0.6, 0.0]]], np.float32), background=0.2)
    assert np.allclose(soft[:, 0, 0], [0.25, 0.75])
    assert np.allclose(soft[:, 0, 1], [1, 0])
    assert np.allclose(soft_probabilities(np.zeros((1, 1, 1), np.float32), background=0.0), 0.5)
    hard = hard_probabilities(np.array([[5, 0, 255]], np.uint8), np.array([5, 8]), gt_prob=0.8)
    assert np.allclose(hard[:, 0].T, [[0.1, 0.8, 0.1], [0.8, 0.1, 0.1], [1 / 3] * 3])


def test_snaps_to_a_colour_edge():
    image = np.full((40, 40, 3), 30, dtype=np.uint8)
    image[:, 20:] = 220
    score = np.broadcast_to(np.clip((np.arange(40) - 6) / 30, 0, 1), (1, 40, 40)).astype(np.float32)
    posterior = dense_crf(image, soft_probabilities(score, background=0.3), **DEEPLAB)
    truth = np.arange(40) >= 20
    assert (soft_probabilities(score, background=0.3).argmax(axis=0)[0] != truth).sum() >= 4
    assert (posterior.argmax(axis=0) == truth).all()
    assert np.allclose(posterior.sum(axis=0), 1, atol=1e-4)


def test_one_label_returns_at_once():
    alone = np.ones((1, 20, 30), dtype=np.float32)
    assert dense_crf(IMAGE, alone, **PSA) is alone


@pytest.mark.parametrize("preset", [IRN, PSA, DEEPLAB])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (16, 16)])
def test_tiny_and_constant_images(preset, shape):
    grey = np.full((*shape, 3), 99, dtype=np.uint8)
    score = np.full((1, *shape), 0.9, dtype=np.float32)
    posterior = dense_crf(grey, soft_probabilities(score, background=0.3), **preset)
    assert (posterior.argmax(axis=0) == 1).all()


def test_memory_order_does_not_matter():
    probabilities = soft_probabilities(SCORES, background=0.3)
    posterior = dense_crf(np.asfortranarray(IMAGE), np.asfortranarray(probabilities), **IRN)
    assert (posterior == dense_crf(IMAGE, probabilities, **IRN)).all()


def test_other_image_types_are_refused():
    with pytest.raises(ValueError, match="float32"):
        dense_crf(IMAGE.astype(np.float32), SCORES, **IRN)
    with pytest.raises(ValueError, match=r"\(20, 30, 3\)"):
        dense_crf(IMAGE[:10], SCORES, **IRN)
