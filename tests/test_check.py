"""``python -m wsss.check``: the tiny set is sound; broken in each way that the check knows, it is told by name."""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
from PIL import Image

from wsss import check
from wsss.artifacts import read_json
from wsss.check import Check, Seen, bit_counts, caption, correlation, difference_hash, look, near_pairs, top_pairs
from wsss.data import Augment
from wsss.data.images import Depth
from wsss.errors import DataError
from wsss.refine import ItemError
from wsss.types import IGNORE

Run = Callable[..., tuple[int, str, dict[str, Any]]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Checks a set in this process: exit code, what was printed, and check.json (empty where none was written)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(root: Path, *arguments: str) -> tuple[int, str, dict[str, Any]]:
        out = tmp_path / "out"
        given = ("data=voc_layout", f"data.root={root}", "--out", str(out), "--few", "1", "--contact-sheet", "0")
        code = check.main([*given, *arguments])
        found = out / "check.json"
        return code, capsys.readouterr().out, read_json(found) if found.is_file() else {}

    return call


def findings(numbers: dict[str, Any]) -> dict[str, list[str]]:
    """The examples of each finding by its code."""
    return {finding["code"]: finding["examples"] for finding in numbers["findings"]}


def image(root: Path, id: str) -> Path:
    return root / "JPEGImages" / f"{id}.jpg"


def mask(root: Path, id: str) -> Path:
    return root / "SegmentationClass" / f"{id}.png"


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as opened:
        return np.array(opened)


def put(root: Path, id: str, picture: np.ndarray, labels: np.ndarray | None = None) -> None:
    """Replace an image, without loss, and its mask."""
    image(root, id).unlink(missing_ok=True)
    Image.fromarray(picture).save(root / "JPEGImages" / f"{id}.png")
    put_mask(root, id, np.zeros(picture.shape[:2], np.uint8) if labels is None else labels)


def put_mask(root: Path, id: str, labels: np.ndarray) -> None:
    Image.fromarray(labels).save(mask(root, id))


def keep(root: Path, split: str, ids: Sequence[str]) -> None:
    (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(ids) + "\n")


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def seen(id: str, picture: np.ndarray, **facts: Any) -> Seen:
    difference, thumbnail = difference_hash(picture)
    size = (picture.shape[1], picture.shape[0])
    return Seen(id, (), size, check.pixel_digest(picture), difference, thumbnail, **facts)


# --- a sound set ------------------------------------------------------------------------------------------------------


def test_a_sound_set_has_no_findings_and_its_numbers_can_be_counted(tiny_set, run):
    code, output, numbers = run(tiny_set)
    assert (code, numbers["sound"], numbers["findings"]) == (0, True, [])
    assert "tiny" not in numbers["name"]
    assert numbers["root"] == str(tiny_set)
    assert numbers["classes"] == [
        {"name": "square", "train": 4, "val": 2},
        {"name": "disc", "train": 3, "val": 2},
        {"name": "wedge", "train": 3, "val": 1},
    ]
    assert numbers["together"] == [[4, 1, 1], [1, 3, 1], [1, 1, 3]]
    assert numbers["pairs"][0] == {"class": "disc", "with": "square", "images": 1, "share": pytest.approx(1 / 3)}
    train = numbers["splits"]["train"]
    assert (train["images"], train["decoded"], train["masks"], train["untagged"]) == (8, 8, 8, 1)
    assert train["tags_per_image"] == 10 / 8
    assert train["width"] == {"min": 48, "median": 64, "max": 64}
    assert train["height"] == {"min": 48, "median": 48, "max": 64}
    assert (train["grey"], train["colour"]) == (0, 8)
    shares = [(pixels(mask(tiny_set, id)) == IGNORE).mean() for id in tiny.TRAIN]
    assert train["ignored"] == pytest.approx(np.mean(shares))
    assert numbers["images"] == 12
    assert numbers["images_per_second"] > 0
    assert "own is sound: 0 kinds of errors, 0 of warnings; 12 images in" in output


def test_few_images_and_the_default_folder(tiny_set, run, tmp_path):
    code, output, _ = run(tiny_set, "--few", "4", f"paths.logs={tmp_path}/logs", "--out", f"{tmp_path}/other")
    assert code == 0
    assert findings(read_json(tmp_path / "other" / "check.json")) == {"few_images": ["disc: 3", "wedge: 3"]}
    assert "warning: classes with fewer than 4 training images (2)\n  disc: 3\n  wedge: 3" in output
    assert check.main(["data=voc_layout", f"data.root={tiny_set}", f"paths.logs={tmp_path}/logs"]) == 0
    written = sorted(path.name for path in (tmp_path / "logs" / "check" / "own_tiny").iterdir())
    assert written == ["check.json", "contact_sheet.png"]


def test_checks_of_several_sets_lie_side_by_side(tiny_set, own_set, run, tmp_path):
    """Both sets are called own; of two whose folders are called alike, the later gets a number, and keeps it."""
    other = Path(shutil.copytree(tiny_set, tmp_path / "elsewhere" / "tiny"))
    for root in (tiny_set, own_set, other, tiny_set, other):
        assert check.main(["data=voc_layout", f"data.root={root}", "paths.logs=logs", "--contact-sheet", "0"]) == 0
    lying = {path.parent.name: read_json(path)["root"] for path in Path("logs/check").glob("*/check.json")}
    assert lying == {"own_tiny": str(tiny_set), "own_own_set": str(own_set), "own_tiny_2": str(other)}
    named = SimpleNamespace(root=tmp_path / "msrc15", name="msrc15")
    assert check.output_folder(tmp_path, named) == tmp_path / "msrc15"


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [0, 7, 700], ids=["no bytes", "no header", "truncated"])
def test_an_image_that_does_not_decode_is_named_once_and_the_others_are_still_checked(kept, own_set, run):
    path = image(own_set, "train_2")
    path.write_bytes(path.read_bytes()[:kept])
    path.with_name("train_3.jpg").write_bytes(b"no image")
    code, output, numbers = run(own_set)
    assert code == 1
    broken = findings(numbers)["image"]
    assert [text.partition(" does not decode")[0] for text in broken] == [
        f"the image {image(own_set, id)}" for id in ("train_2", "train_3")
    ]
    assert set(findings(numbers)) <= {"image", "few_images"}
    assert numbers["splits"]["train"]["decoded"] == 6
    assert "own is NOT sound: 1 kinds of errors" in output
    assert "Traceback" not in output


