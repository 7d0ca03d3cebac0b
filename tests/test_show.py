"""``python -m wsss.show``: panels of an ImageNet network without any configuration, and of a trained classifier."""

from __future__ import annotations

import wsss  # noqa: F401  # isort: skip  # before timm, which imports torchvision

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import tiny
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torch import Tensor

from wsss import show
from wsss.cams import CamMethod
from wsss.errors import ConfigError
from wsss.models.imagenet import CLASSES, ImageNetClassifier, class_names
from wsss.pipeline import Pipeline

ENCODER = "mobilenetv2_035"
RANDOM = ("--classifier", "timm", f"classifier.encoder={ENCODER}", "classifier.weights=null")
Run = Callable[..., tuple[int, str]]


def draw(path: Path, size: tuple[int, int] = (96, 64)) -> Path:
    picture = Image.fromarray(np.random.default_rng(0).integers(90, 150, (size[1], size[0], 3), dtype=np.uint8))
    ImageDraw.Draw(picture).ellipse((20, 10, 60, 50), fill=(200, 40, 40))
    picture.save(path)
    return path


def blank_picture(side: int, class_ids: list[int]) -> show.Picture:
    image, probabilities = np.zeros((side, side, 3), np.uint8), torch.full((CLASSES,), 1e-3)
    return show.Picture(Path("a.jpg"), Path("b.png"), image, probabilities, class_ids)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test runs in an empty folder, where panels go by default; small tiles and one thread, for speed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(show, "TILE_WIDTH", 50)
    monkeypatch.setenv("COLUMNS", "200")
    with tiny.contained():
        yield


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return draw(tmp_path / "photo.jpg")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command in this process: exit code, and what it printed on both streams."""
    return tiny.runner(show.main, capsys)


@pytest.fixture
def titles(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The titles of the tiles of each panel that is made."""
    seen: list[list[str]] = []
    original = show.panel

    def panel(tiles, **options):
        seen.append([tile.title for tile in tiles])
        return original(tiles, **options)

    monkeypatch.setattr(show, "panel", panel)
    return seen


@pytest.fixture(scope="module")
def network() -> ImageNetClassifier:
    torch.manual_seed(0)
    return ImageNetClassifier(encoder=ENCODER).eval()


@pytest.fixture
def model(network: ImageNetClassifier) -> show.Model:
    return show.Model(
        network=network,
        title="",
        names=class_names(),
        first_number=0,
        short_side=64,
        probabilities=lambda logits: logits.softmax(dim=0),
        shown=lambda probabilities: show.strongest(probabilities, 2),
        restore=lambda name, method: None,
        configuration=lambda name: show.composed([f"cam={name}"])[0],
    )


