import pytest
import torch
from torch import Tensor

from wsss.cams.functional import cam, fuse, grad_cam, layer_cam, resize_maps, scale_to_peak, tanh_scale

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


@pytest.mark.parametrize("method", [grad_cam, layer_cam])
def test_no_item(method: object) -> None:
    assert method(torch.zeros(0, 2, 3, 4), torch.zeros(0, 2, 3, 4)).shape == (0, 3, 4)


# --- scaling -----------------------------------------------------------------------------------------------------


def test_scale_to_peak() -> None:
    maps = torch.cat([row(1, 4, 2), row(0, 0.5, 0.25)])
    assert scale_to_peak(maps).tolist() == [[[0.25, 1, 0.5]], [[0, 1, 0.5]]]


def test_a_silent_map_stays_zero_beside_one_that_is_not() -> None:
    assert scale_to_peak(torch.cat([row(0, 0), row(0, 2)])).tolist() == [[[0, 0]], [[0, 1]]]
    assert tanh_scale(row(0, 0)).tolist() == [[[0, 0]]]


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
