import os
from collections.abc import Mapping
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image
from scipy.io import savemat

from wsss.data import VOC_CLASSES, Voc2012, VocLayout
from wsss.errors import ConfigError, DataError
from wsss.palette import voc_palette

HEIGHT, WIDTH = 4, 6
NOTHING = np.zeros((HEIGHT, WIDTH), np.uint8)


def mask_of(*labels: int) -> np.ndarray:
    """A mask of background with one pixel of each label in its first row."""
    mask = NOTHING.copy()
    mask[0, : len(labels)] = labels
    return mask


def write_mask(path: Path, mask: np.ndarray, *, indexed: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask)
    if indexed:
        image.putpalette(voc_palette().tobytes())
    image.save(path)


def write_split(root: Path, name: str, text: str) -> None:
    path = root / "ImageSets" / "Segmentation" / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def write_xml(root: Path, id: str, *names: str) -> Path:
    path = root / "Annotations" / f"{id}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    objects = "".join(f"<object><name>{name}</name><part><name>head</name></part></object>" for name in names)
    path.write_text(f"<annotation><filename>{id}.jpg</filename>{objects}</annotation>")
    return path


def write_set(
    root: Path,
    masks: Mapping[str, np.ndarray | None],
    *,
    val: str = "b",
    classes: tuple[str, ...] = ("cat", "dog", "cow"),
) -> Path:
    """A data set whose val split is one image and whose train split is the rest."""
    (root / "JPEGImages").mkdir(parents=True)
    for number, (id, mask) in enumerate(masks.items()):
        pixels = np.full((HEIGHT, WIDTH, 3), (10 * number, 1, 2), np.uint8)
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{id}.png")
        if mask is not None:
            write_mask(root / "SegmentationClass" / f"{id}.png", mask)
    write_split(root, "train", "".join(f"{id}\n" for id in masks if id != val))
    write_split(root, "val", f"{val}\n")
    if classes:
        (root / "classes.txt").write_text("\n".join(classes) + "\n")
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_set(tmp_path / "set", {"a": mask_of(3, 1), "b": mask_of(2), "c": mask_of(255)})


def says(error: pytest.ExceptionInfo[Exception], *parts: object) -> None:
    """The message holds each of ``parts``: a path, the fault, the remedy."""
    for part in parts:
        assert str(part) in str(error.value)


# --- what is read ------------------------------------------------------------------------------------------------


def test_one_image_with_all_that_is_known_of_it(root: Path) -> None:
    data = VocLayout(root, name="pets")
    sample = data.sample("a", with_mask=True)
    assert (data.name, sample.id, sample.class_ids) == ("pets", "a", (1, 3))
    np.testing.assert_array_equal(sample.image, np.full((HEIGHT, WIDTH, 3), (0, 1, 2)))
    np.testing.assert_array_equal(sample.mask, mask_of(3, 1))
    assert sample.image.dtype == sample.mask.dtype == np.uint8
    assert data.sample("a").mask is None
    with pytest.raises(FrozenInstanceError):
        sample.id = "b"


def test_splits_keep_their_order_and_may_have_other_names(root: Path) -> None:
    write_split(root, "train", "c  1\n\n  a -1\n")  # VOC's lists have a second column
    write_split(root, "extra", "b\nc\n")
    data = VocLayout(root, train="train", val="extra")
    assert data.ids("train") == ("c", "a")
    assert data.ids("extra") == ("b", "c")
    assert list(data.tags("train").items()) == [("c", ()), ("a", (1, 3))]


def test_classes_come_from_the_file_or_are_those_of_voc(root: Path) -> None:
    assert VocLayout(root).classes == ("cat", "dog", "cow")
    (root / "classes.txt").unlink()
    assert VocLayout(root).classes == VOC_CLASSES
    assert (len(VOC_CLASSES), VOC_CLASSES[0], VOC_CLASSES[14], VOC_CLASSES[19]) == (
        20,
        "aeroplane",
        "person",
        "tvmonitor",
    )


