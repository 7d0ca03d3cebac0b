import pytest
import torch
from torch import Tensor

from wsss.cams.functional import (
    cam,
    fuse,
    grad_cam,
    grad_cam_plus_plus,
    layer_cam,
    layer_cam_normal,
    min_max_scale,
    norm_grad,
    nwc_cam,
    pool_grid,
    resize_maps,
    scale_to_peak,
    score_cam,
    tanh_scale,
    zoom_cam,
)

# one item, two channels, two positions side by side
ACTIVATIONS = torch.tensor([[[[1.0, 2.0]], [[3.0, 0.0]]]])
GRADIENTS = torch.tensor([[[[4.0, -2.0]], [[-1.0, 3.0]]]])


def row(*values: float) -> Tensor:
    """One map of one row."""
    return torch.tensor([[values]], dtype=torch.float32)


# --- maps of one layer -------------------------------------------------------------------------------------------


def test_cam() -> None:
    assert cam(ACTIVATIONS, torch.tensor([[2.0, 1.0]])).tolist() == [[[5, 4]]]
    assert cam(ACTIVATIONS, torch.tensor([[1.0, -1.0]])).tolist() == [[[0, 2]]]  # -2 is cut by the ReLU


def test_cam_takes_each_item_with_its_own_weights() -> None:
    features = torch.cat([ACTIVATIONS, 10 * ACTIVATIONS])
    assert cam(features, torch.tensor([[1.0, 0.0], [0.0, 1.0]])).tolist() == [[[1, 2]], [[30, 0]]]


def test_grad_cam() -> None:
    """Mean gradients are (1, 1): 1 + 3 and 2 + 0."""
    assert grad_cam(ACTIVATIONS, GRADIENTS).tolist() == [[[4, 2]]]
    assert grad_cam(ACTIVATIONS, -GRADIENTS).tolist() == [[[0, 0]]]


def test_layer_cam() -> None:
    """relu(gradient) is (4, 0) and (0, 3): 4 * 1 and 3 * 0."""
    assert layer_cam(ACTIVATIONS, GRADIENTS).tolist() == [[[4, 0]]]
    assert layer_cam(ACTIVATIONS, -GRADIENTS).tolist() == [[[3, 4]]]


def test_layer_cam_of_negative_activations_is_cut() -> None:
    assert layer_cam(-ACTIVATIONS, GRADIENTS).tolist() == [[[0, 0]]]


def test_nwc_cam() -> None:
    """The weight -1 counts as 0; where no weight is negative it is CAM."""
    assert nwc_cam(ACTIVATIONS, torch.tensor([[1.0, -1.0]])).tolist() == [[[1, 2]]]
    assert nwc_cam(ACTIVATIONS, torch.tensor([[2.0, 1.0]])).tolist() == [[[5, 4]]]


def test_grad_cam_plus_plus() -> None:
    """Channel 1: sum A = 3, alpha at g = 4 is 1 / (2 + 12), weight 4/14. Channel 2: g = 3, 1 / (2 + 9), 3/11."""
    expected = row(4 / 14 + 3 * 3 / 11, 2 * 4 / 14)
    torch.testing.assert_close(grad_cam_plus_plus(ACTIVATIONS, GRADIENTS), expected)


def test_grad_cam_plus_plus_where_its_denominator_is_zero() -> None:
    """2 + sum(A) g = 0 with a sum of -1 and g = 2: alpha is 0, and no infinity comes out."""
    assert grad_cam_plus_plus(torch.tensor([[[[-1.0]]]]), torch.tensor([[[[2.0]]]])).tolist() == [[[0]]]
    assert grad_cam_plus_plus(ACTIVATIONS, torch.zeros_like(GRADIENTS)).tolist() == [[[0, 0]]]


def test_grad_cam_plus_plus_of_tiny_gradients() -> None:
    """g^2 underflows and alpha tends to 1/2: the map keeps its shape."""
    maps = grad_cam_plus_plus(ACTIVATIONS, torch.full_like(ACTIVATIONS, 1e-30))
    torch.testing.assert_close(scale_to_peak(maps), row(1, 0.5))


def test_norm_grad() -> None:
    """Norms (sqrt 10, 2) and (sqrt 17, sqrt 13)."""
    torch.testing.assert_close(norm_grad(ACTIVATIONS, GRADIENTS), row(170**0.5, 2 * 13**0.5))


