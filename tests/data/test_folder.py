import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from PIL import Image

from wsss.data import FolderSet
from wsss.data.folder import stratified_split
from wsss.errors import ConfigError, DataError

WIDTH, HEIGHT = 6, 4


def write_images(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        path = root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT), (number, 0, 0)).save(path)
    return root


def write_mask(root: Path, id: str, *labels: int) -> None:
    path = root / "masks" / f"{id}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[0, : len(labels)] = labels
    Image.fromarray(mask).save(path)


def write_table(root: Path, *lines: str, end: str = "\n") -> Path:
    path = root / "tags.csv"
    path.write_bytes("".join(f"{line}{end}" for line in lines).encode())
    return path


def known(data: FolderSet) -> dict[str, tuple[str, ...]]:
    """Class names by id of all images of both splits."""
    return {
        id: tuple(data.classes[number - 1] for number in tags)
        for split in (data.train, data.val)
        for id, tags in data.tags(split).items()
    }


def says(error: pytest.ExceptionInfo[Exception], *parts: object) -> None:
    for part in parts:
        assert str(part) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four images without tags."""
    return write_images(tmp_path / "set", "a.jpg", "b.png", "c.jpg", "d.jpg")


ROWS = ("image,tags,split", "a.jpg,dog;cat,train", "b,cat,val", "c.jpg,,train", "d.jpg,cow,val")


# --- a table -----------------------------------------------------------------------------------------------------


def test_a_table_with_splits(root: Path) -> None:
    write_table(root, *ROWS)
    data = FolderSet(root, name="pets")
    assert (data.name, data.tag_source, data.classes) == ("pets", "csv", ("cat", "cow", "dog"))
    assert (data.ids("train"), data.ids("val")) == (("a", "c"), ("b", "d"))
    assert data.tags("train") == {"a": (1, 3), "c": ()}
    assert data.tags("val") == {"b": (1,), "d": (2,)}
    assert not data.has_masks("train")
    assert data.mask("a") is None
    assert data.image("b")[0, 0].tolist() == [1, 0, 0]
    assert data.image_path("b") == root / "images" / "b.png"


def test_the_list_of_classes_gives_their_order(root: Path) -> None:
    write_table(root, *ROWS)
    (root / "classes.txt").write_text("dog\nhorse\ncow\ncat\n")
    data = FolderSet(root)
    assert data.classes == ("dog", "horse", "cow", "cat")
    assert data.tags("train") == {"a": (1, 4), "c": ()}


@pytest.mark.parametrize(
    "lines",
    [
        ROWS,
        ("split,tags,image", "train,dog;cat,a.jpg", "val,cat,b", "train,,c.jpg", "val,cow,d.jpg"),
        (" Image , TAGS,Split", "a, dog ; cat; ,train ", "", " b.png ,cat;cat,val", ",,", "c,,train", "d,cow,val"),
        ('"image","tags","split"', '"a.jpg","dog;cat","train"', '"b","cat",val', 'c,"",train', "d,cow,val"),
        ("image\ttags\tsplit", "a.jpg\tdog;cat\ttrain", "b\tcat\tval", "c\t\ttrain", "d\tcow\tval"),
        ("image;tags;split", 'a.jpg;"dog;cat";train', "b;cat;val", "c;;train", "d;cow;val"),
        ("image,tags,split", "images/a.jpg,dog;cat,train", "images\\b.png,cat,val", "./c.jpg,,train", "d,cow,val"),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_tables_as_programs_write_them(root: Path, lines: Sequence[str], end: str, mark: bytes) -> None:
    path = write_table(root, *lines, end=end)
    path.write_bytes(mark + path.read_bytes())
    data = FolderSet(root)
    assert known(data) == {"a": ("cat", "dog"), "b": ("cat",), "c": (), "d": ("cow",)}
    assert data.ids("val") == ("b", "d")


def test_names_with_dots_blanks_and_letters_beyond_ascii(tmp_path: Path) -> None:
    root = write_images(tmp_path, "v1.2.jpg", "v1.png", "two words.jpg", "Straße.jpg", "x.jpg.png", "x.jpg")
    names = ("v1.2", "v1.png", "two words.jpg", "Straße", "x.jpg", "x.jpg.png")
    write_table(root, "image,tags,split", *(f"{name},c{n},{('train', 'val')[n % 2]}" for n, name in enumerate(names)))
    assert known(FolderSet(root)) == {
        "v1.2": ("c0",), "v1": ("c1",), "two words": ("c2",), "Straße": ("c3",), "x": ("c4",), "x.jpg": ("c5",),
    }  # fmt: skip


def test_images_in_folders(tmp_path: Path) -> None:
    root = write_images(tmp_path, "a.png", "one/a.png", "one/two/a.png", "one/b.png")
    write_table(root, "image,tags,split", "a,x,train", "one/a.png,x,val", "one/two/a,y,train", "one\\b,x,val")
    for id in ("a", "one/a", "one/two/a", "one/b"):
        write_mask(root, id, 1)
    data = FolderSet(root)
    assert data.ids("train") == ("a", "one/two/a")
    assert data.ids("val") == ("one/a", "one/b")
    assert data.has_masks("train")
    assert data.truth("one/two/a")[0, 0] == 1
    assert data.image("one/two/a")[0, 0].tolist() == [2, 0, 0]


def test_other_splits_are_left_out_and_said(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_table(root, "image,tags,split", "a,dog,train", "b,cat,test", "c,dog,val", "d,cat,test")
    data = FolderSet(root)
    assert (data.ids("train"), data.ids("val")) == (("a",), ("c",))
    assert data.classes == ("cat", "dog")
    assert caplog.messages == [f"{root / 'tags.csv'}: 2 images of other splits are left out (test)"]
    assert FolderSet(root, val="test").ids("test") == ("b", "d")


def test_files_that_are_no_images_are_left_out_and_said(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_table(root, *ROWS)
    (root / "images" / ".DS_Store").touch()
    (root / "images" / ".thumbs").mkdir()
    Image.new("L", (1, 1)).save(root / "images" / ".thumbs" / "a.jpg")
    FolderSet(root)
    assert not caplog.messages
    (root / "images" / "e.heic").touch()
    FolderSet(root)
    assert caplog.messages == [
        f"{root / 'images'}: 1 files that are no images by their name are left out (.heic: 1), such as e.heic. "
        "Images among them: convert them to .png or .jpg"
    ]


def test_images_of_a_kind_that_is_not_read_are_named(root: Path) -> None:
    (root / "images" / "e.HEIC").touch()
    write_table(root, *ROWS, "e.HEIC,dog,train")
    with pytest.raises(DataError) as error:
        FolderSet(root)
    says(error, "line 6 names the image 'e.HEIC'", "e.HEIC is there, but .HEIC is no kind of image that is read")
    for path in (root / "images").iterdir():
        path.rename(path.with_suffix(".raw" if path.stem == "a" else ".heic"))
    with pytest.raises(DataError) as error:
        FolderSet(root)
    says(error, "no image in", "5 other files (.heic: 4, .raw: 1): convert them to .png or .jpg")


BAD_TABLES: dict[str, tuple[Iterable[str], Sequence[str]]] = {
    "empty": ((), ["tags.csv is empty", "header image,tags"]),
    "header alone": (("image,tags,split",), ["has no row below its header"]),
    "no header": (("a.jpg,dog",), ["begins with 'a.jpg,dog'", "must be image,tags or image,tags,split"]),
    "a column misspelt": (
        ("image,tags,splits", "a,dog,train"),
        ["begins with 'image,tags,splits': the column 'splits' is unknown. Rename it to 'split'. The header must"],
    ),
    "a column more": (
        ("image,tags,split,weight", "a,dog,train,3"),
        ["begins with 'image,tags,split,weight': the column 'weight' is unknown. Remove it. The header must"],
    ),
    "a column twice": (("image,tags,tags", "a,dog,dog"), ["'image,tags,tags': the column 'tags' stands there twice"]),
    "no column of tags": (("image,split", "a,train"), ["begins with 'image,split'"]),
    "too many fields": (("image,tags", "a,dog", "b,dog,cat"), ["line 3 has 3 fields, the header 2", "joined by ';'"]),
    "too few fields": (("image,tags", "a"), ["line 2 has 1 fields, the header 2"]),
    "tags not quoted": (("image;tags", "a;dog;cat"), ["line 2 has 3 fields", "double quotes"]),
    "no such image": (("image,tags", "a,dog", "x.jpg,dog"), ["line 3 names the image 'x.jpg'", "not in"]),
    "another suffix": (("image,tags", "a.png,dog"), ["line 2", "'a.png'", "Did you mean 'a.jpg'?"]),
    "another case": (("image,tags", "A.JPG,dog"), ["line 2", "'A.JPG'", "Did you mean 'a.jpg'?"]),
    "no name": (("image,tags", ",dog"), ["line 2 names the image ''"]),
    "outside": (("image,tags", "../tags.csv,dog"), ["line 2 names the image '../tags.csv'"]),
    "the same image twice": (
        ("image,tags", "a,dog", "b,dog", "", "a.jpg,cat"),
        ["line 5 names the image 'a.jpg' again (first on line 2)", "one row an image"],
    ),
    "images without row": (("image,tags", "a,dog", "c,cat"), ["no row for the image", "b.png", "2 of 4 images"]),
    "no split": (("image,tags,split", "a,dog,train", "b,dog,"), ["line 3 names no split"]),
    "background": (("image,tags", "a,dog;Background"), ["line 2 has the tag Background", "beside 'dog'", "Remove it"]),
    "an open quote": (("image,tags", 'a,"dog', "b,cat"), ["line 3 cannot be read", "double quotes"]),
    "no tag at all": (("image,tags", "a,", "b,", "c,", "d,"), ["gives no image a tag"]),
    "no validation": (
        ("image,tags,split", "a,x,train", "b,x,train", "c,x,Val", "d,x,train"),
        ["no image of the split 'val' (images there: Val: 1, train: 3). Choose it with data.val=Val"],
    ),
    "splits of other names": (
        ("image,tags,split", "a,x,Train", "b,x,Train", "c,x,validation", "d,x,Train"),
        ["no image of the split 'train'", "Choose them with data.train=Train data.val=validation"],
    ),
    "one image a class": (("image,tags", "a,w", "b,x", "c,y", "d,z"), ["4 images cannot be divided", "name the split"]),
}  # fmt: skip


@pytest.mark.parametrize("fault", BAD_TABLES)
def test_tables_that_cannot_be(root: Path, fault: str) -> None:
    lines, told = BAD_TABLES[fault]
    path = write_table(root, *lines)
    with pytest.raises(DataError) as error:
        FolderSet(root)
    says(error, path, *told)


def test_all_bad_lines_are_told_at_once(root: Path) -> None:
    path = write_table(root, "image,tags,split", "a,dgo,train", "b,dog,", "x.jpg,dog,train", "c,dog", "d,dog,val")
    (root / "classes.txt").write_text("dog\n")
    with pytest.raises(DataError) as error:
        FolderSet(root)
    first, *lines = str(error.value).split("\n")
    assert first == f"{path} has 4 faults:"
    parts = [
        "line 2 names the class 'dgo'",
        "line 3 names no split",
        "line 4 names the image 'x.jpg'",
        "line 5 has 2 f",
    ]
    assert [line.strip()[: len(part)] for line, part in zip(lines, parts, strict=True)] == parts


def test_of_many_bad_lines_ten_are_told_and_the_others_counted(root: Path) -> None:
    write_table(root, "image,tags", *(f"x{n}.png,dog" for n in range(13)), 'a,"open')
    with pytest.raises(DataError) as error:
        FolderSet(root)
    first, *lines = str(error.value).split("\n")
    assert first.endswith("tags.csv has 14 faults:")
    assert [line.split()[1] for line in lines[:10]] == [str(n) for n in range(2, 12)]
    assert lines[10:] == ["  ... and 4 more"]


def test_words_for_no_class_are_no_tags_as_with_folders(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_table(root, "image,tags,split", "a,dog,train", "b, none,val", "c,GOOD,train", "d,background;none,val")
    data = FolderSet(root)
    assert data.classes == ("dog",)
    assert known(data) == {"a": ("dog",), "b": (), "c": (), "d": ()}
    assert "the tag of 3 images stands for no class (background, good, none)" in caplog.text
    (root / "classes.txt").write_text("dog\nGOOD\n")
    assert known(FolderSet(root)) == {"a": ("dog",), "b": (), "c": ("GOOD",), "d": ()}
    (root / "classes.txt").write_text("dog\ngood\n")
    with pytest.raises(DataError, match=r"line 4 names the class 'GOOD', .* Did you mean 'good'\?"):
        FolderSet(root)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("image,tags\na,dog\nb,élan\n".encode("latin-1"), "tags.csv, line 3 is not UTF-8 (byte 0xe9). Save it"),
        ("image,tags\na,dog\n".encode("utf-16"), "tags.csv is UTF-16. Save it as UTF-8"),
        (b"\n\n", "tags.csv is empty"),
        (b"\xef\xbb\xbf", "tags.csv is empty"),
    ],
)  # fmt: skip
def test_a_table_in_another_encoding(root: Path, content: bytes, told: str) -> None:
    (root / "tags.csv").write_bytes(content)
    with pytest.raises(DataError) as error:
        FolderSet(root)
    says(error, told)


def test_a_class_that_is_not_listed(root: Path) -> None:
    path = write_table(root, *ROWS)
    (root / "classes.txt").write_text("cat\ndogs\ncow\n")
    with pytest.raises(DataError) as error:
        FolderSet(root)
    says(error, f"{path}, line 2 names the class 'dog'", "none of the 3 in classes.txt", "Did you mean 'dogs'?")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("\n", "is empty"),
        ("cat\ndog\ncow\ncat\n", "names cat twice"),
        ("background\ncat\ndog\ncow\n", "lists background"),
    ],
)
def test_lists_of_classes_that_cannot_be(root: Path, text: str, told: str) -> None:
    write_table(root, *ROWS)
    (root / "classes.txt").write_text(text)
    with pytest.raises(DataError) as error:
        FolderSet(root)
    says(error, root / "classes.txt", told)


# --- a folder for each class ---------------------------------------------------------------------------------------


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    names = [f"{folder}/{n}.jpg" for folder in ("dent", "crack/deep", "Good", "none", "background") for n in range(4)]
    data = FolderSet(write_images(tmp_path, *names), val_fraction=0.25)
    assert (data.tag_source, data.classes) == ("folders", ("crack", "dent"))
    tags = known(data)
    assert len(tags) == 20
    assert tags["dent/0"] == ("dent",)
    assert tags["crack/deep/3"] == ("crack",)
    assert tags["Good/0"] == tags["none/1"] == tags["background/2"] == ()
    assert len(data.ids("val")) == 1 + 1 + 3


def test_a_class_may_be_called_good_if_it_is_listed(tmp_path: Path) -> None:
    root = write_images(tmp_path, *(f"{folder}/{n}.jpg" for folder in ("good", "bad", "none") for n in range(2)))
    (root / "classes.txt").write_text("good\nbad\n")
    assert known(FolderSet(root)) == {
        "good/0": ("good",), "good/1": ("good",), "bad/0": ("bad",), "bad/1": ("bad",), "none/0": (), "none/1": (),
    }  # fmt: skip


def test_folders_that_cannot_be(tmp_path: Path) -> None:
    root = write_images(tmp_path, "cat/a.jpg", "cat/b.jpg", "c.jpg")
    with pytest.raises(DataError) as error:
        FolderSet(root, tags="folders")
    says(error, root / "images/c.jpg", "lies in no folder named after its class (1 of 3 images do not)")
    (root / "images/c.jpg").unlink()
    (root / "classes.txt").write_text("dog\n")
    with pytest.raises(DataError) as error:
        FolderSet(root, tags="folders")
    says(error, f"the folder {root / 'images/cat'} names the class 'cat'", "none of the 1 in classes.txt")


# --- COCO's JSON -------------------------------------------------------------------------------------------------


def coco() -> dict[str, Any]:
    """Images of the fixture; horse is in no image, dog has the smaller id."""
    return {
        "images": [{"id": n, "file_name": name} for n, name in enumerate(("a.jpg", "images/b.png", "c.jpg", "d.jpg"))],
        "categories": [{"id": 9, "name": "cat"}, {"id": 4, "name": "dog"}, {"id": 5, "name": "horse"}],
        "annotations": [
            {"image_id": 0, "category_id": 9, "bbox": [0, 0, 1, 1]},
            {"image_id": 0, "category_id": 9},
            {"image_id": 0, "category_id": 4},
            {"image_id": 1, "category_id": 9, "iscrowd": 1},
            {"image_id": 3, "category_id": 4},
        ],
    }


def write_json(root: Path, content: object) -> Path:
    path = root / "annotations.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_annotations_of_coco(root: Path) -> None:
    write_json(root, coco())
    data = FolderSet(root)
    assert (data.tag_source, data.classes) == ("json", ("dog", "cat"))
    assert known(data) == {"a": ("dog", "cat"), "b": ("cat",), "c": (), "d": ("dog",)}
    (root / "classes.txt").write_text("cat\nhorse\ndog\n")
    assert FolderSet(root).class_ids("a") == (1, 3)


def altered(*steps: str | int, to: object) -> dict[str, Any]:
    """The annotations with the entry at ``steps`` replaced."""
    content = coco()
    node: Any = content
    for step in steps[:-1]:
        node = node[step]
    node[steps[-1]] = to
    return content


BAD_JSON: dict[str, tuple[object, Sequence[str]]] = {
    "empty": ("", ["is no valid JSON", "line 1 column 1"]),
    "cut short": ('{"images": [\n{"id": 1,', ["is no valid JSON", "line 2"]),
    "a list": ([], ["needs the lists images, annotations, categories"]),
    "a table missing": ({"images": [], "annotations": []}, ["needs the lists images, annotations, categories"]),
    "no name": (altered("categories", 1, to={"id": 4}), ["categories[1]", "a text as name"]),
    "a number as text": (altered("images", 0, "id", to="0"), ["images[0] needs a whole number as id"]),
    "no object": (altered("images", 0, to=3), ["images[0] needs a whole number as id"]),
    "an id twice": (altered("images", 1, "id", to=0), ["images[1] has the id 0 of an earlier entry"]),
    "a name twice": (altered("categories", 0, "name", to="dog"), ["categories: 'dog' stands there twice"]),
    "no such image": (altered("images", 2, "file_name", to="C.jpg"), ["'C.jpg' is not in", "Did you mean 'c.jpg'?"]),
    "an image twice": (altered("images", 2, "file_name", to="a.jpg"), ["'a.jpg' is listed twice"]),
    "an image not listed": (altered("images", to=coco()["images"][:2]), ["c.jpg is not listed (2 of 4 images"]),
    "an unknown image": (altered("annotations", 2, "image_id", to=7), ["annotations[2] has the image_id 7"]),
    "an unknown class": (altered("annotations", 4, "category_id", to=7), ["annotations[4] has the category_id 7"]),
    "no class": (altered("annotations", 4, to={"image_id": 0}), ["annotations[4] has the category_id None"]),
    "no annotation": (altered("annotations", to=[]), ["gives no image a tag"]),
    "background": (altered("categories", 0, "name", to="Background"), ["lists background as a class"]),
}  # fmt: skip


@pytest.mark.parametrize("fault", BAD_JSON)
def test_annotations_that_cannot_be(root: Path, fault: str) -> None:
    content, told = BAD_JSON[fault]
    path = write_json(root, content)
    with pytest.raises(DataError) as error:
        FolderSet(root)
    says(error, path, *told)


# --- which source, which folder ------------------------------------------------------------------------------------


def test_the_source_that_is_there_is_taken(tmp_path: Path) -> None:
    root = write_images(tmp_path, "cat/a.jpg", "cat/b.jpg", "dog/c.jpg", "dog/d.jpg")
    assert FolderSet(root).tag_source == "folders"
    write_table(root, "image,tags", "cat/a,x", "cat/b,x", "dog/c,x", "dog/d,x")
    assert FolderSet(root).tag_source == "csv"
    assert FolderSet(root, tags="folders").classes == ("cat", "dog")
    write_json(root, {})
    with pytest.raises(DataError, match=r"both tags\.csv and annotations\.json\. Choose with data\.tags=csv or"):
        FolderSet(root)
    assert FolderSet(root, tags="csv").classes == ("x",)


@pytest.mark.parametrize(("tags", "told"), [("csv", "no table"), ("json", "no file"), (None, "no tags in")])
def test_a_source_that_is_not_there(root: Path, tags: str | None, told: str) -> None:
    with pytest.raises(DataError) as error:
        FolderSet(root, tags=tags)
    says(error, root, told)


@pytest.mark.parametrize("options", [{"tags": "xml"}, {"val_fraction": 0.0}, {"val_fraction": 1.0}])
def test_options_that_cannot_be(root: Path, options: dict[str, Any]) -> None:
    write_table(root, *ROWS)
    ((name, value),) = options.items()
    with pytest.raises(ConfigError, match=f"data.{name}={value!r}"):
        FolderSet(root, **options)


def test_both_splits_of_one_name(root: Path) -> None:
    write_table(root, "image,tags", "a,x", "b,x", "c,x", "d,x")
    with pytest.raises(ConfigError, match="are both 'train'"):
        FolderSet(root, val="train")


def test_folders_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no data set at .*nowhere\. Set its folder with data\.root=/path/to/pets"):
        FolderSet(tmp_path / "nowhere", name="pets")
    with pytest.raises(DataError, match=f"no folder images in {tmp_path}"):
        FolderSet(tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match=r"no image in .*\.gif\)\. Put the images there"):
        FolderSet(tmp_path)


@pytest.mark.parametrize("name", ["images", "classes.txt", "masks", "tags.csv"])
def test_capital_letters_are_told_and_not_passed_over(name: str, root: Path) -> None:
    write_table(root, *ROWS)
    (root / "classes.txt").write_text("cat\ncow\ndog\n")
    write_mask(root, "a")
    (root / name).rename(root / name.capitalize())
    if (root / name).exists():
        pytest.skip("this disk does not tell capital letters apart")
    with pytest.raises(DataError) as error:
        FolderSet(root)
    says(error, root, name.capitalize(), f"ename it to {name}")


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("cat/a.jpg", "dog/b.jpg", "masks/a.png"), "folders of images (cat, dog): move them into"),
        (("a.jpg", "b.jpg", "c.txt"), "2 images in"),
        (("notes/a.txt",), "Put the images there"),
    ],
)
def test_images_that_lie_elsewhere_are_found(names: Sequence[str], told: str, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(DataError) as error:
        FolderSet(tmp_path)
    says(error, f"no folder images in {tmp_path}", told)


def test_two_images_of_one_id(tmp_path: Path) -> None:
    root = write_images(tmp_path, "one/a.jpg", "one/a.png")
    with pytest.raises(DataError, match="share the id 'one/a'"):
        FolderSet(root)


def test_links_to_folders_are_followed_and_circles_are_not(tmp_path: Path) -> None:
    write_images(tmp_path / "disk", "a.jpg", "b.jpg")
    root = tmp_path / "set"
    (root / "images").mkdir(parents=True)
    (root / "images" / "cat").symlink_to(tmp_path / "disk" / "images")
    (tmp_path / "disk" / "images" / "round").symlink_to(root / "images")
    assert known(FolderSet(root)) == {"cat/a": ("cat",), "cat/b": ("cat",)}


# --- masks -------------------------------------------------------------------------------------------------------


def test_masks_are_for_evaluation(root: Path) -> None:
    write_table(root, *ROWS)
    for id in "abcd":
        write_mask(root, id, 3, 255)
    data = FolderSet(root)
    assert data.has_masks("train")
    assert data.has_masks("val")
    assert data.truth("a")[0].tolist() == [3, 255, 0, 0, 0, 0]
    assert data.class_ids("a") == (1, 3)  # tags come from the table alone


def test_masks_that_cannot_be(root: Path) -> None:
    write_table(root, *ROWS)
    for id in "abc":
        write_mask(root, id, 4)
    with pytest.raises(DataError) as error:
        FolderSet(root)
    says(error, root / "masks/d.png", "1 of 2 have none")
    write_mask(root, "d")
    with pytest.raises(DataError) as error:
        FolderSet(root).truth("a")
    says(error, root / "masks/a.png", "has the value 4", "3 classes")


def test_images_without_an_object_need_no_mask(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As inspection exports it: masks of what is defective, none of what is sound."""
    write_table(root, *ROWS)
    write_mask(root, "a", 3)
    caplog.set_level("INFO", "wsss")
    data = FolderSet(root)
    assert (data.has_masks("train"), data.has_masks("val")) == (True, False)
    assert data.truth("c").shape == (HEIGHT, WIDTH)
    assert not data.truth("c").any()
    assert "1 images without tag and mask" in caplog.text