def test_text_files_of_a_windows_editor(root: Path) -> None:
    (root / "classes.txt").write_bytes(b"\xef\xbb\xbfcat\r\ndog\r\ncow\r\n")
    (root / "ImageSets/Segmentation/train.txt").write_bytes(b"\xef\xbb\xbfa\r\nc\r\n")
    data = VocLayout(root)
    assert data.classes == ("cat", "dog", "cow")
    assert data.ids("train") == ("a", "c")


def test_grey_images_come_out_as_rgb(root: Path) -> None:
    Image.fromarray(np.full((HEIGHT, WIDTH), 7, np.uint8)).save(root / "JPEGImages" / "a.png")
    np.testing.assert_array_equal(VocLayout(root).image("a"), np.full((HEIGHT, WIDTH, 3), 7))


@pytest.mark.parametrize("indexed", [True, False])
def test_masks_are_indexed_or_grey(root: Path, indexed: bool) -> None:
    path = root / "SegmentationClass" / "a.png"
    write_mask(path, mask_of(2, 255), indexed=indexed)
    assert Image.open(path).mode == ("P" if indexed else "L")
    np.testing.assert_array_equal(VocLayout(root).mask("a"), mask_of(2, 255))


def test_a_mask_of_four_bits_a_pixel_is_read_by_value(root: Path) -> None:
    path = root / "SegmentationClass" / "a.png"
    image = Image.fromarray(mask_of(3, 2))
    image.putpalette(voc_palette()[:16].tobytes())
    image.save(path, bits=4)
    np.testing.assert_array_equal(VocLayout(root).mask("a"), mask_of(3, 2))


def test_a_set_without_masks(root: Path) -> None:
    for path in (root / "SegmentationClass").iterdir():
        path.unlink()
    (root / "SegmentationClass").rmdir()
    write_xml(root, "a", "cow")
    data = VocLayout(root, tags="xml")
    assert not data.has_masks("train")
    assert not data.has_masks("val")
    assert data.mask("a") is None
    assert data.sample("a", with_mask=True).class_ids == (3,)


# --- tags --------------------------------------------------------------------------------------------------------


def test_tags_from_masks_leave_out_background_and_ignored(root: Path) -> None:
    data = VocLayout(root)
    assert data.tag_source == "masks"
    assert data.class_ids("a") == (1, 3)
    assert data.class_ids("c") == ()  # 0 and 255 alone: legal, an image without any class


def test_tags_from_xml_count_objects_and_not_their_parts(root: Path) -> None:
    write_xml(root, "a", "dog", "cat", "dog")
    write_xml(root, "b")
    data = VocLayout(root, tags="xml")
    assert data.class_ids("a") == (1, 2)  # the mask says (1, 3)
    assert data.class_ids("b") == ()


# --- errors: what, where, next -----------------------------------------------------------------------------------


def test_an_unknown_source_of_tags(root: Path) -> None:
    with pytest.raises(ConfigError) as error:
        VocLayout(root, tags="captions")
    says(error, "data.tags='captions'", "masks, xml")


def test_a_missing_root(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        VocLayout(tmp_path / "nowhere", name="pets")
    says(error, tmp_path / "nowhere", "data.root=/path/to/pets")


def test_a_root_without_images(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        VocLayout(tmp_path)
    says(error, "JPEGImages", tmp_path, "README")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("\n\n", "is empty. Write one class name a line"),
        ("cat\ndog\ncat\n", "names cat twice. Each class stands on one line"),
        ("Background\ncat\n", "lists background as a class. Remove that line"),
        ("\n".join(f"class{i}" for i in range(255)), "has 255 classes; masks of 8 bits hold at most 254"),
    ],
)
def test_class_lists_that_cannot_be(root: Path, text: str, fault: str) -> None:
    (root / "classes.txt").write_text(text)
    with pytest.raises(DataError) as error:
        VocLayout(root)
    says(error, root / "classes.txt", fault)


def test_a_list_in_another_encoding(root: Path) -> None:
    (root / "classes.txt").write_bytes("chat\nvache\nélan".encode("latin-1"))
    with pytest.raises(DataError) as error:
        VocLayout(root)
    says(error, root / "classes.txt", "Save it as UTF-8")


