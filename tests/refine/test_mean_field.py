from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch

from wsss.refine import DEEPLAB, IRN, PSA
from wsss.refine.crf import dense_crf, soft_probabilities
from wsss.refine.mean_field import _lattice, dense_crf_batch, mean_field, pairwise_kernels

RNG = np.random.default_rng(0)


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colours, an edge and some noise: like a photograph, it puts several pixels into a cell of the lattice."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    colours = np.stack([3 * x, 2 * y, x + y], axis=-1) + 90 * (x > width // 2)[..., None]
    return (colours + rng.integers(0, 6, colours.shape)).clip(0, 255).astype(np.uint8)


def probabilities(labels: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    scores = np.random.default_rng(seed).random((labels - 1, height, width), dtype=np.float32)
    return soft_probabilities(scores, background=0.3)


def image_batch(*images: np.ndarray) -> torch.Tensor:
    return torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image in images])


IMAGES = image_batch(photo(20, 28), photo(20, 28, seed=1))
UNARIES = torch.from_numpy(np.stack([probabilities(3, 20, 28), probabilities(3, 20, 28, seed=1)]))


def test_one_pixel_by_hand():
    # A pixel's message to itself is weight * belief after normalisation: with weights 1 and 3 together 4 b.
    kernels = pairwise_kernels(IMAGES[:1, :, :1, :1], **{**DEEPLAB, "gaussian_compat": 1, "bilateral_compat": 3})
    unary = torch.tensor([0.25, 0.75]).reshape(1, 2, 1, 1)
    assert torch.allclose(mean_field(kernels, unary, iterations=0), unary)
    odds = 3 * math.exp(4 * 0.75 - 4 * 0.25)
    assert mean_field(kernels, unary, iterations=1)[0, 1].item() == pytest.approx(odds / (1 + odds), rel=1e-5)


def test_without_weights_the_unary_stays():
    kernels = pairwise_kernels(IMAGES, **{**IRN, "gaussian_compat": 0, "bilateral_compat": 0})
    assert torch.allclose(mean_field(kernels, UNARIES), UNARIES, atol=1e-6)