# --- the ImageNet network ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", [ENCODER, "resnet10t"])
def test_logits_are_those_of_timms_own_model_bias_included(encoder, tmp_path):
    torch.manual_seed(1)
    reference = timm.create_model(encoder).eval()
    torch.nn.init.normal_(reference.get_classifier().bias)
    save_file(reference.state_dict(), tmp_path / "weights.safetensors")
    found = ImageNetClassifier(encoder=encoder, weights=str(tmp_path / "weights.safetensors")).eval()
    images = torch.rand(2, 3, 80, 64)
    with torch.no_grad():
        expected = reference((images - found.mean) / found.std)
        torch.testing.assert_close(found(images), expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(found(images), found(images) - found.bias)


def test_bundled_weights_are_of_the_whole_model():
    network = ImageNetClassifier(encoder="tf_efficientnet_lite0", weights="bundled")
    assert network.test_side == 256
    assert network.bias.abs().max() > 0


@pytest.mark.parametrize(
    ("encoder", "options"),
    [
        ("convnext_atto", {}),  # a norm after pooling
        ("mobilenetv3_small_050", {}),  # a convolution after pooling
        (ENCODER, {"pooling": "tap"}),
        (ENCODER, {"fused_stages": [4, 5]}),
    ],
)
def test_a_model_that_does_more_than_pool_and_classify_is_refused(encoder, options):
    with pytest.raises(ConfigError, match=f"{encoder}, as configured, does not end in global average pooling"):
        ImageNetClassifier(encoder=encoder, **options)


def test_names_stand_in_the_order_of_the_classes():
    names = class_names()
    assert len(names) == CLASSES
    assert (names[0], names[999][0]) == (("tench", "Tinca tinca"), "toilet tissue")


# --- images alone -----------------------------------------------------------------------------------------------------


def test_a_panel_has_a_row_for_each_class_and_a_tile_for_each_method(photo, run, titles):
    code, output = run(photo, *RANDOM, "--classes", "golden retriever", "1", "--methods", "cam", "layercam", "zoomcam")
    assert code == 0, output
    (row,) = titles
    assert row[1:4] == [f"{name}: golden retriever" for name in ("cam", "layercam", "zoomcam")]
    assert row[5:] == [f"{name}: goldfish" for name in ("cam", "layercam", "zoomcam")]
    assert row[4] == "goldfish 0 %"
    with Image.open("photo_cams.png") as panel:
        assert panel.format == "PNG"
        assert panel.width == 10 + 4 * (show.TILE_WIDTH + 10)
    for said in (
        "photo.jpg",
        "golden retriever 0 %, goldfish 0 %",
        "photo_cams.png",
        "zoomcam",
        f"{ENCODER}, ImageNet",
    ):
        assert said in output


def test_the_most_probable_classes_are_shown_by_default(photo, run, titles):
    assert run(photo, *RANDOM, "--methods", "cam")[0] == 0
    (row,) = titles
    assert len(row) == 2 * 2
    assert row[0].startswith(row[1].removeprefix("cam: "))
    ranked = torch.tensor([0.1, 0.4, 0.3, 0.2])
    assert show.imagenet("timm", RANDOM[2:], top=3).shown(ranked) == [2, 3, 4]


def test_many_methods_go_on_in_a_next_line(model):
    picture = show.Picture(
        Path("a.jpg"), Path("b.png"), np.zeros((8, 8, 3), np.uint8), torch.full((CLASSES,), 1e-3), [1, 2]
    )
    picture.scores = {f"method{i}": torch.zeros(2, 2, 2) for i in range(7)}
    tiles, columns = show.tiles(picture, model, threshold=None)
    assert (len(tiles), columns) == (2 * 2 * 4, 4)  # 1 + 7 tiles a class
    assert tiles[1].title == "method0: tench (nothing found)"


def test_a_threshold_outlines_a_region(model):
    scores = torch.zeros(1, 10, 10)
    scores[0, 3:7, 3:7] = 1.0
    picture = show.Picture(
        Path("a.jpg"), Path("b.png"), np.zeros((10, 10, 3), np.uint8), torch.full((CLASSES,), 1e-3), [1]
    )
    picture.scores = {"cam": scores}
    plain, outlined = (show.tiles(picture, model, threshold=value)[0][1].image for value in (None, 0.5))
    changed = (plain != outlined).any(axis=2)
    assert changed.any()
    assert outlined[changed].min() > 200  # white
    assert not changed[: show.TILE_WIDTH // 5].any()


def test_images_are_resized_to_the_networks_usual_short_side(photo):
    assert show.read_picture(photo, Path("x.png"), 32).image.shape == (32, 48, 3)
    assert show.read_picture(photo, Path("x.png"), None).image.shape == (64, 96, 3)


def test_deep_images_are_seen_as_in_training(tmp_path: Path):
    photo = tmp_path / "deep.png"
    Image.fromarray(np.full((4, 4), 4095, np.uint16)).save(photo)
    assert show.read_picture(photo, Path("x.png"), None, white=4095).image.max() == 255
    assert show.read_picture(photo, Path("x.png"), None).image.max() == 4095 // 257
    assert show.fitted_size(5000, 50, 256) == (1024, 10)


class Learner(CamMethod):
    """Learns how many images each class has."""

    def fit(self, network, images):
        self.seen = [tuple(ids) for _, ids in images]
        return {"seen": torch.ones(len(self.seen))}

    def layer_maps(self, network, images, class_ids) -> list[Tensor]:
        raise NotImplementedError

    def fuse(self, maps, size) -> Tensor:
        raise NotImplementedError


def test_a_method_that_learns_does_so_from_the_images_given(model, photo):
    picture = show.read_picture(photo, Path("x.png"), 64)
    show.predict(picture, model, [208])
    learner, plain = Learner(), show.cam_methods(["cam"], model)
    assert show.learn({"learner": learner, **plain}, model, [picture, picture]) == ["learner"]
    assert learner.seen == [(208,), (208,)]


# --- names ------------------------------------------------------------------------------------------------------------


def test_classes_go_by_any_of_their_names_or_by_their_number(model):
    assert show.find_class("Golden Retriever", model) == 208
    assert show.find_class("207", model) == 208
    assert show.find_class("Tinca tinca", model) == 1
    assert show.find_class("gong", model) == 578  # its first name; chimes are called gong too


def test_a_class_may_be_called_by_a_number_that_is_not_its_own(model):
    digits = replace(model, names=[("2",), ("1",), ("0",)], first_number=1)
    assert [show.find_class(name, digits) for name in ("1", "2", "3")] == [2, 1, 3]


def test_an_ambiguous_class_must_be_given_by_number(model):
    with pytest.raises(ConfigError, match=r"several classes are called crane; .* 134 \(crane\), 517 \(crane\)"):
        show.find_class("crane", model)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--classes", "golden retreiver"), "unknown class 'golden retreiver'. Did you mean golden retriever"),
        (("--classes", "1000"), "the numbers go from 0 to 999"),
        (("--methods", "grad_cam"), "unknown method 'grad_cam'. Did you mean gradcam"),
        (
            ("--classifier", "efficientnet_lite9"),
            "unknown classifier 'efficientnet_lite9'. Did you mean",
        ),
        (("--classifier", "vgg16"), "lost the layers that ImageNet's classes go with"),
        (("--classifier", "timm", "data.root=x"), "data.root=x is not about the ImageNet classifier"),
        (("data.rot=x",), "Could not override 'data.rot'"),
        (("--top", "0"), "0 must be 1 or more"),
        (("--threshold", "1.5"), "1.5 must be above 0"),
        (("--out", "x.jpg"), "panels are PNG files"),
    ],
)
def test_what_cannot_be_ends_with_a_message_and_code_2(arguments, said, photo, run):
    if arguments[0] in ("--classes", "--methods"):
        arguments = (*RANDOM, *arguments)
    code, output = run(photo, *arguments)
    assert code == 2
    assert said in output
    assert "Traceback" not in output
    assert [path.name for path in Path().iterdir()] == ["photo.jpg"]


