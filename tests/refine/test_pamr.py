from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from wsss.refine.pamr import pamr, pamr_weights

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randint(0, 256, (2, 3, 13, 17), dtype=torch.uint8, generator=GENERATOR)
IMAGES[0, :, :6, :8] = 40  # a patch without deviation
SCORES = torch.rand(2, 2, 13, 17, generator=GENERATOR)


def test_constant_image_takes_the_mean_of_the_neighbours():
    scores = torch.zeros(1, 1, 3, 3)
    scores[0, 0, 1, 1] = 0.8
    smooth = pamr(torch.full((1, 3, 3, 3), 77, dtype=torch.uint8), scores, iterations=1, dilations=[1])
    # The pixel itself is none of its neighbours; at the border the edge is repeated, but the centre still occurs once.
    assert torch.allclose(smooth[0, 0], torch.tensor([[0.1, 0.1, 0.1], [0.1, 0, 0.1], [0.1, 0.1, 0.1]]), atol=1e-6)


def test_weights_by_hand():
    # One bright pixel among 9 values: deviation 30 / 3 = 10 (8 of 0 and one of 30), so that 30 is 3 / 0.1 away.
    image = torch.zeros(1, 3, 3, 3, dtype=torch.uint8)
    image[..., 0, 0] = 30
    weights = pamr_weights(image, dilations=[1])[:, 0, 0, 1, 1]
    assert weights[1:].tolist() == pytest.approx([1 / 7] * 7)
    assert weights[0].item() == pytest.approx(math.exp(-30) / 7, rel=1e-4)


def by_loop(images: np.ndarray, scores: np.ndarray, iterations: int, dilations: list[int]) -> np.ndarray:
    count, _, height, width = images.shape
    result = scores.astype(np.float64)
    for n in range(count):
        for _ in range(iterations):
            new = np.empty_like(result[n])
            for y in range(height):
                for x in range(width):
                    around = [
                        (min(max(y + dy * d, 0), height - 1), min(max(x + dx * d, 0), width - 1))
                        for d in dilations
                        for dy in (-1, 0, 1)
                        for dx in (-1, 0, 1)
                    ]
                    others = [place for i, place in enumerate(around) if i % 9 != 4]
                    logits = np.zeros(len(others))
                    for channel in images[n].astype(np.float64):
                        deviation = np.std([channel[place] for place in around], ddof=1)
                        for i, place in enumerate(others):
                            logits[i] -= abs(channel[y, x] - channel[place]) / (0.1 * deviation + 1e-8) / 3
                    weights = np.exp(logits) / np.exp(logits).sum()
                    new[:, y, x] = sum(w * result[n][:, i, j] for w, (i, j) in zip(weights, others, strict=True))
            result[n] = new
    return result


def test_equals_a_loop():
    expected = by_loop(IMAGES.numpy(), SCORES.numpy(), 2, [1, 3])
    assert np.allclose(pamr(IMAGES, SCORES, iterations=2, dilations=[1, 3]), expected, atol=1e-5)


def test_weights_sum_to_one_and_scores_stay_in_range():
    weights = pamr_weights(IMAGES)
    assert weights.shape == (48, 2, 1, 13, 17)
    assert torch.allclose(weights.sum(dim=0), torch.ones(2, 1, 13, 17))
    smooth = pamr(IMAGES, SCORES)
    assert (smooth.amax(dim=(2, 3)) <= SCORES.amax(dim=(2, 3))).all()
    assert (smooth.amin(dim=(2, 3)) >= SCORES.amin(dim=(2, 3))).all()
    assert (pamr(IMAGES, torch.ones(2, 1, 13, 17)) == 1).all()


def test_a_brighter_image_has_the_same_weights():
    dark = IMAGES // 4
    assert torch.allclose(pamr_weights(dark), pamr_weights(dark * 2 + 50), atol=1e-5)


def test_snaps_to_a_colour_edge():
    image = torch.full((1, 3, 40, 40), 30, dtype=torch.uint8)
    image[..., 20:] = 220
    score = ((torch.arange(40) - 6) / 30).clamp(0, 1).expand(1, 1, 40, 40)
    smooth = pamr(image, score, dilations=[1, 2, 4, 8])[0, 0]
    assert score[0, 0, 0, 20] - score[0, 0, 0, 19] < 0.04
    assert (smooth[:, 20] - smooth[:, 19] > 0.2).all()


def test_a_batch_is_its_images_and_maps():
    together = pamr(IMAGES, SCORES, iterations=3)
    for i in range(2):
        for k in range(2):
            alone = pamr(IMAGES[[i]], SCORES[[i], k : k + 1], iterations=3)
            assert torch.allclose(together[i, k], alone[0, 0], atol=1e-6)


def test_nothing_to_do():
    assert torch.equal(pamr(IMAGES, SCORES, iterations=0), SCORES)
    assert pamr(IMAGES, SCORES[:, :0]).shape == (2, 0, 13, 17)
    assert torch.allclose(pamr(IMAGES[..., :1, :1], SCORES[..., :1, :1]), SCORES[..., :1, :1])


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="float32"):
        pamr(IMAGES.float(), SCORES)
    with pytest.raises(ValueError, match=r"\(2, 2, 12, 17\)"):
        pamr(IMAGES, SCORES[:, :, :12])
    with pytest.raises(ValueError, match=r"\(2, 2, 13, 16\)"):
        pamr(IMAGES, SCORES[..., :16])
    with pytest.raises(ValueError, match="int64"):
        pamr(IMAGES, SCORES.long())
    with pytest.raises(ValueError, match="got -1"):
        pamr(IMAGES, SCORES, iterations=-1)
    for dilations in ([], [0], [1, 2.5]):
        with pytest.raises(ValueError, match="dilations of 1 or more"):
            pamr(IMAGES, SCORES, dilations=dilations)