def test_a_missing_split_names_those_there_are(root: Path) -> None:
    with pytest.raises(DataError) as error:
        VocLayout(root, train="train_aug")
    says(error, "'train_aug'", root / "ImageSets/Segmentation/train_aug.txt", "splits there: train, val")
    for split, name in (("train", "Train"), ("val", "validation")):
        (root / f"ImageSets/Segmentation/{split}.txt").rename(root / f"ImageSets/Segmentation/{name}.txt")
    with pytest.raises(DataError) as error:
        VocLayout(root)
    says(error, "splits there: Train, validation", "Choose them with data.train=Train data.val=validation")
    assert VocLayout(root, train="Train", val="validation").ids("validation") == ("b",)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("\n \n", "names no image. Write one image id a line"),
        ("a\nc\na\n", "names a more than once. Remove the repeated lines"),
        ("a\nx\ny\n", "(2 of 3 ids have none). Add the images or take the ids out of the split"),
    ],
)
def test_splits_that_cannot_be(root: Path, text: str, fault: str) -> None:
    write_split(root, "train", text)
    with pytest.raises(DataError) as error:
        VocLayout(root)
    says(error, root / "ImageSets/Segmentation/train.txt", fault)


@pytest.mark.parametrize("id", ["../outside", "sub/inside", "..", "./a"])
def test_ids_that_leave_the_folder_are_refused(root: Path, id: str) -> None:
    """Everything derived from an image is written under its id, so an id must be a plain name."""
    (root / "JPEGImages" / "sub").mkdir()
    for path in (root / "outside.png", root / "JPEGImages/sub/inside.png"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(path)
    write_split(root, "train", f"{id}\n")
    with pytest.raises(DataError) as error:
        VocLayout(root)
    says(error, root / "ImageSets/Segmentation/train.txt", repr(id), "take the ids out of the split")


@pytest.mark.parametrize("content", [b"", b"no image at all", None])
def test_an_image_that_does_not_decode(root: Path, content: bytes | None) -> None:
    path = root / "JPEGImages" / "a.png"
    path.write_bytes(path.read_bytes()[:-30] if content is None else content)  # None: cut short
    with pytest.raises(DataError) as error:
        VocLayout(root).image("a")
    says(error, path, "does not decode", "take a out of the split")


def test_a_mask_whose_image_does_not_decode(root: Path) -> None:
    path = root / "JPEGImages" / "a.png"
    path.write_bytes(b"no image at all")
    with pytest.raises(DataError) as error:
        VocLayout(root).mask("a")
    says(error, path, "does not decode", "Replace the file")


def test_an_image_too_large_to_be_sound(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)  # twice that is an error, and the image has 24
    data = VocLayout(root)
    for read, path in ((data.image, "JPEGImages/a.png"), (data.mask, "SegmentationClass/a.png")):
        with pytest.raises(DataError) as error:
            read("a")
        says(error, root / path, "does not decode")


def test_a_missing_mask(root: Path) -> None:
    (root / "SegmentationClass" / "b.png").unlink()  # the only one of val: val has no masks
    data = VocLayout(root)
    assert data.has_masks("train")
    assert not data.has_masks("val")
    assert data.mask("b") is None
    for read in (data.truth, data.class_ids):
        with pytest.raises(DataError) as error:
            read("b")
        says(error, root / "SegmentationClass/b.png", "Add it, or take b out of the split")


def test_a_split_with_some_of_its_masks(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", {"a": mask_of(1), "c": None, "b": mask_of(2)})
    with pytest.raises(DataError) as error:
        VocLayout(root)
    says(
        error,
        root / "SegmentationClass/c.png",
        "1 of 2 have none",
        "add those that are missing, or put those of train elsewhere",
    )


def test_masks_of_val_alone(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", {"a": None, "b": mask_of(2)})
    write_xml(root, "a", "cow")
    write_xml(root, "b", "dog")
    data = VocLayout(root, tags="xml")
    assert (data.has_masks("train"), data.has_masks("val")) == (False, True)
    assert data.mask("a") is None
    assert data.truth("b")[0, 0] == 2


def test_sixteen_bits_are_scaled(root: Path) -> None:
    values = np.array([[0, 257, 65535]], np.uint16)
    (root / "JPEGImages" / "a.png").unlink()
    Image.fromarray(values).save(root / "JPEGImages" / "a.png")
    assert VocLayout(root).image("a")[0].tolist() == [[0] * 3, [1] * 3, [255] * 3]
    assert VocLayout(root, white=257).image("a")[0].tolist() == [[0] * 3, [255] * 3, [255] * 3]
    assert Voc2012(root, white=514).image("a")[0, 1].tolist() == [127] * 3


def test_an_image_is_turned_upright(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to the right
    (root / "JPEGImages" / "a.png").unlink()
    Image.new("RGB", (HEIGHT, WIDTH)).save(root / "JPEGImages" / "a.jpg", exif=exif)
    data = VocLayout(root)
    assert data.image("a").shape == (HEIGHT, WIDTH, 3)
    assert data.truth("a").shape == (HEIGHT, WIDTH)


def test_two_images_of_one_id(root: Path) -> None:
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "JPEGImages" / "a.jpg")
    with pytest.raises(DataError) as error:
        VocLayout(root)
    says(error, root / "JPEGImages/a.jpg", "share the id 'a'")


def test_a_mask_that_does_not_decode(root: Path) -> None:
    path = root / "SegmentationClass" / "a.png"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError) as error:
        VocLayout(root).mask("a")
    says(error, path, "does not decode", "Replace the file")


def test_a_mask_of_another_size_than_its_image(root: Path) -> None:
    path = root / "SegmentationClass" / "a.png"
    write_mask(path, np.zeros((WIDTH, HEIGHT), np.uint8))
    with pytest.raises(DataError) as error:
        VocLayout(root).mask("a")
    says(error, path, "is 4x6", root / "JPEGImages/a.png", "is 6x4", "Export the mask at the size of the image")


def test_a_mask_value_that_is_no_class(root: Path) -> None:
    path = root / "SegmentationClass" / "a.png"
    write_mask(path, mask_of(3, 4, 254))
    data = VocLayout(root)
    for read in (data.mask, data.class_ids):
        with pytest.raises(DataError) as error:
            read("a")
        says(error, path, "the value 4", "3 classes (allowed: 0..3 and 255)", "list the class in classes.txt")


def test_a_coloured_mask(root: Path) -> None:
    path = root / "SegmentationClass" / "a.png"
    Image.new("RGB", (WIDTH, HEIGHT), (128, 0, 0)).save(path)
    with pytest.raises(DataError) as error:
        VocLayout(root).mask("a")
    says(error, path, "has mode RGB", "masks are indexed or 8-bit grey PNG files")


def test_tags_from_masks_without_masks(root: Path) -> None:
    (root / "SegmentationClass").rename(root / "elsewhere")
    with pytest.raises(DataError) as error:
        VocLayout(root).class_ids("a")
    says(error, root, "no folder SegmentationClass", "data.tags=xml")


@pytest.mark.parametrize(("name", "hint"), [("dgo", "Did you mean 'dog'?"), ("zeppelin", "Mend the annotation")])
def test_an_unknown_class_in_an_annotation(root: Path, name: str, hint: str) -> None:
    path = write_xml(root, "a", "cat", name)
    with pytest.raises(DataError) as error:
        VocLayout(root, tags="xml").class_ids("a")
    says(error, path, repr(name), hint, "list the class in classes.txt")
    assert ("Did you mean" in str(error.value)) == (name == "dgo")


def test_a_broken_annotation(root: Path) -> None:
    path = write_xml(root, "a", "cat")
    path.write_text(path.read_text()[:-5])
    with pytest.raises(DataError) as error:
        VocLayout(root, tags="xml").class_ids("a")
    says(error, path, "no valid XML", "Replace the file")


def test_a_missing_annotation(root: Path) -> None:
    with pytest.raises(DataError) as error:
        VocLayout(root, tags="xml").tags("train")
    says(error, root / "Annotations/a.xml", "data.tags=masks")


# --- VOC 2012 and SBD --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("difficult", "tags"), [(True, (1, 2, 3)), (False, (1, 3))])
def test_objects_marked_difficult(root: Path, difficult: bool, tags: tuple[int, ...]) -> None:
    """A class counts where one of its objects is not difficult."""
    objects = [("cat", "1"), ("cat", "0"), ("dog", "1"), ("cow", None)]
    texts = [
        f"<object><name>{name}</name>{f'<difficult>{mark}</difficult>' if mark else ''}</object>"
        for name, mark in objects
    ]
    write_xml(root, "a").write_text(f"<annotation>{''.join(texts)}</annotation>")
    assert VocLayout(root, tags="xml", difficult=difficult).class_ids("a") == tags


def test_masks_in_another_folder(root: Path) -> None:
    (root / "SegmentationClass").rename(root / "SegmentationClassAug")
    data = VocLayout(root, masks="SegmentationClassAug")
    assert data.class_ids("a") == (1, 3)
    np.testing.assert_array_equal(data.truth("b"), mask_of(2))
    with pytest.raises(DataError, match="no folder SegmentationClass"):
        VocLayout(root).class_ids("a")


def write_mat(path: Path, mask: np.ndarray) -> None:
    """A file as SBD has it: a struct with edges and the list of categories beside the mask."""
    edges = np.empty((20, 1), object)
    edges[:] = [[np.zeros(mask.shape, bool)]] * 20
    present = np.unique(mask[mask > 0])[:, None]
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"GTcls": {"Boundaries": edges, "Segmentation": mask, "CategoriesPresent": present}})


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """VOC with images a to f: c, a in train, b in val, and masks for these alone."""
    masks = {"c": mask_of(5), "a": mask_of(1, 255), "b": mask_of(20), "d": None, "e": None, "f": None}
    root = write_set(tmp_path / "VOC2012", masks, classes=())
    write_split(root, "train", "c\na\n")
    return root