def test_a_method_that_cannot_work_is_told_by_name_and_left_out_of_all(model, monkeypatch, caplog):
    def cannot(self, network):
        raise ConfigError("no such layer")

    monkeypatch.setattr("wsss.cams.ZoomCam.check", cannot)
    with pytest.raises(ConfigError, match="zoomcam: no such layer"):
        show.cam_methods(["cam", "zoomcam"], model)
    assert {"layercam", "lpcam", "scorecam"} <= set(show.options("cam"))
    monkeypatch.setattr(show, "options", lambda group: ["cam", "layercam", "scorecam", "zoomcam"])
    assert list(show.cam_methods(["layercam", "all"], model)) == ["layercam", "cam"]
    assert "zoomcam is left out: no such layer" in caplog.text


def test_overrides_are_told_from_files_and_options(tmp_path):
    draw(tmp_path / "a=b.png")
    found = [item for item in ("a=b.png", "c=d.png", "+experiment=x", "--out=y", "photo.jpg") if show.is_override(item)]
    assert found == ["c=d.png", "+experiment=x"]


def test_help_says_what_to_type(run):
    code, output = run("-h")
    assert code == 0
    assert "python -m wsss.show photo.jpg +experiment=" in output


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_folder_stands_for_its_images_but_not_for_panels(tmp_path, caplog):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("b.png", "a.jpg", "a_cams.png"):
        draw(folder / name)
    (folder / "notes.txt").write_text("")
    assert show.image_paths([folder, folder / "a.jpg"]) == [folder / "a.jpg", folder / "b.png"]
    for number in range(show.FOLDER_LIMIT + 3):
        shutil.copy(folder / "b.png", folder / f"c{number:02}.png")
    assert len(show.image_paths([folder])) == show.FOLDER_LIMIT
    assert "the first 20 of 25 images" in caplog.text


@pytest.mark.parametrize(
    ("name", "said"),
    [("broken.jpg", "is no image that can be read"), ("empty", "no image in the folder"), ("gone.jpg", "no such file")],
)
def test_what_is_no_image_is_told(name, said, tmp_path, run):
    (tmp_path / "broken.jpg").write_text("no image")
    (tmp_path / "empty").mkdir()
    code, output = run(name, *RANDOM, "--methods", "cam")
    assert code == 2
    assert said in output
    assert name in output