def test_masks_that_cannot_be_used_are_named_once_also_where_tags_come_from_them(own_set, run):
    mask(own_set, "train_0").write_bytes(mask(own_set, "train_0").read_bytes()[:60])
    put_mask(own_set, "train_2", np.ones((10, 20), np.uint8))
    put_mask(own_set, "val_1", np.full((48, 64), 7, np.uint8))
    code, _, numbers = run(own_set)
    assert code == 1
    first, second, third = findings(numbers)["mask"]
    assert str(mask(own_set, "train_0")) in first
    assert "does not decode" in first
    assert str(mask(own_set, "train_2")) in second
    assert "20x10" in second
    assert str(mask(own_set, "val_1")) in third
    assert "value 7" in third
    assert set(findings(numbers)) == {"mask"}


def test_tags_that_cannot_be_read_are_named(own_set, run):
    (own_set / "Annotations" / "train_1.xml").write_text("<annotation><object><name>dics</name></object></annotation>")
    code, _, numbers = run(own_set, "data.tags=xml")
    assert code == 1
    (said,) = findings(numbers)["tags"]
    assert "train_1.xml names the class 'dics'" in said


class Fake(SimpleNamespace):
    """A set of one class and one good image, ``(4, 6)``, with a mask; functions given replace its own."""

    def __init__(self, **functions: Any) -> None:
        good = {
            "classes": ("thing",),
            "image": lambda id: np.arange(72, dtype=np.uint8).reshape(4, 6, 3),
            "image_size": lambda id: (6, 4),
            "mask": lambda id: np.eye(4, 6, dtype=np.uint8),
            "class_ids": lambda id: (1,),
            "depth": lambda id: None,
        }
        super().__init__(**(good | functions))