@pytest.mark.parametrize("name", ["a_mask.png", "a.jpg", "sub/a.png"])
def test_masks_that_belong_to_no_image_are_told(root: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    write_table(root, *ROWS)
    (root / "masks" / name).parent.mkdir(parents=True)
    Image.new("L", (WIDTH, HEIGHT)).save(root / "masks" / name)
    with pytest.raises(DataError) as error:
        FolderSet(root)
    says(error, "holds 1 files", Path(name).name, "expected a.png")
    for id in "ac":
        write_mask(root, id)
    assert FolderSet(root).has_masks("train")
    assert f"1 files belong to no image, such as {Path(name).name}" in caplog.text


def test_folders_of_splits_are_no_classes(tmp_path: Path) -> None:
    root = write_images(tmp_path, *(f"{folder}/cat/{n}.jpg" for folder in ("train", "val") for n in range(3)))
    with pytest.raises(DataError) as error:
        FolderSet(root)
    says(error, "train, val", "tags.csv")
    (root / "classes.txt").write_text("train\nval\n")  # trains, say
    assert FolderSet(root, val_fraction=0.5).classes == ("train", "val")


# --- a division of one's own -----------------------------------------------------------------------------------------


def test_a_division_in_proportion() -> None:
    """Ten images of a, five of b, twenty of nothing: a fifth of each."""
    tags = {f"a{n}": ["a"] for n in range(10)} | {f"b{n}": ["b"] for n in range(5)} | {f"_{n}": [] for n in range(20)}
    train, val = stratified_split(tags, val_fraction=0.2, seed=0)
    assert sorted({id[0] for id in val for _ in id}) == ["_", "a", "b"]
    assert [sum(id[0] == kind for id in val) for kind in "ab_"] == [2, 1, 4]
    assert set(train) | set(val) == set(tags)
    assert not set(train) & set(val)
    assert list(train) == sorted(train)
    assert list(val) == sorted(val)


def test_rare_classes_stand_on_both_sides() -> None:
    tags = {str(n): ["common"] for n in range(50)} | {"x": ["rare", "common"], "y": ["rare"], "z": ["single"]}
    for seed in range(10):
        train, val = stratified_split(tags, val_fraction=0.1, seed=seed)
        assert len({"x", "y"} & set(val)) == 1
        assert "z" in train
        assert sum("common" in tags[id] for id in val) == 5


def test_classes_that_come_together() -> None:
    """Shares stay within one image of what was asked for, although no image has one class alone."""
    rng = np.random.default_rng(0)
    tags = {str(n): [f"c{c}" for c in rng.permutation(6)[: rng.integers(1, 4)]] for n in range(300)}
    _, val = stratified_split(tags, val_fraction=0.2, seed=0)
    for c in range(6):
        members = [id for id in tags if f"c{c}" in tags[id]]
        assert abs(len(set(members) & set(val)) / len(members) - 0.2) < 0.05


def test_the_division_depends_on_ids_and_seed_alone() -> None:
    tags = {str(n): [f"c{n % 3}"] for n in range(60)}
    backwards = dict(reversed(tags.items()))
    assert stratified_split(tags, val_fraction=0.3, seed=1) == stratified_split(backwards, val_fraction=0.3, seed=1)
    assert stratified_split(tags, val_fraction=0.3, seed=1) != stratified_split(tags, val_fraction=0.3, seed=2)
    # This may never change, or a resumed run has other images than it began with.
    assert stratified_split({c: ["x"] for c in "abcdefgh"}, val_fraction=0.25, seed=0)[1] == ("f", "g")


def test_an_image_more_moves_few_others() -> None:
    tags = {str(n): ["x"] for n in range(100)}
    _, before = stratified_split(tags, val_fraction=0.2, seed=0)
    _, after = stratified_split(tags | {"new": ["x"]}, val_fraction=0.2, seed=0)
    assert len(set(before) ^ set(after)) <= 2


def test_a_set_divides_itself(root: Path) -> None:
    write_table(root, "image,tags", "a,x", "b,x", "c,x", "d,x")
    divisions = {FolderSet(root, val_fraction=0.5, seed=seed).ids("val") for seed in range(8)}
    assert all(len(val) == 2 for val in divisions)
    assert len(divisions) > 1
    assert FolderSet(root, seed=3).ids("val") == FolderSet(root, seed=3).ids("val")


# --- through the program -------------------------------------------------------------------------------------------


def converted(voc: Path, root: Path) -> Path:
    """The tiny set as a folder with a table, its images and masks below a further folder."""
    rows = ["image,tags,split"]
    for split, ids, tags in (("train", tiny.TRAIN, tiny.TRAIN_TAGS), ("val", tiny.VAL, tiny.VAL_TAGS)):
        for id, class_ids in zip(ids, tags, strict=True):
            for source, folder, suffix in (("JPEGImages", "images", "jpg"), ("SegmentationClass", "masks", "png")):
                target = root / folder / split / f"{id}.{suffix}"
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes((voc / source / f"{id}.{suffix}").read_bytes())
            rows.append(f"{split}/{id}.jpg,{';'.join(tiny.CLASSES[number - 1] for number in class_ids)},{split}")
    write_table(root, *rows)
    (root / "classes.txt").write_text("\n".join(tiny.CLASSES))
    return root


def test_the_options_build_the_set(tiny_set: Path, tmp_path: Path) -> None:
    from wsss.build import build

    root = converted(tiny_set, tmp_path)
    data = build(tiny.composed("data=folder", f"data.root={root}", "data.name=shapes"), "data")
    assert isinstance(data, FolderSet)
    assert (data.name, data.classes) == ("shapes", tiny.CLASSES)
    assert data.ids("val") == tuple(f"val/{id}" for id in tiny.VAL)


def test_white_moves_fingerprints_and_the_name_does_not(tiny_set: Path, tmp_path: Path) -> None:
    root = converted(tiny_set, tmp_path)
    prints = {
        option: tiny.pipeline(root, tmp_path, "data=folder", option).fingerprint("classifier")
        for option in ("data.white=null", "data.white=4095", "data.name=shapes")
    }
    assert prints["data.white=null"] == prints["data.name=shapes"] != prints["data.white=4095"]


@pytest.mark.slow
def test_a_folder_goes_through_all_stages(tiny_set: Path, tmp_path: Path) -> None:
    """Ids with a folder in them too: every result lies under its id."""
    root = converted(tiny_set, tmp_path / "folder")
    with tiny.contained():
        pipeline = tiny.pipeline(root, tmp_path / "store", "data=folder", "data.tags=csv")
        pipeline.make_all()
    seeds, labels = pipeline.artifact("seeds"), pipeline.artifact("labels")
    assert all(seeds.has_seeds(f"train/{id}") for id in tiny.TRAIN)
    assert labels.read_mask(f"train/{tiny.TRAIN[0]}").shape == (tiny.HEIGHT, tiny.WIDTH)
    assert pipeline.artifact("segmenter").metrics["miou"] is not None


# --- the real thing ----------------------------------------------------------------------------------------------


def test_magnetic_tiles() -> None:
    """658 photographs of industrial defects (Huang et al. 2018); numbers counted in tags.csv without this package."""
    folder = Path(os.environ.get("WSSS_DATA", Path(__file__).parents[2].parent / "shared" / "data")) / "magnetic_tile"
    if not folder.is_dir():
        pytest.skip("no magnetic tiles: set WSSS_DATA to a folder that holds magnetic_tile/")
    data = FolderSet(folder, name="magnetic_tile")
    assert (len(data.ids("train")), len(data.ids("val"))) == (511, 147)
    assert data.classes == ("blowhole", "break", "crack", "fray", "uneven")
    tags = data.tags("train") | data.tags("val")
    counts = {name: sum(number in ids for ids in tags.values()) for number, name in enumerate(data.classes, start=1)}
    assert counts == {"blowhole": 96, "break": 72, "crack": 52, "fray": 27, "uneven": 81}
    for id in sorted(tags)[::20]:  # the mask has the number of the class in the list, and nothing else
        assert set(np.unique(data.truth(id)).tolist()) - {0, 255} == set(tags[id])