def test_panels_go_where_they_are_wanted(tmp_path):
    a, b = tmp_path / "x" / "a.jpg", tmp_path / "y" / "a.jpg"
    assert show.panel_paths([a, b], None) == [Path("a_cams.png"), Path("a_2_cams.png")]
    assert show.panel_paths([a], tmp_path / "out") == [tmp_path / "out" / "a_cams.png"]
    assert show.panel_paths([a], tmp_path / "mine.png") == [tmp_path / "mine.png"]
    with pytest.raises(ConfigError, match="one file, but there are 2 images"):
        show.panel_paths([a, b], tmp_path / "mine.png")


def test_an_image_is_never_overwritten(tmp_path, run):
    own = draw(tmp_path / "own.png")
    panel = draw(tmp_path / "own_cams.png")
    before = own.read_bytes(), panel.read_bytes()
    for arguments in ((own, "--out", own), (own, panel)):
        code, output = run(*arguments, *RANDOM)
        assert code == 2
        assert "would overwrite" in output
    assert (own.read_bytes(), panel.read_bytes()) == before


# --- a trained classifier ---------------------------------------------------------------------------------------------


def overrides(pipeline: Pipeline) -> tuple[str, ...]:
    return pipeline.overrides


def test_a_trained_classifier_shows_the_classes_of_its_data_set(finished, run, titles):
    image = finished.data.image_path(tiny.TRAIN[3])
    code, output = run(image, "--methods", "cam", "layercam", "--classes", "square", "2", *overrides(finished))
    assert code == 0, output
    (row,) = titles
    assert row[1:3] == ["cam: square", "layercam: square"]
    assert [title.split(" (")[0] for title in row[4:]] == ["cam: disc", "layercam: disc"]
    assert f"classifier {finished.fingerprint('classifier')} of " in output


def test_a_trained_classifier_shows_likely_classes_or_the_top_one(finished, run, titles):
    with torch.no_grad():
        model = show.trained(overrides(finished), top=None)
    assert model.shown(torch.tensor([0.2, 0.9, 0.6])) == [2, 3]
    assert model.shown(torch.tensor([0.2, 0.1, 0.4])) == [3]
    assert show.trained(overrides(finished), top=2).shown(torch.tensor([0.2, 0.1, 0.4])) == [3, 1]


def test_maps_are_those_of_the_seeds_stage(finished):
    id = tiny.TRAIN[3]
    model = show.trained(overrides(finished), top=None)
    picture = show.read_picture(finished.data.image_path(id), Path("x.png"), model.short_side)
    show.predict(picture, model, finished.data.class_ids(id))
    (method,) = show.cam_methods(["layercam"], model).values()
    show.compute(picture, "layercam", method, model, scales=[1.0], flip=True)
    kept = finished.artifact("seeds").read_seeds(id)
    np.testing.assert_allclose(picture.scores["layercam"].numpy(), kept.scores, atol=2e-3)  # kept in half precision


def test_a_classifier_that_has_not_been_trained_is_told_with_the_command(photo, tiny_set, tmp_path, run):
    code, output = run(photo, *tiny.command(tiny_set, tmp_path))
    assert code == 2
    assert "MissingArtifact: no finished classifier" in output
    assert "python train.py" in output


def test_what_the_seeds_stage_learns_is_taken_from_it_or_asked_for(finished, monkeypatch):
    monkeypatch.setattr("wsss.cams.LayerCam.fit", Learner.fit)
    restored = []
    monkeypatch.setattr("wsss.cams.LayerCam.restore", lambda self, state: restored.append(state))
    model = show.trained(overrides(finished), top=None)
    with pytest.raises(show.MissingArtifact, match=r"(?s)layercam: it learns from the training images.*generate_seeds"):
        show.cam_methods(["layercam"], model)
    artifact = finished.artifact("seeds")
    state = {"seen": torch.ones(2)}
    monkeypatch.setattr(type(artifact), "read_tensors", lambda self, name: state)
    show.cam_methods(["layercam"], model)
    assert restored == [state]


def test_values_below_cam_belong_to_the_method_that_the_configuration_chooses(finished):
    model = show.trained((*overrides(finished), "cam.fusion=product"), top=None)
    assert model.configuration("layercam").cam.fusion == "product"
    assert model.configuration("gradcam").cam.fusion == "max"