def test_what_is_kept_of_a_good_image():
    found = look(Fake(), "a")
    assert (found.id, found.problems, found.size, found.grey, found.blank) == ("a", (), (6, 4), False, False)
    assert (found.class_ids, found.mask_classes, found.ignored) == ((1,), (1,), 0.0)
    assert len(found.digest) == 16
    assert len(found.thumbnail) == 72
    flat = look(Fake(image=lambda id: np.full((4, 6, 3), 9, np.uint8), mask=lambda id: None), "a")
    assert (flat.grey, flat.blank, flat.mask_classes) == (True, True, None)


def raising(error: Exception) -> Callable[[str], Any]:
    def function(id: str) -> Any:
        raise error

    return function


def warning(id: str) -> np.ndarray:
    warnings.warn("Corrupt EXIF data", stacklevel=1)
    return np.zeros((4, 6, 3), np.uint8)


@pytest.mark.parametrize(
    ("functions", "code", "text"),
    [
        ({"image": raising(IndexError("out of range"))}, "image", "a: IndexError: out of range"),
        ({"image": lambda id: np.zeros((0, 6, 3), np.uint8)}, "image", r"a: expected .*got \(0, 6, 3\) uint8"),
        ({"image_size": lambda id: (4, 6)}, "image", "a: its header says 4x6, but 6x4 pixels are decoded"),
        ({"image": warning}, "decoder_warning", "a: Corrupt EXIF data"),
        ({"mask": lambda id: np.zeros((6, 4), np.uint8)}, "mask", "a: the mask is 4x6, but its image is 6x4"),
        ({"mask": lambda id: np.full((4, 6), 2, np.uint8)}, "mask", "a: the mask has the value 2"),
        ({"mask": lambda id: np.zeros((4, 6), np.int64)}, "mask", r"expected .*uint8 mask, got \(4, 6\) int64"),
        ({"class_ids": raising(DataError("no tags for a"))}, "tags", "no tags for a"),
    ],
)
def test_whatever_a_layout_does_is_told_and_not_raised(functions, code, text):
    ((found, said),) = look(Fake(**functions), "a").problems
    assert found == code
    assert re.search(text, said)


def test_a_file_that_kills_its_process_is_told_and_the_rest_goes_on(monkeypatch):
    def map_images(function, items, *, workers):
        for id, item in items:
            if id == "b: c":
                raise ItemError("b: c: the worker process died at it, twice")
            yield id, function(item)

    monkeypatch.setattr(check, "map_images", map_images)
    found = list(check.look_at_all(Fake(), ["a", "b: c", "b", "d"], workers=0))
    assert [(s.id, s.problems) for s in found] == [
        ("a", ()),
        ("b: c", (("image", "b: c: the process that decodes it dies"),)),
        ("b", ()),
        ("d", ()),
    ]


# --- duplicates -------------------------------------------------------------------------------------------------------


def test_the_same_pixels_across_splits_are_an_error_whatever_the_file(own_set, run):
    put(own_set, "val_0", pixels(image(own_set, "train_0")), pixels(mask(own_set, "train_0")))
    code, _, numbers = run(own_set)
    assert code == 1
    assert findings(numbers) == {"duplicates_across": ["train: train_0 = val: val_0"]}


def test_the_same_pixels_within_a_split_are_a_warning_and_other_tags_one_more(own_set, run):
    put(own_set, "train_2", pixels(image(own_set, "train_0")), pixels(mask(own_set, "train_0")))
    put(own_set, "train_5", pixels(image(own_set, "train_3")), np.full((48, 64), 3, np.uint8))
    code, _, numbers = run(own_set)
    assert code == 0
    assert findings(numbers) == {
        "duplicates_within": ["train: train_0 = train_2", "train: train_3 = train_5"],
        "contradicting_tags": ["train_3 (square, disc), train_5 (wedge)"],
    }