@pytest.fixture
def sbd(tmp_path: Path) -> Path:
    """SBD with a, e in train and b, d in val: it has other masks of a and b, and knows nothing of c and f."""
    root = tmp_path / "benchmark_RELEASE" / "dataset"
    for id, mask in {"a": mask_of(9), "b": mask_of(9), "d": mask_of(7, 2), "e": mask_of()}.items():
        write_mat(root / "cls" / f"{id}.mat", mask)
    (root / "train.txt").write_text("e\na\n")
    (root / "val.txt").write_text("b\nd\n")
    return root


def test_train_aug_joins_voc_and_sbd(voc: Path, sbd: Path) -> None:
    data = Voc2012(voc, train="train_aug", sbd=sbd, sbd_count=4)
    assert data.ids("train_aug") == ("a", "c", "d", "e")  # sorted; b is in VOC's val
    assert data.ids("val") == ("b",)
    assert data.has_masks("train_aug")
    assert data.has_masks("val")
    np.testing.assert_array_equal(data.truth("a"), mask_of(1, 255))  # VOC's own mask goes before SBD's
    np.testing.assert_array_equal(data.truth("b"), mask_of(20))
    np.testing.assert_array_equal(data.mask("d"), mask_of(7, 2))
    assert data.truth("d").dtype == np.uint8
    assert data.tags("train_aug") == {"c": (5,), "a": (1,), "d": (2, 7), "e": ()}


