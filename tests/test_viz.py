import base64
import io

import numpy as np
import pytest
from PIL import Image

from wsss import viz

GREY = np.full((4, 6, 3), 100, np.uint8)
RED = np.zeros((256, 3), np.uint8)
RED[1] = (200, 0, 0)


def test_labels_leave_background_untouched_and_tint_classes():
    labels = np.zeros((4, 6), np.uint8)
    labels[:, 3:] = 1
    painted = viz.overlay_labels(GREY, labels, palette=RED, alpha=0.5, contour=False)
    assert (painted[:, :3] == 100).all()
    assert painted[0, 4].tolist() == [150, 50, 50]


def test_contour_runs_inside_the_class():
    labels = np.zeros((4, 6), np.uint8)
    labels[:, 3:] = 1
    painted = viz.overlay_labels(GREY, labels, palette=RED, alpha=0.5)
    assert (painted[:, :3] == 100).all()
    assert (painted[:, 3] > 220).all()
    assert painted[0, 5].tolist() == [150, 50, 50]


def test_ignored_pixels_are_hatched_in_white_without_contour():
    labels = np.zeros((4, 6), np.uint8)
    labels[:, 3:] = 255
    painted = viz.overlay_labels(GREY, labels)
    assert (painted[:, :3] == 100).all()
    ignored = painted[:, 3:].reshape(-1, 3)
    assert (ignored > 100).all()
    assert len(np.unique(ignored)) == 2
    assert (ignored == ignored[:, :1]).all()


def test_overlays_do_not_write_to_their_input():
    image, labels = GREY.copy(), np.ones((4, 6), np.uint8)
    viz.overlay_labels(image, labels)
    viz.overlay_scores(image, labels.astype(np.float32))
    assert (image == GREY).all()
    assert (labels == 1).all()


def test_opacity_of_the_heat_grows_with_the_score():
    scores = np.zeros((4, 6), np.float32)
    scores[0, :3] = (0.25, 0.5, 1.0)
    painted = viz.overlay_scores(GREY, scores, colormap="gray", alpha=1.0)
    assert (painted[1:] == 100).all()
    # Opacity is the root of the score: 0.5 of grey 64 over 100.
    assert painted[0, 0].tolist() == [82, 82, 82]
    assert painted[0, 2].tolist() == [255, 255, 255]


def test_class_scores_take_the_colour_of_the_strongest():
    scores = np.zeros((2, 4, 6), np.float32)
    scores[0, 0, 0], scores[1, 0, 0], scores[1, 0, 1] = 1.0, 0.5, 1.0
    painted = viz.overlay_class_scores(GREY, scores, (1, 2), palette=RED, alpha=1.0)
    assert painted[0, 0].tolist() == [200, 0, 0]
    assert painted[0, 1].tolist() == [0, 0, 0]
    assert (painted[1:] == 100).all()


def test_class_scores_of_an_image_without_tags():
    assert (viz.overlay_class_scores(GREY, np.zeros((0, 4, 6), np.float32), ()) == GREY).all()


@pytest.mark.parametrize("bad", [-0.1, 1.5, np.nan])
def test_scores_outside_their_range_are_refused(bad):
    with pytest.raises(ValueError, match=r"expected scores in \[0, 1\]"):
        viz.overlay_scores(GREY, np.full((4, 6), bad, np.float32))


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"expected labels of shape \(4, 6\)"):
        viz.overlay_labels(GREY, np.zeros((3, 6), np.uint8))
    with pytest.raises(ValueError, match="uint8 image"):
        viz.overlay_scores(GREY.astype(np.float32), np.zeros((4, 6)))
    with pytest.raises(ValueError, match="each of 1 classes"):
        viz.overlay_class_scores(GREY, np.zeros((2, 4, 6)), (1,))


def test_resize_keeps_label_values_and_the_aspect_ratio():
    labels = np.array([[1, 255], [0, 2]], np.uint8)
    assert viz.resize_to(labels, 4, nearest=True).tolist() == np.kron(labels, np.ones((2, 2), np.uint8)).tolist()
    assert viz.resize_to(GREY, 3).shape == (2, 3, 3)
    assert viz.resize_to(np.ones((4, 6)), 3, height=7).dtype == np.float32


def test_panel_sets_pictures_in_lines():
    tiles = [viz.Tile(f"picture {index}, whose title does not fit", GREY) for index in range(3)]
    shown = viz.panel(tiles, columns=2, tile_width=60, gap=10)
    assert shown.shape == (10 + 2 * (20 + 40 + 10), 10 + 2 * (60 + 10), 3)
    assert (shown[30:70, 10:70] == 100).all()
    assert (shown[100:140, 10:70] == 100).all()
    assert (shown[100:, 80:] == 255).all()
    assert len(viz.panel(tiles, columns=2, tile_width=60, title="all")) > len(shown)
    with pytest.raises(ValueError, match="at least one"):
        viz.panel([])


@pytest.mark.parametrize("image_format", ["webp", "jpeg", "png"])
def test_data_uri_holds_an_image_file(image_format):
    head, _, body = viz.data_uri(GREY, image_format=image_format).partition(",")
    assert head == f"data:image/{image_format};base64"
    decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(body))))
    assert decoded.shape == GREY.shape
    assert np.abs(decoded.astype(int) - 100).max() <= 2