def test_an_image_that_both_splits_name_is_an_error(own_set, run):
    keep(own_set, "val", [*tiny.VAL, "train_3"])
    code, _, numbers = run(own_set)
    assert code == 1
    assert findings(numbers) == {"in_both_splits": ["train_3"]}
    assert numbers["images"] == 12


def test_one_split_for_both_is_a_warning(tiny_set, run):
    code, _, numbers = run(tiny_set, "data.val=train")
    assert code == 0
    assert findings(numbers) == {"same_split": ["train"]}
    assert list(numbers["splits"]) == ["train"]


def test_another_exposure_of_a_training_image_in_val_is_a_warning(own_set, run):
    picture = np.array(Image.fromarray(noise(6, 5)).resize((64, 48), Image.Resampling.BICUBIC))
    labels = pixels(mask(own_set, "train_0"))
    put(own_set, "train_0", picture, labels)
    put(own_set, "val_0", (0.6 * picture + 20).astype(np.uint8), labels)
    code, _, numbers = run(own_set)
    assert code == 0
    (said,) = findings(numbers)["near_duplicates"]
    assert said.startswith("train: train_0 ~ val: val_0 (")
    assert set(findings(numbers)) == {"near_duplicates"}


def test_near_pairs_differ_in_few_bits_of_the_hash():
    ramp = np.repeat(np.tile(np.arange(0, 180, 20, dtype=np.uint8), (8, 1))[..., None], 3, axis=2)
    three, four = ramp.copy(), ramp.copy()
    three[:3, 0] = 25  # in so many rows it no longer gets brighter at the first step
    four[:4, 0] = 25
    others = [seen(name, picture) for name, picture in (("three", three), ("four", four), ("dark", ramp // 2))]
    pairs = near_pairs([seen("ramp", ramp), seen("noise", noise(9, 8))], others, most=10)
    assert [(a.id, b.id, bits) for a, b, bits in pairs] == [("ramp", "three", 3), ("ramp", "dark", 0)]


def test_equal_pixels_are_no_near_pair_and_the_search_ends_at_its_limit():
    ramp = np.repeat(np.tile(np.arange(0, 180, 20, dtype=np.uint8), (8, 1))[..., None], 3, axis=2)
    assert near_pairs([seen("a", ramp)], [seen("b", ramp)], most=10) == []
    assert len(near_pairs([seen(f"{i}", ramp) for i in range(9)], [seen("b", ramp // 2)], most=4)) == 4


def test_the_same_bits_in_other_shades_are_another_picture():
    steps = np.arange(9)
    gentle, steep = (np.broadcast_to(row.astype(np.uint8)[None, :, None], (8, 9, 3)) for row in (steps, 2.0**steps / 2))
    a, b = seen("gentle", np.ascontiguousarray(gentle)), seen("steep", np.ascontiguousarray(steep))
    assert a.difference == b.difference == 2**64 - 1
    assert near_pairs([a], [b], most=10) == []


def test_blank_images_are_near_to_nothing():
    grey, white = (np.full((9, 9, 3), value, np.uint8) for value in (100, 255))
    assert near_pairs([seen("a", grey, blank=True)], [seen("b", white, blank=True)], most=10) == []
    assert near_pairs([], [seen("b", white)], most=10) == []
    assert near_pairs([seen("a", grey)], [seen("b", white)], most=10) == []  # no shades to compare


def test_bits_are_counted_as_python_counts_them():
    values = np.random.default_rng(0).integers(0, 2**64, 500, dtype=np.uint64)
    assert bit_counts(values).tolist() == [int(value).bit_count() for value in values]


def test_correlation_is_numpys():
    a, b = np.random.default_rng(1).integers(0, 256, (2, 72)).astype(np.uint8)
    assert correlation(a, b) == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-8)


# --- tags -------------------------------------------------------------------------------------------------------------


def test_classes_without_training_images_are_errors_and_unmeasured_ones_warnings(own_set, run):
    (own_set / "classes.txt").write_text("square\ndisc\nwedge\nring\n")
    keep(own_set, "train", ["train_0", "train_1", "train_7"])
    keep(own_set, "val", ["val_0", "val_2"])
    code, _, numbers = run(own_set)
    assert code == 1
    assert findings(numbers) == {
        "class_only_in_val": ["wedge: 1 of val"],
        "class_without_images": ["ring"],
        "class_not_in_val": ["disc: 1 of train"],
    }


def test_errors_stand_before_warnings():
    twice = [Seen(id, size=(40, 40), digest=b"same", thumbnail=bytes(72), class_ids=(1,)) for id in ("a", "b")]
    val = [Seen("c", size=(40, 40), digest=b"other", thumbnail=bytes(72), class_ids=(1, 2))]
    found = Check(("x", "y"), "train", "val", {"train": twice, "val": val}, {"train": False, "val": False}, few=1)
    assert [finding.code for finding in found.findings] == ["class_only_in_val", "duplicates_within"]
    assert not found.sound


def test_a_class_that_is_never_alone_is_a_warning(own_set, run):
    keep(own_set, "train", ["train_0", "train_2", "train_3"])
    code, output, numbers = run(own_set)
    assert code == 0
    assert findings(numbers) == {"never_alone": ["disc (1 image) always with square"]}
    assert numbers["pairs"] == [
        {"class": "disc", "with": "square", "images": 1, "share": 1.0},
        {"class": "square", "with": "disc", "images": 1, "share": 0.5},
    ]
    assert "disc" in output


def test_pairs_are_sorted_by_share_then_images():
    together = np.array([[8, 4, 2, 0], [4, 4, 0, 0], [2, 0, 2, 0], [0, 0, 0, 0]])
    assert [tuple(pair) for pair in top_pairs(together)] == [
        (2, 1, 4, 1.0),
        (3, 1, 2, 1.0),
        (1, 2, 4, 0.5),
        (1, 3, 2, 0.25),
    ]


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (("cat", "dog", "catdog"), []),
        (("dog", "Dog"), ["'dog' and 'Dog'"]),
        (("hot dog", "hot_dog", "Hot-Dog"), ["'hot dog' and 'hot_dog' and 'Hot-Dog'"]),
        (("cat", "cat,dog"), ["'cat,dog' holds 'cat'"]),
        (("cat", "dog", "dog | Cat"), ["'dog | Cat' holds 'dog', 'Cat'"]),
        (("cat|dog", "cat|cow"), ["'cat|dog' holds 'cat'", "'cat|cow' holds 'cat'"]),
        (("on/off", "switch"), []),
        (("x/", "y"), []),
    ],
)
def test_names_that_may_mean_the_same(classes, said):
    assert check.similar_classes(classes) == said


def test_tags_written_in_two_ways_are_a_warning(own_set, run):
    (own_set / "classes.txt").write_text("disc\nDisc\nwedge\n")
    code, _, numbers = run(own_set)
    assert (code, findings(numbers)) == (0, {"similar_classes": ["'disc' and 'Disc'"]})


def test_tags_of_a_table_that_are_written_in_several_ways(tiny_set, tmp_path, run):
    rows = ["image,tags,split"]
    (tmp_path / "set" / "images").mkdir(parents=True)
    for id, tags in zip(
        (*tiny.TRAIN[:5], *tiny.VAL[:1]), ("dog", "Dog", '"cat,dog"', "cat", " none", "dog"), strict=True
    ):
        shutil.copy(image(tiny_set, id), tmp_path / "set" / "images")
        rows.append(f"{id},{tags},{id.split('_')[0]}")
    (tmp_path / "set" / "tags.csv").write_text("\n".join(rows))
    code = check.main(["data=folder", f"data.root={tmp_path}/set", "--out", "out", "--contact-sheet", "0"])
    numbers = read_json(tmp_path / "out" / "check.json")
    assert code == 0
    assert [entry["name"] for entry in numbers["classes"]] == ["Dog", "cat", "cat,dog", "dog"]
    assert findings(numbers)["similar_classes"] == ["'Dog' and 'dog'", "'cat,dog' holds 'cat', 'dog'"]


# --- sizes ------------------------------------------------------------------------------------------------------------


def test_odd_shapes_and_blank_images_are_warnings(own_set, run):
    put(own_set, "train_4", noise(31, 40))
    put(own_set, "train_5", noise(161, 40), np.full((40, 161), 3, np.uint8))
    put(own_set, "train_6", np.full((40, 160, 3), 200, np.uint8), np.full((40, 160), 1, np.uint8))
    code, _, numbers = run(own_set)
    assert code == 0
    assert findings(numbers) == {"small": ["train_4: 31x40"], "aspect": ["train_5: 161x40"], "blank": ["train_6"]}
    assert numbers["splits"]["train"]["grey"] == 1
    assert numbers["splits"]["train"]["aspect"]["max"] == pytest.approx(161 / 40)


def test_what_training_refuses_is_an_error_by_the_rule_of_training(own_set, run):
    """A view of 32 pixels keeps nothing of the short side of 1x33, and one pixel of 1x32."""
    put(own_set, "train_4", noise(1, 33))
    put(own_set, "train_5", noise(32, 1), np.full((1, 32), 3, np.uint8))
    put(own_set, "val_2", noise(1, 33), np.full((33, 1), 3, np.uint8))  # measured as a whole
    code, output, numbers = run(own_set, "recipe.segmenter.augment.size=32")
    assert code == 1
    found = findings(numbers)
    assert found["too_narrow"] == ["train_4: 1x33"]
    assert found["aspect"] == ["train_5: 32x1", "val_2: 1x33"]
    assert "a side more than 32 times the other" in output
    augment = Augment(size=32)
    for id, width, height in (("train_4", 1, 33), ("train_5", 32, 1)):
        refused = id in {text.partition(":")[0] for text in found["too_narrow"]}
        with pytest.raises(DataError, match="too narrow") if refused else nullcontext():
            augment(noise(width, height), seed=0)


@pytest.mark.parametrize("size", [(1, 400), (3000, 5)])
def test_images_of_a_line_are_errors_as_trainings_are_configured(size, own_set, run):
    put(own_set, "train_4", noise(*size))
    code, _, numbers = run(own_set)
    assert (code, list(findings(numbers)["too_narrow"])) == (1, [f"train_4: {size[0]}x{size[1]}"])


def test_the_narrowest_of_both_trainings_counts():
    small, scaled = "recipe.classifier.augment.size=64", "recipe.segmenter.augment.scale=[0.25,1.5]"
    assert check.longest_aspect(tiny.composed("recipe.segmenter.augment.size=200", small)) == 64
    assert check.longest_aspect(tiny.composed("recipe.segmenter.augment.size=200", scaled)) == 50


# --- bits -------------------------------------------------------------------------------------------------------------


def put_deep(root: Path, id: str, highest: int) -> None:
    """An image of 16 bits of grey, from black to ``highest``."""
    image(root, id).unlink(missing_ok=True)
    values = np.random.default_rng(highest).integers(0, highest, (48, 64)).astype(np.uint16)
    values[0, 0] = highest
    Image.fromarray(values).save(root / "JPEGImages" / f"{id}.png")
    put_mask(root, id, np.full((48, 64), 1, np.uint8))


def test_twelve_bits_in_sixteen_are_a_warning_that_names_the_option(own_set, run):
    put_deep(own_set, "train_0", 4001)
    put_deep(own_set, "train_7", 900)
    code, output, numbers = run(own_set)
    assert code == 0
    assert findings(numbers) == {"dark_range": ["train_0: highest value 4001", "train_7: highest value 900"]}
    assert "the highest value of all is 4001, and 65535 counts as white (set data.white=4095)" in output
    assert run(own_set, "data.white=4095")[2]["findings"] == []
    code, output, numbers = run(own_set, "data.white=3000")
    assert findings(numbers) == {"beyond_white": ["train_0: highest value 4001"]}
    assert "data.white=3000, which are cut off (the highest is 4001)" in output


def test_a_dark_image_beside_a_bright_one_is_none(own_set, run):
    put_deep(own_set, "train_0", 16384)  # a quarter of the range
    put_deep(own_set, "train_7", 900)
    assert run(own_set)[2]["findings"] == []


def test_dark_colours_of_sixteen_bits_are_a_warning():
    dark = Seen("a", size=(40, 40), class_ids=(1,), depth=Depth(257 * 15, grey=False))
    said = {f.code: f for f in Check(("x",), "train", "train", {"train": [dark]}, {"train": False}, few=1).findings}
    assert said["dark_colours"].examples == ["a: about 3855"]
    assert "8 bits a channel" in said["dark_colours"].text
    assert "dark_range" not in said


# --- masks ------------------------------------------------------------------------------------------------------------


def test_masks_that_say_nothing_or_contradict_the_tags_are_warnings(own_set, run):
    put_mask(own_set, "train_0", np.full((48, 64), IGNORE, np.uint8))
    put_mask(own_set, "train_7", np.full((48, 64), 2, np.uint8))
    code, _, numbers = run(own_set, "data.tags=xml")
    assert code == 0
    assert findings(numbers) == {
        "all_ignored": ["train_0"],
        "mask_not_in_tags": ["train_7: disc"],
        "tag_not_in_mask": ["train_7: square"],
    }


def test_a_layout_that_says_otherwise_than_its_masks_is_found_out():
    with_mask, without = (
        Seen(id, size=(40, 40), class_ids=(1,), mask_classes=m) for id, m in (("a", (1,)), ("b", None))
    )
    splits = {"train": [with_mask, without], "val": [with_mask, without]}
    found = Check(("thing",), "train", "val", splits, {"train": True, "val": False}, few=1).findings
    said = {finding.code: (finding.level, list(finding.examples)) for finding in found}
    assert said["missing_masks"] == ("error", ["train: b"])
    assert said["part_masks"] == ("warning", ["val: 1 of 2 images have one"])


@pytest.mark.parametrize(
    ("masks", "expected"),
    [
        ([(), ()], {"class_in_no_mask": ["ring: 1 tagged images", "thing: 1 tagged images"]}),  # drawn as 255, say
        ([(2,), (1,)], {"masks_contradict_tags": ["2 of 2 masks with an object"]}),  # the lines of classes.txt swapped
        ([(1,), (2,)], {}),
    ],
)
def test_masks_in_numbers_of_their_own_are_an_error(masks, expected):
    seen = [
        Seen(id, size=(40, 40), class_ids=(n,), mask_classes=m)
        for n, (id, m) in enumerate(zip("ab", masks, strict=True), 1)
    ]
    check = Check(("thing", "ring"), "train", "val", {"train": seen, "val": seen}, {"train": True, "val": True}, few=1)
    said = {finding.code: list(finding.examples) for finding in check.findings if finding.level == "error"}
    assert {code: said.get(code) for code in ("class_in_no_mask", "masks_contradict_tags") if code in said} == expected


def test_a_split_without_masks_is_no_finding(own_set, run):
    for id in tiny.VAL:
        mask(own_set, id).unlink()
    code, _, numbers = run(own_set, "data.tags=xml")
    assert (code, numbers["findings"]) == (0, [])
    assert (numbers["splits"]["val"]["masks"], numbers["splits"]["val"]["ignored"]) == (0, None)


# --- the command ------------------------------------------------------------------------------------------------------


def test_a_set_of_which_a_part_has_masks_ends_with_code_2(own_set, run):
    mask(own_set, "train_3").unlink()
    code, output, numbers = run(own_set)
    assert (code, numbers) == (2, {})
    assert "DataError: no mask" in output
    assert "1 of 8 have none" in output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("data.root=/no/such/set",), "DataError: no data set at /no/such/set"),
        (("data.rot=x",), "ConfigError: Could not override 'data.rot'"),
        (("data=nothing",), "ConfigError: "),
        (("workers=-1",), "ConfigError: workers=-1 must be 0 or more"),
    ],
)
def test_what_cannot_be_used_ends_with_code_2(arguments, said, tiny_set, run):
    code, output, numbers = run(tiny_set, *arguments)
    assert (code, numbers) == (2, {})
    assert said in output


@pytest.mark.parametrize("option", [("--contact-sheet", "-1"), ("--few", "x"), ("--contact", "1")])
def test_options_are_checked(option, tiny_set, run):
    with pytest.raises(SystemExit) as stop:
        run(tiny_set, *option)
    assert stop.value.code == 2


def test_an_interrupt_ends_with_code_130(tiny_set, run, monkeypatch):
    monkeypatch.setattr(check, "look_at_all", raising_interrupt)
    assert run(tiny_set)[0] == 130


def raising_interrupt(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


def test_many_examples_are_cut_on_the_console_but_not_in_the_file(own_set, run):
    for id in tiny.TRAIN[:7]:
        image(own_set, id).write_bytes(b"")
    _, output, numbers = run(own_set)
    assert len(findings(numbers)["image"]) == 7
    assert output.count("does not decode") == check.PRINTED
    assert "  ... and 2 more: see check.json" in output


@pytest.mark.slow
def test_as_a_process_with_a_worker(own_set, tmp_path):
    image(own_set, "train_2").write_bytes(b"no image")
    put(own_set, "val_0", pixels(image(own_set, "train_0")), pixels(mask(own_set, "train_0")))
    arguments = ("data=voc_layout", f"data.root={own_set}", f"paths.logs={tmp_path}/logs", "workers=1")
    code, output = tiny.execute("-m", "wsss.check", *arguments)
    assert code == 1, output
    numbers = read_json(tmp_path / "logs" / "check" / "own_own_set" / "check.json")
    assert set(findings(numbers)) == {"image", "duplicates_across", "few_images"}
    assert "check 12/12" in output
    assert "Traceback" not in output


# --- the contact sheet ------------------------------------------------------------------------------------------------


def test_the_contact_sheet_shows_evenly_spaced_images_of_each_split_that_decode(own_set, run, tmp_path, monkeypatch):
    shown: list[list[str]] = []
    original = check.panel
    monkeypatch.setattr(
        check, "panel", lambda tiles, **o: shown.append([t.title for t in tiles]) or original(tiles, **o)
    )
    image(own_set, "train_0").write_bytes(b"")
    run(own_set, "--contact-sheet", "3")
    assert shown == [["train_1", "train_3", "train_5"], ["val_0", "val_1", "val_2"]]
    with Image.open(tmp_path / "out" / "contact_sheet.png") as sheet:
        assert sheet.format == "PNG"
        assert sheet.width == 10 + 3 * (check.TILE + 10)


def test_without_a_contact_sheet_none_is_written(tiny_set, run, tmp_path):
    run(tiny_set)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["check.json"]


def test_a_caption_has_the_colour_of_each_tag_and_dots_where_there_is_no_room():
    red, green = (200, 0, 0), (0, 128, 0)
    both = caption([("cat", red), ("dog", green)])
    assert both.shape == (check.CAPTION_LINES * check.LINE, check.TILE, 3)
    assert [int((both == colour).all(axis=2).sum()) for colour in (red, green)] == [81, 81]
    many = caption([(f"class {i}", red if i < 20 else green) for i in range(21)])
    assert (many == red).all(axis=2).sum() >= 3 * 81
    assert not (many == green).all(axis=2).any()
    assert (many[check.LINE :, -50:] < 100).all(axis=2).any()  # the dots
    assert (caption([]) < 255).any()