def lattice_by_loop(features: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The filter of Adams et al. (2010), literally, in float64: a dict of vertices, with all ``d + 1`` coordinates."""
    dims, points = features.shape
    scale = math.sqrt(2 / 3) * (dims + 1)
    table: dict[tuple[int, ...], np.ndarray] = {}
    simplices = []
    for point in range(points):
        # The columns of E: 1 (j times), -j, 0 ... for j = 1..d, of length sqrt(j (j + 1)).
        y = np.zeros(dims + 1)
        for j in range(1, dims + 1):
            direction = np.array([1.0] * j + [-j] + [0.0] * (dims - j)) / math.sqrt(j * (j + 1))
            y += scale * features[j - 1, point] * direction
        # The simplex around y: from a vertex of remainder 0, the largest coordinates grow first.
        corner = (np.round(y / (dims + 1)) * (dims + 1)).astype(int)
        for shift in product((-1, 0, 1), repeat=dims + 1):
            zero = corner + (dims + 1) * np.array(shift)
            if zero.sum() == 0 and np.ptp(y - zero) <= dims + 1:
                break
        falling = np.argsort(zero - y, kind="stable")
        vertices = np.stack([zero + k - (dims + 1) * (np.argsort(falling) > dims - k) for k in range(dims + 1)])
        # y and 1 are the sums of the vertices and of 1, weighted.
        system = np.vstack([vertices.T, np.ones(dims + 1)])
        weights = np.linalg.lstsq(system, np.append(y, 1), rcond=None)[0]
        assert weights.min() > -1e-6
        assert np.allclose(system @ weights, np.append(y, 1))
        simplex = [(tuple(vertex), weight) for vertex, weight in zip(vertices.tolist(), weights, strict=True)]
        for vertex, weight in simplex:
            table[vertex] = table.get(vertex, 0) + weight * values[point]
        simplices.append(simplex)
    for axis in range(dims + 1):
        step = np.full(dims + 1, -1)
        step[axis] = dims
        table = {
            vertex: value + 0.5 * (table.get(tuple(vertex + step), 0) + table.get(tuple(vertex - step), 0))
            for vertex, value in table.items()
        }
    alpha = 1 / (1 + 2**-dims)
    return np.array([alpha * sum(weight * table[vertex] for vertex, weight in simplex) for simplex in simplices])


@pytest.mark.parametrize("dims", [2, 5])
def test_lattice_equals_a_loop(dims):
    features = RNG.uniform(-3, 3, (dims, 40)).astype(np.float32)
    values = RNG.random((40, 2), dtype=np.float32)
    filtered = _lattice(torch.from_numpy(features), items=1)(torch.from_numpy(values)).numpy()
    assert np.allclose(filtered, lattice_by_loop(features, values), atol=1e-4)


def test_lattice_is_a_gaussian_filter():
    features = torch.from_numpy(RNG.uniform(0, 4, (2, 400)).astype(np.float32))
    values = torch.cat([torch.ones(400, 1), (features[0] > 2).float()[:, None]], dim=1)
    kernel = torch.exp(-0.5 * torch.cdist(features.T, features.T).square())
    filtered, exact = _lattice(features, items=1)(values), kernel @ values
    assert torch.allclose(filtered[:, 1] / filtered[:, 0], exact[:, 1] / exact[:, 0], atol=0.08)


@pytest.mark.parametrize("preset", [IRN, PSA, DEEPLAB])
@pytest.mark.parametrize("labels", [2, 5])
def test_agrees_with_pydensecrf(preset, labels):
    image, unary = photo(48, 60), probabilities(labels, 48, 60)
    expected = dense_crf(image, unary, **preset)
    posterior = dense_crf_batch(image_batch(image), torch.from_numpy(unary)[None], **preset)[0].numpy()
    assert posterior.dtype == np.float32
    assert np.allclose(posterior, expected, atol=1e-4)
    assert not np.allclose(posterior, unary, atol=0.1)


def test_weights_and_iterations_agree_with_pydensecrf():
    own = {"gaussian_sxy": 2, "gaussian_compat": 1.5, "bilateral_sxy": 9, "bilateral_srgb": 20, "bilateral_compat": 0.7}
    image, unary = photo(30, 22), probabilities(3, 30, 22)
    expected = dense_crf(image, unary, iterations=3, **own)
    posterior = dense_crf_batch(image_batch(image), torch.from_numpy(unary)[None], iterations=3, **own)
    assert np.allclose(posterior[0], expected, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 3), (16, 16)])
def test_tiny_and_constant_images(shape):
    grey = np.full((*shape, 3), 99, dtype=np.uint8)
    unary = soft_probabilities(np.full((1, *shape), 0.9, dtype=np.float32), background=0.3)
    posterior = dense_crf_batch(image_batch(grey), torch.from_numpy(unary)[None], **IRN)
    assert (posterior.argmax(dim=1) == 1).all()
    assert torch.allclose(posterior.sum(dim=1), torch.ones(1, *shape), atol=1e-5)


def test_a_batch_is_its_images():
    together = dense_crf_batch(IMAGES, UNARIES, **IRN)
    for i in range(2):
        assert torch.allclose(together[i], dense_crf_batch(IMAGES[[i]], UNARIES[[i]], **IRN)[0], atol=1e-5)
    assert not torch.allclose(together[0], dense_crf_batch(IMAGES[[1]], UNARIES[[0]], **IRN)[0], atol=1e-2)


def test_several_unaries_on_one_lattice():
    kernels = pairwise_kernels(IMAGES, **PSA)
    both = mean_field(kernels, torch.stack([UNARIES, UNARIES.flip(1)]))
    assert both.shape == (2, *UNARIES.shape)
    assert torch.allclose(both[0], mean_field(kernels, UNARIES), atol=1e-5)
    assert torch.allclose(both[1], both[0].flip(1), atol=1e-5)


def test_labels_that_are_not_there():
    valid = torch.tensor([[True, False, True], [True, True, True]])
    kernels = pairwise_kernels(IMAGES, **IRN)
    posterior = mean_field(kernels, UNARIES, valid=valid)
    assert (posterior[0, 1] == 0).all()
    alone = dense_crf_batch(IMAGES[:1], UNARIES[:1, [0, 2]], **IRN)[0]
    assert torch.allclose(posterior[0, [0, 2]], alone, atol=1e-5)
    assert torch.allclose(posterior[1], mean_field(kernels, UNARIES)[1], atol=1e-5)
    one = mean_field(kernels, UNARIES, valid=torch.tensor([[False, True, False], [True, True, True]]))
    assert (one[0, 1] == 1).all()


def test_same_bits_in_each_run_and_arguments_untouched():
    before = UNARIES.clone()
    first = dense_crf_batch(IMAGES, UNARIES, **DEEPLAB)
    assert torch.equal(first, dense_crf_batch(IMAGES, UNARIES, **DEEPLAB))
    assert torch.equal(UNARIES, before)
    strided = UNARIES.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert torch.equal(first, dense_crf_batch(IMAGES, strided, **DEEPLAB))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_equals_cpu():
    there = dense_crf_batch(IMAGES.cuda(), UNARIES.cuda(), **IRN).cpu()
    assert torch.allclose(there, dense_crf_batch(IMAGES, UNARIES, **IRN), atol=1e-4)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="float32"):
        pairwise_kernels(IMAGES.float(), **IRN)
    with pytest.raises(ValueError, match=r"\(2, 20, 28\)"):
        pairwise_kernels(IMAGES[:, 0], **IRN)
    with pytest.raises(ValueError, match="bilateral_srgb, got 0"):
        pairwise_kernels(IMAGES, **{**IRN, "bilateral_srgb": 0})
    with pytest.raises(ValueError, match="wider kernels"):
        pairwise_kernels(IMAGES, **{**IRN, "bilateral_srgb": 1e-3})
    kernels = pairwise_kernels(IMAGES, **IRN)
    with pytest.raises(ValueError, match=r"\(2, L, 20, 28\).*\(1, 3, 20, 28\)"):
        mean_field(kernels, UNARIES[:1])
    with pytest.raises(ValueError, match="got -1"):
        mean_field(kernels, UNARIES, iterations=-1)
    with pytest.raises(ValueError, match="int64"):
        mean_field(kernels, UNARIES.long())
    with pytest.raises(ValueError, match="at least one label"):
        mean_field(kernels, UNARIES[:, :0])
    with pytest.raises(ValueError, match=r"valid \(2, 3\)"):
        mean_field(kernels, UNARIES, valid=torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="one valid label"):
        mean_field(kernels, UNARIES, valid=torch.zeros(2, 3, dtype=torch.bool))
