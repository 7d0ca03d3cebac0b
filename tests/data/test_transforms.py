import random

import numpy as np
import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

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
        ({"size": 32, "flip": 1.5}, "augment.flip=1.5 must be a probability"),
        ({"size": 32, "jitter": -0.1}, "augment.jitter=-0.1 must be 0 or more"),
    ],
)
def test_settings_that_cannot_be(options: dict, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        Augment(**options)


def test_a_mask_of_another_size_is_refused() -> None:
    image, mask = ramp()
    with pytest.raises(ValueError, match=r"of the image's shape \(40, 60\), not \(60, 40\)"):
        Augment(size=32)(image, mask.T, seed=0)


def test_an_array_with_strides_of_its_own() -> None:
    image, mask = ramp()
    expected = Augment(size=32, jitter=0.4)(image, mask, seed=1)
    turned, turned_mask = np.ascontiguousarray(image[::-1, ::-1]), np.ascontiguousarray(mask[::-1, ::-1])
    view, labels = Augment(size=32, jitter=0.4)(turned[::-1, ::-1], turned_mask[::-1, ::-1], seed=1)
    assert torch.equal(view, expected[0])
    assert torch.equal(labels, expected[1])


def test_a_view_shares_no_memory_with_its_image() -> None:
    image, mask = ramp(32, 32)
    view, labels = Augment(size=32, scale=(1.0, 1.0), flip=0.0)(image, mask, seed=5)
    view.zero_(), labels.zero_()
    assert np.array_equal(image, ramp(32, 32)[0])
    assert np.array_equal(mask, ramp(32, 32)[1])


# --- against torchvision -----------------------------------------------------------------------------------------


def by_torchvision(
    image: np.ndarray, mask: np.ndarray, *, seed: int, size: int, scale: tuple[float, float], flip: float, jitter: float
) -> tuple[torch.Tensor, torch.Tensor]:
    steps = v2.Compose(
        [
            v2.ScaleJitter((size, size), scale_range=scale, antialias=True),
            v2.RandomHorizontalFlip(flip),
            *(
                [v2.ColorJitter(jitter, jitter, jitter)] if jitter else []
            ),  # without strength it draws numbers all the same
            v2.RandomCrop(size, pad_if_needed=True, fill={tv_tensors.Image: 99, tv_tensors.Mask: IGNORE}),
        ]
    )
    torch.manual_seed(seed)
    view, labels = steps(tv_tensors.Image(to_tensor(image)), tv_tensors.Mask(torch.from_numpy(mask)))
    return view.as_subclass(torch.Tensor), labels.as_subclass(torch.Tensor)


@pytest.mark.parametrize("shape", [(60, 83), (121, 47), (64, 64), (50, 150)])
@pytest.mark.parametrize("scale", [(1.0, 1.5), (0.4, 0.9), (0.7, 2.3), (1.0, 1.0)])
@pytest.mark.parametrize("jitter", [0.0, 0.4, 1.7])
def test_views_are_those_of_torchvision(shape: tuple[int, int], scale: tuple[float, float], jitter: float) -> None:
    """Pixel for pixel: results do not move with the way in which views are computed."""
    draw = np.random.default_rng(0)
    image = draw.integers(0, 256, (*shape, 3), dtype=np.uint8)
    mask = draw.integers(0, 21, shape, dtype=np.uint8)
    for seed, (size, flip) in enumerate([(64, 0.5), (64, 0.5), (64, 1.0), (33, 0.0), (97, 0.5), (97, 0.5)]):
        options = {"size": size, "scale": scale, "flip": flip, "jitter": jitter}
        expected, expected_labels = by_torchvision(image, mask, seed=seed, **options)
        view, labels = Augment(**options, fill=99)(image, mask, seed=seed)
        assert torch.equal(view, expected)
        assert torch.equal(labels, expected_labels)


# --- images that keep their own size -----------------------------------------------------------------------------


def test_without_fit_a_crop_is_a_part_of_the_image_as_it_is() -> None:
    """The colours of a pixel say where it comes from."""
    image, mask = ramp()
    places = set()
    for seed in SEEDS:
        view, labels = Augment(size=16, scale=(1.0, 1.0), flip=0.0, fit=False)(image, mask, seed=seed)
        left, top = (int(value) // 4 for value in view[:2, 0, 0])
        window = slice(top, top + 16), slice(left, left + 16)
        assert torch.equal(view, to_tensor(image[window]))
        assert torch.equal(labels, torch.from_numpy(mask[window]))
        places.add((top, left))
    assert len(places) > 1


def test_without_fit_the_scale_is_one_of_the_image() -> None:
    """40x60 pixels: half and one and a half of them, whatever the size of the crop."""
    for size in (16, 321):
        draw = Augment(size=size, scale=(0.5, 0.5), fit=False).draw(40, 60, seed=0)
        assert (draw.height, draw.width) == (20, 30)
        draws = [Augment(size=size, scale=(0.5, 1.5), fit=False).draw(40, 60, seed=seed) for seed in range(200)]
        widths = [draw.width for draw in draws]
        assert min(widths) in (30, 31)
        assert max(widths) in (89, 90)
        assert all(abs(draw.height - draw.width * 2 / 3) <= 1 for draw in draws)


def test_with_fit_large_and_small_images_are_seen_alike() -> None:
    augment = Augment(size=32, scale=(0.5, 2.0))
    for seed in SEEDS:
        assert augment.draw(40, 60, seed=seed) == augment.draw(400, 600, seed=seed)


def test_without_fit_an_image_smaller_than_the_crop_is_padded() -> None:
    image, mask = ramp(20, 24)
    view, labels = Augment(size=32, scale=(1.0, 1.0), flip=0.0, fit=False)(image, mask, seed=1)
    assert int((labels == IGNORE).sum()) == 32 * 32 - 20 * 24
    assert torch.equal((view == 127).all(dim=0), labels == IGNORE)


def test_without_fit_a_line_of_pixels_keeps_one() -> None:
    image, mask = ramp(1, 60)
    _, labels = Augment(size=16, scale=(0.5, 0.5), fit=False)(image, mask, seed=0)
    assert int((labels != IGNORE).sum()) == 16