def test_sbd_may_be_given_by_the_folder_above(voc: Path, sbd: Path) -> None:
    assert Voc2012(voc, train="train_aug", sbd=sbd.parent, sbd_count=None).ids("train_aug") == ("a", "c", "d", "e")


def test_other_splits_do_not_ask_sbd_which_is_said(voc: Path, sbd: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert Voc2012(voc).ids("train") == ("c", "a")
    assert not caplog.messages
    assert Voc2012(voc, sbd=sbd).ids("train") == ("c", "a")
    assert caplog.messages == ["data.sbd adds no image: it makes the split train_aug, see data.train"]


def test_tags_of_train_aug_from_xml(voc: Path, sbd: Path) -> None:
    for id in "abcde":
        write_xml(voc, id, "cat")
    data = Voc2012(voc, train="train_aug", tags="xml", sbd=sbd, sbd_count=4)
    assert data.tags("train_aug") == dict.fromkeys("cade", (8,))


def test_train_aug_as_a_list_and_a_folder_of_masks(voc: Path) -> None:
    write_split(voc, "train_aug", "e\nc\n")
    for id in "ecb":
        write_mask(voc / "SegmentationClassAug" / f"{id}.png", mask_of(3))
    data = Voc2012(voc, train="train_aug", masks="SegmentationClassAug")
    assert data.ids("train_aug") == ("e", "c")
    assert data.tags("train_aug") == {"e": (3,), "c": (3,)}


def test_the_options_build_voc(voc: Path, sbd: Path) -> None:
    from wsss.build import build

    chosen = ("data=voc2012", f"data.root={voc}", f"data.sbd={sbd}", "data.train=train_aug", "data.sbd_count=4")
    data = build(tiny.composed(*chosen), "data")
    assert isinstance(data, Voc2012)
    assert (data.name, data.ids("train_aug")) == ("voc2012", ("a", "c", "d", "e"))
    assert build(tiny.composed("data=voc2012", f"data.root={voc}"), "data").ids("train") == ("c", "a")


def test_another_number_of_images_than_expected(voc: Path, sbd: Path) -> None:
    with pytest.raises(DataError) as error:
        Voc2012(voc, train="train_aug", sbd=sbd)
    says(error, "train_aug has 4 images instead of 10582", "2 of VOC train and 2 + 2 of train and val in", sbd,
         "without the 1 of VOC val", "data.sbd_count=null")  # fmt: skip


def test_train_aug_without_a_list_and_without_sbd(voc: Path) -> None:
    with pytest.raises(DataError) as error:
        Voc2012(voc, train="train_aug")
    says(error, voc / "ImageSets/Segmentation/train_aug.txt", "data.sbd=/path/to/benchmark_RELEASE/dataset")


def test_a_folder_that_is_not_sbd(voc: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        Voc2012(voc, train="train_aug", sbd=tmp_path)
    says(error, f"no folder cls in {tmp_path}", "data.sbd=", "data.download=true")


def test_downloads_go_where_the_set_is_read(voc: Path, sbd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[tuple[str, Path]] = []
    monkeypatch.setattr("wsss.data.voc.fetch", lambda name, root: fetched.append((name, root)))
    Voc2012(voc, sbd=sbd)
    assert fetched == []
    Voc2012(voc, download=True)
    assert fetched == [("voc2012", voc)]
    Voc2012(voc, sbd=sbd.parent, download=True)
    assert fetched[1:] == [("voc2012", voc), ("sbd", sbd)]
    with pytest.raises(DataError, match="no folder cls"):
        Voc2012(voc, sbd=voc / "new", download=True)
    assert fetched[-1] == ("sbd", voc / "new")


def test_without_voc_the_message_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        Voc2012(tmp_path / "nowhere")
    says(error, tmp_path / "nowhere", "data.root=/path/to/voc2012", "data.download=true")


def test_lists_of_sbd_that_are_missing_or_name_unknown_images(voc: Path, sbd: Path) -> None:
    (sbd / "val.txt").write_text("d\nx\n")
    with pytest.raises(DataError) as error:
        Voc2012(voc, train="train_aug", sbd=sbd, sbd_count=None)
    says(error, sbd, "names 'x', but there is no image", voc / "JPEGImages/x.*")
    (sbd / "val.txt").unlink()
    with pytest.raises(DataError) as error:
        Voc2012(voc, train="train_aug", sbd=sbd, sbd_count=None)
    says(error, sbd / "val.txt", "cannot be read")


def test_a_mask_missing_in_sbd(voc: Path, sbd: Path) -> None:
    (sbd / "cls" / "d.mat").unlink()
    with pytest.raises(DataError) as error:
        Voc2012(voc, train="train_aug", sbd=sbd, sbd_count=4)
    says(error, "SegmentationClass/d.png or", sbd / "cls/d.mat", "1 of 4 have none")


SPOILT = {
    "empty": (lambda path: path.write_bytes(b""), "does not decode"),
    "no mat file": (lambda path: path.write_bytes(b"no mat file at all" * 20), "does not decode"),
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:-40]), "does not decode"),
    "without GTcls": (lambda path: savemat(path, {"GTinst": 1}), "with GTcls.Segmentation (KeyError"),
    "without Segmentation": (lambda path: savemat(path, {"GTcls": {"Boundaries": 1}}), "with GTcls.Segmentation"),
    "fractions": (lambda path: write_mat(path, NOTHING + 0.5), "holds float64 of shape (4, 6)"),
    "negative": (lambda path: write_mat(path, NOTHING.astype(np.int16) - 1), "holds int16"),
    "a label too many": (lambda path: write_mat(path, mask_of(21)), "has the value 21"),
    "another size": (lambda path: write_mat(path, NOTHING.T.copy()), "is 4x6"),
}