def test_zoom_cam_and_layer_cam_normal() -> None:
    """4 * 1 - 1 * 3 = 1, and -2 * 2 + 3 * 0 = -4, cut. One layer of Zoom-CAM is LayerCAM-normal."""
    assert zoom_cam(ACTIVATIONS, GRADIENTS).tolist() == [[[1, 0]]]
    assert layer_cam_normal(ACTIVATIONS, -GRADIENTS).tolist() == [[[0, 4]]]
    activations, gradients = torch.rand(3, 5, 4, 6), torch.randn(3, 5, 4, 6)
    assert torch.equal(zoom_cam(activations, gradients), layer_cam_normal(activations, gradients))


def test_score_cam() -> None:
    """Scores ln 3 and 0 weigh the channels 3/4 and 1/4, with any constant added."""
    for constant in (0.0, -7.0):
        scores = torch.tensor([[3.0, 1.0]]).log() + constant
        torch.testing.assert_close(score_cam(ACTIVATIONS, scores), row(0.75 * 1 + 0.25 * 3, 0.75 * 2))


def test_under_average_pooling_grad_cam_is_cam() -> None:
    """The gradient of a linear head behind global average pooling is w / (H W) everywhere."""
    features, weights = torch.rand(2, 4, 3, 5), torch.randn(2, 4)
    gradients = (weights / 15)[:, :, None, None].expand_as(features)
    torch.testing.assert_close(grad_cam(features, gradients) * 15, cam(features, weights))
    torch.testing.assert_close(layer_cam(features, gradients) * 15, nwc_cam(features, weights))
    torch.testing.assert_close(zoom_cam(features, gradients) * 15, cam(features, weights))


METHODS = [grad_cam, grad_cam_plus_plus, norm_grad, layer_cam, layer_cam_normal, zoom_cam]


@pytest.mark.parametrize("method", METHODS)
def test_maps_are_not_negative_and_leave_their_arguments_alone(method: object) -> None:
    activations, gradients = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    kept = activations.clone(), gradients.clone()
    maps = method(activations, gradients)
    assert maps.shape == (2, 4, 5)
    assert maps.min() >= 0
    assert torch.equal(activations, kept[0])
    assert torch.equal(gradients, kept[1])


# --- the grid ------------------------------------------------------------------------------------------------------


def test_pool_grid_by_hand() -> None:
    """Activations are averaged, gradients summed; the last column is cut by the border."""
    activations = torch.tensor([[[[1.0, 3.0, 5.0], [1.0, 3.0, 7.0]]]])
    gradients = torch.tensor([[[[1.0, 0.0, 2.0], [0.0, 0.0, 3.0]]]])
    pooled, summed = pool_grid(activations, gradients)
    assert pooled.tolist() == [[[[2, 6]]]]
    assert summed.tolist() == [[[[1, 5]]]]


def test_pool_grid_removes_a_checkerboard() -> None:
    """Gradients that reach every other position only, as behind a convolution of stride 2 and size 1."""
    gradients = torch.zeros(1, 1, 6, 6)
    gradients[..., ::2, ::2] = 1
    activations = torch.ones(1, 1, 6, 6)
    assert layer_cam(activations, gradients).unique().tolist() == [0, 1]
    assert layer_cam(*pool_grid(activations, gradients)).unique().tolist() == [1]


@pytest.mark.parametrize("method", METHODS)
def test_no_item(method: object) -> None:
    assert method(torch.zeros(0, 2, 3, 4), torch.zeros(0, 2, 3, 4)).shape == (0, 3, 4)


# --- scaling -----------------------------------------------------------------------------------------------------


def test_scale_to_peak() -> None:
    maps = torch.cat([row(1, 4, 2), row(0, 0.5, 0.25)])
    assert scale_to_peak(maps).tolist() == [[[0.25, 1, 0.5]], [[0, 1, 0.5]]]


def test_a_silent_map_stays_zero_beside_one_that_is_not() -> None:
    assert scale_to_peak(torch.cat([row(0, 0), row(0, 2)])).tolist() == [[[0, 0]], [[0, 1]]]
    assert tanh_scale(row(0, 0)).tolist() == [[[0, 0]]]


