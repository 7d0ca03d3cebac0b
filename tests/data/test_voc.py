import os
from collections.abc import Mapping
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsss.data import VOC_CLASSES, VocLayout
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
    says(error, root / "SegmentationClass/c.png", "1 of 2 have none", "Add them, or take the ids out of the split")


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


# --- the real thing ----------------------------------------------------------------------------------------------


def test_images_of_pascal_voc() -> None:
    """Four images of VOC 2012; sizes and pixel counts were taken from the files without this package."""
    folder = Path(os.environ.get("WSSS_DATA", Path(__file__).parents[2].parent / "shared" / "data")) / "voc_samples"
    if not folder.is_dir():
        pytest.skip("no VOC images: set WSSS_DATA to a folder that holds voc_samples/ in VOC layout")
    data = VocLayout(folder, train="val")
    assert data.tags("val") == {
        "2007_004189": (12,),
        "2007_006449": (2,),
        "2008_002536": (12, 17),
        "2010_005582": (5, 15),
    }
    assert [data.classes[i - 1] for i in (2, 5, 12, 15, 17)] == ["bicycle", "bottle", "dog", "person", "sheep"]
    sample = data.sample("2010_005582", with_mask=True)
    assert sample.image.shape == (500, 333, 3)
    labels, counts = np.unique(sample.mask, return_counts=True)
    assert dict(zip(labels.tolist(), counts.tolist(), strict=True)) == {0: 99037, 5: 2598, 15: 58474, 255: 6391}