@pytest.mark.parametrize("fault", SPOILT)
def test_masks_of_sbd_that_cannot_be(fault: str, voc: Path, sbd: Path) -> None:
    spoil, told = SPOILT[fault]
    spoil(sbd / "cls" / "d.mat")
    with pytest.raises(DataError) as error:
        Voc2012(voc, train="train_aug", sbd=sbd, sbd_count=4).truth("d")
    says(error, sbd / "cls" / "d.mat", told)


# --- the real thing ----------------------------------------------------------------------------------------------


def shared(name: str) -> Path:
    """A folder of real data, or the test is skipped."""
    folder = Path(os.environ.get("WSSS_DATA", Path(__file__).parents[2].parent / "shared" / "data")) / name
    if not folder.is_dir():
        pytest.skip(f"no {name}: set WSSS_DATA to a folder that holds it")
    return folder


def test_images_of_pascal_voc() -> None:
    """Four images of VOC 2012; sizes and pixel counts were taken from the files without this package."""
    data = Voc2012(shared("voc_samples"), train="val")
    assert data.tags("val") == {
        "2007_004189": (12,),
        "2007_006449": (2,),
        "2008_002536": (12, 17),
        "2010_005582": (5, 15),
    }
    assert [data.classes[i - 1] for i in (2, 5, 12, 15, 17)] == ["bicycle", "bottle", "dog", "person", "sheep"]
    sample = data.sample("2010_005582", with_mask=True)
    assert sample.image.shape == (500, 333, 3)
    counts = {}
    for id in data.ids("val"):
        labels, pixels = np.unique(data.truth(id), return_counts=True)
        counts[id] = dict(zip(labels.tolist(), pixels.tolist(), strict=True))
    assert counts == {
        "2007_004189": {0: 145856, 12: 12154, 255: 8490},
        "2007_006449": {0: 132550, 2: 32954, 255: 21996},
        "2008_002536": {0: 129916, 12: 7321, 17: 13891, 255: 8372},
        "2010_005582": {0: 99037, 5: 2598, 15: 58474, 255: 6391},
    }


def test_train_aug_is_the_list_of_the_field(tmp_path: Path) -> None:
    """From VOC's lists, with SBD taken to have all images of the published list and of VOC's val, in another order."""
    lists = shared("voc_lists")
    train, val, expected = ((lists / f"{split}.txt").read_text().split() for split in ("train", "val", "train_aug"))
    root, sbd = tmp_path / "VOC2012", tmp_path / "dataset"
    (root / "JPEGImages").mkdir(parents=True)
    for id in {*expected, *val}:
        (root / "JPEGImages" / f"{id}.jpg").touch()
    for split, ids in (("train", train), ("val", val)):
        write_split(root, split, "\n".join(ids))
    (sbd / "cls").mkdir(parents=True)
    theirs = sorted({*expected, *val}, reverse=True)
    (sbd / "train.txt").write_text("\n".join(theirs[::3]))
    (sbd / "val.txt").write_text("\n".join([*theirs[1::3], *theirs[2::3]]))
    assert Voc2012(root, train="train_aug", sbd=sbd).ids("train_aug") == tuple(expected)
