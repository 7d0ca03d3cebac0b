import random

import numpy as np
import pytest
import torch

from wsss.data import Augment
from wsss.data.transforms import to_tensor
from wsss.errors import ConfigError
from wsss.types import IGNORE

SEEDS = range(12)


def ramp(height: int = 40, width: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """An image that says where its pixels are (red 4 * column, green 4 * row), and a mask of 10x10 blocks.

    Block (i, j) has the label 6 i + j.
    """
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    image = np.stack([4 * columns, 4 * rows, np.full_like(rows, 9)], axis=-1)
    return image, rows // 10 * 6 + columns // 10


def test_to_tensor() -> None:
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    tensor = to_tensor(image)
    assert tensor.shape == (3, 2, 4)
    assert tensor.dtype == torch.uint8
    assert tensor[1, 0, 2] == image[0, 2, 1] == 7


def test_shapes_and_types() -> None:
    image, mask = ramp()
    view, labels = Augment(size=32)(image, mask, seed=0)
    assert (view.shape, view.dtype, type(view)) == ((3, 32, 32), torch.uint8, torch.Tensor)
    assert (labels.shape, labels.dtype, type(labels)) == ((32, 32), torch.uint8, torch.Tensor)
    assert Augment(size=32)(image, seed=0)[1] is None


def test_an_identity_where_there_is_nothing_to_choose() -> None:
    image, mask = ramp(32, 32)
    view, labels = Augment(size=32, scale=(1.0, 1.0), flip=0.0)(image, mask, seed=5)
    assert torch.equal(view, to_tensor(image))
    assert torch.equal(labels, torch.from_numpy(mask))


def test_a_certain_flip() -> None:
    image, mask = ramp(32, 32)
    view, labels = Augment(size=32, scale=(1.0, 1.0), flip=1.0)(image, mask, seed=5)
    assert torch.equal(view, to_tensor(image).flip(-1))
    assert torch.equal(labels, torch.from_numpy(mask).flip(-1))


def test_the_seed_alone_decides_the_view() -> None:
    image, mask = ramp()
    augment = Augment(size=32, scale=(0.5, 2.0), jitter=0.4)
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    first, first_labels = augment(image, mask, seed=7)
    augment(image, mask, seed=8)
    torch.manual_seed(2)
    np.random.seed(2)
    random.seed(2)
    again, again_labels = Augment(size=32, scale=(0.5, 2.0), jitter=0.4)(image, mask, seed=7)
    assert torch.equal(first, again)
    assert torch.equal(first_labels, again_labels)
    assert len({augment(image, mask, seed=seed)[0].numpy().tobytes() for seed in SEEDS}) == len(SEEDS)


def test_a_mask_beside_it_does_not_change_the_view() -> None:
    image, mask = ramp()
    augment = Augment(size=32, scale=(0.5, 2.0), jitter=0.4)
    for seed in SEEDS:
        assert torch.equal(augment(image, seed=seed)[0], augment(image, mask, seed=seed)[0])


def test_the_random_state_of_the_process_is_left_alone() -> None:
    image, mask = ramp()
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    Augment(size=32, jitter=0.4)(image, mask, seed=3)
    assert torch.equal(states[0], torch.get_rng_state())
    np.testing.assert_array_equal(states[1], np.random.get_state()[1])
    assert states[2] == random.getstate()


@pytest.mark.parametrize("scale", [(0.5, 0.9), (1.0, 2.5), (0.5, 1.5)])
def test_the_mask_follows_the_image(scale: tuple[float, float]) -> None:
    """Each pixel's colour says which block it comes from, whatever was cut, scaled or mirrored."""
    image, mask = ramp()
    augment = Augment(size=48, scale=scale, flip=0.5, jitter=0.0)
    for seed in SEEDS:
        view, labels = augment(image, mask, seed=seed)
        assert set(labels.unique().tolist()) <= {*range(24), IGNORE}  # nearest: no label between two others
        padded = labels == IGNORE
        assert (view[:, padded] == 127).all()
        column, row, blue = view[:, ~padded].float() / 4
        assert (blue == 9 / 4).all()
        known = labels[~padded]
        step = 60 / (48 * scale[0])  # pixels of the image per pixel of the smallest view
        assert (column - 10 * (known % 6) - 4.5).abs().max() < 5 + step
        assert (row - 10 * (known // 6) - 4.5).abs().max() < 5 + step


def test_a_small_image_is_padded_with_grey_and_ignored() -> None:
    image, mask = np.zeros((40, 40, 3), np.uint8), np.ones((40, 40), np.uint8)
    view, labels = Augment(size=32, scale=(0.5, 0.5), fill=124)(image, mask, seed=2)
    inside = labels == 1
    assert inside.sum() == 16 * 16
    assert (labels[~inside] == IGNORE).all()
    assert (view[:, inside] == 0).all()
    assert (view[:, ~inside] == 124).all()


def test_the_scale_is_that_of_the_long_side() -> None:
    image, mask = np.zeros((20, 80, 3), np.uint8), np.ones((20, 80), np.uint8)
    _, labels = Augment(size=32, scale=(0.75, 0.75))(image, mask, seed=2)
    rows, columns = (labels == 1).any(1).sum(), (labels == 1).any(0).sum()
    assert (int(columns), int(rows)) == (24, 6)


def test_jitter_moves_colours_and_no_labels() -> None:
    image, mask = np.full((32, 32, 3), (90, 130, 60), np.uint8), ramp(32, 32)[1]
    augment = Augment(size=32, scale=(1.0, 1.0), flip=0.0, jitter=0.5)
    seen = set()
    for seed in SEEDS:
        view, labels = augment(image, mask, seed=seed)
        assert torch.equal(labels, torch.from_numpy(mask))
        seen.add(tuple(view[:, 0, 0].tolist()))
    assert len(seen) == len(SEEDS)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"size": 15}, "augment.size=15 is too small"),
        ({"size": 32, "scale": (1.5, 1.0)}, r"augment.scale=\[1.5, 1.0\] must be two factors"),
        ({"size": 32, "scale": (0.0, 1.0)}, "both above 0"),
        ({"size": 32, "scale": (1.0,)}, "must be two factors"),
    ],
)
def test_settings_that_cannot_be(options: dict, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        Augment(**options)