def test_min_max_scale() -> None:
    maps = torch.cat([row(1, 4, 2), row(0, 0.5, 0.25)])
    torch.testing.assert_close(min_max_scale(maps), torch.cat([row(0, 1, 1 / 3), row(0, 1, 0.5)]))
    assert min_max_scale(torch.cat([row(3, 3), row(0, 0)])).tolist() == [[[0, 0]], [[0, 0]]]


@pytest.mark.parametrize("peak", [1e-38, 1e-40, 1e-44, 1e38])
def test_extreme_peaks(peak: float) -> None:
    """No epsilon dwarfs a small map, and no reciprocal of a subnormal number overflows."""
    scaled = scale_to_peak(row(peak, 0))
    assert scaled.tolist() == [[[1, 0]]]


def test_nan_is_not_hidden() -> None:
    assert not scale_to_peak(row(float("inf"), 1)).isfinite().all()


def test_scaling_nothing() -> None:
    assert scale_to_peak(torch.zeros(0, 2, 3)).shape == tanh_scale(torch.zeros(0, 2, 3)).shape == (0, 2, 3)


def test_scaling_does_not_write_into_its_input() -> None:
    maps = row(1, 4)
    scale_to_peak(maps)
    tanh_scale(maps)
    assert maps.tolist() == [[[1, 4]]]


def test_tanh_scale() -> None:
    """tanh(2) = 0.9640, tanh(1) = 0.7616, tanh(0.5) = 0.4621."""
    torch.testing.assert_close(tanh_scale(row(8, 4, 0)), row(0.9640276, 0.7615942, 0))
    torch.testing.assert_close(tanh_scale(row(8, 4, 0), gamma=1.0), row(0.7615942, 0.4621172, 0))


# --- sizes and fusion --------------------------------------------------------------------------------------------


def test_resize_maps_by_hand() -> None:
    """Corners are not aligned: from two to four values, the middle ones lie a quarter of the way."""
    torch.testing.assert_close(resize_maps(row(0, 4), (1, 4)), row(0, 1, 3, 4))
    torch.testing.assert_close(resize_maps(row(0, 1, 3, 4), (1, 2)), row(0.5, 3.5))


def test_resize_maps_keeps_what_fits() -> None:
    maps = torch.rand(2, 3, 4)
    assert resize_maps(maps, (3, 4)) is maps
    assert resize_maps(maps, (6, 5)).shape == (2, 6, 5)


@pytest.mark.parametrize("size", [(3, 4), (6, 5)])
def test_resize_no_map(size: tuple[int, int]) -> None:
    resized = resize_maps(torch.zeros(0, 3, 4, dtype=torch.float64), size)
    assert (resized.shape, resized.dtype) == ((0, *size), torch.float64)


def test_resize_commutes_with_a_flip() -> None:
    maps = torch.rand(2, 5, 7)
    torch.testing.assert_close(resize_maps(maps.flip(-1), (9, 13)), resize_maps(maps, (9, 13)).flip(-1))


def test_fuse() -> None:
    maps = [row(0.25, 1), row(0.5, 0.5)]
    assert fuse(maps, size=(1, 2)).tolist() == [[[0.5, 1]]]
    assert fuse(maps, size=(1, 2), mode="max").tolist() == [[[0.5, 1]]]
    assert fuse(maps, size=(1, 2), mode="mean").tolist() == [[[0.375, 0.75]]]
    assert fuse(maps, size=(1, 2), mode="product").tolist() == [[[0.125, 0.5]]]


def test_fuse_brings_layers_to_one_size_first() -> None:
    torch.testing.assert_close(fuse([row(0, 4), row(2, 2, 2, 2)], size=(1, 4)), row(2, 2, 3, 4))


def test_fuse_of_one_layer_and_of_no_item() -> None:
    for mode in ("max", "mean", "product"):
        assert fuse([row(0.5, 1)], size=(1, 2), mode=mode).tolist() == [[[0.5, 1]]]
        assert fuse([torch.zeros(0, 1, 2)], size=(4, 4), mode=mode).shape == (0, 4, 4)


def test_fuse_refuses_nothing_and_unknown_modes() -> None:
    with pytest.raises(ValueError, match="at least one layer"):
        fuse([], size=(1, 2))
    with pytest.raises(ValueError, match="'sum' is unknown; there are max, mean and product"):
        fuse([row(1)], size=(1, 1), mode="sum")
