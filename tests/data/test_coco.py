import json
import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from coco_set import HEIGHT, WIDTH, box, content, run_lengths, write_json, write_set
from omegaconf import DictConfig
from PIL import Image
from pycocotools import mask as rle

from wsss.build import build
from wsss.data import coco
from wsss.data.coco import CocoSet, Segment, decompress, entries, read_columns, render
from wsss.errors import DataError

FIVE, SEVEN, NINE = (f"COCO_train2014_{id:012d}" for id in (5, 7, 9))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_set(tmp_path / "coco")


@cache
def composed() -> DictConfig:
    return tiny.composed("data=coco2014")


@pytest.fixture
def read(root: Path, tmp_path: Path) -> Callable[..., CocoSet]:
    """The set as the scripts read it, with further overrides."""

    def make(*overrides: str) -> CocoSet:
        config = composed().copy()
        config.merge_with_dotlist([f"data.root={root}", f"data.cache={tmp_path}/cache", *overrides])
        return build(config, "data")

    return make


def pngs(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.png"))


# --- rendering ---------------------------------------------------------------------------------------------------


def test_a_box_covers_its_pixels():
    mask = render([Segment(box(1, 1, 3, 2), 7)], height=4, width=6)
    assert mask.dtype == np.uint8
    assert mask.tolist() == [[0, 0, 0, 0, 0, 0], [0, 7, 7, 7, 0, 0], [0, 7, 7, 7, 0, 0], [0, 0, 0, 0, 0, 0]]


def test_several_polygons_are_one_thing():
    mask = render([Segment(box(0, 0, 1, 1) + box(2, 0, 1, 2), 4)], height=2, width=4)
    assert mask.tolist() == [[4, 0, 4, 0], [0, 0, 4, 0]]


def test_a_crowd_is_given_by_runs_down_the_columns_and_is_ignored():
    runs = {"size": [2, 3], "counts": [1, 3, 2]}  # of the columns 0 1 | 1 1 | 0 0
    assert render([Segment(runs, 1, crowd=True)], height=2, width=3).tolist() == [[0, 255, 0], [255, 255, 0]]
    assert render([Segment(runs, 1)], height=2, width=3).tolist() == [[0, 1, 0], [1, 1, 0]]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_smaller_thing_lies_on_top_wherever_it_stands_in_the_file(order: tuple[int, int]):
    things = [Segment(box(0, 0, 4, 1), 1), Segment(box(1, 0, 2, 1), 2)]
    assert render([things[at] for at in order], height=1, width=4).tolist() == [[1, 2, 2, 1]]


def test_of_equal_things_the_later_lies_on_top():
    things = [Segment(box(0, 0, 2, 1), 1), Segment(box(1, 0, 2, 1), 2)]
    assert render(things, height=1, width=3).tolist() == [[1, 2, 2]]
    assert render(things[::-1], height=1, width=3).tolist() == [[1, 1, 2]]


def test_a_thing_in_a_crowd_counts_even_if_it_is_larger():
    crowd = Segment({"size": [1, 4], "counts": [0, 2, 2]}, 1, crowd=True)
    assert render([Segment(box(1, 0, 3, 1), 2), crowd], height=1, width=4).tolist() == [[255, 2, 2, 2]]


def test_what_encloses_nothing_leaves_nothing():
    things = [Segment([], 1), Segment([[0, 0, 2, 2]], 1)]  # the second would be a box, were it read as one
    assert not render(things, height=3, width=3).any()
    assert not render([], height=3, width=3).any()


def test_many_boxes_as_a_plain_loop_paints_them():
    rng = np.random.default_rng(0)
    corner, size = rng.integers(0, 20, (30, 2)), rng.integers(1, 12, (30, 2))
    things = [Segment(box(*corner[n].tolist(), *size[n].tolist()), n + 1) for n in range(30)]
    expected = np.zeros((32, 32), np.uint8)
    for n in sorted(range(30), key=lambda n: (-size[n].prod(), n)):
        (x, y), (width, height) = corner[n], size[n]
        expected[y : y + height, x : x + width] = n + 1
    np.testing.assert_array_equal(render(things, height=32, width=32), expected)


def test_run_lengths_plain_and_compressed():
    shape = np.random.default_rng(0).integers(0, 2, (9, 7), dtype=np.uint8)
    compressed = {"size": [9, 7], "counts": rle.encode(np.asfortranarray(shape))["counts"].decode()}
    for segmentation in (compressed, run_lengths(shape)):
        np.testing.assert_array_equal(render([Segment(segmentation, 3)], height=9, width=7), 3 * shape)


@pytest.mark.parametrize("scale", [1, 20, 400, 4000])
def test_lengths_of_one_digit_or_more_are_decompressed(scale: int):
    shape = np.zeros((8 * scale, 9), np.uint8, order="F")
    for column, begin in enumerate((0, 3, 1, 5, 2, 2, 7, 0, 4)):
        shape[begin * scale : (begin + 1 + column % 3) * scale, column] = 1
    assert decompress(rle.encode(shape)["counts"]).tolist() == run_lengths(shape)["counts"]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools with numpy 2
def test_polygons_are_filled_as_pycocotools_fills_them():
    rng = np.random.default_rng(0)
    for _ in range(20):
        polygons = [rng.uniform(-5, 45, 2 * rng.integers(3, 9)).tolist() for _ in range(rng.integers(1, 3))]
        expected = rle.decode(rle.merge(rle.frPyObjects(polygons, 30, 40)))
        np.testing.assert_array_equal(render([Segment(polygons, 1)], height=30, width=40), expected)


@pytest.mark.parametrize(
    "segmentation",
    [
        None,
        5,
        "abc",
        [["a"] * 6],
        {"counts": [6]},
        {"size": [3, 2], "counts": [6]},
        {"size": [2, 3], "counts": [7]},
        {"size": [2, 3], "counts": [7, -1]},
        {"size": [2, 3], "counts": [[6]]},
        {"size": [2, 3], "counts": "1"},
        {"size": [2, 3], "counts": "6Q"},
        {"size": [2, 3], "counts": ""},
    ],
)
def test_what_is_no_segmentation_of_the_image_is_refused(segmentation: Any):
    with pytest.raises(ValueError, match=r"segmentation|run lengths|could not convert"):
        render([Segment(segmentation, 1)], height=2, width=3)


# --- the set -----------------------------------------------------------------------------------------------------


def test_ids_classes_and_tags(read: Callable[..., CocoSet]):
    data = read()
    assert data.classes == ("person", "car", "café")  # by category id: 1, 3, 90
    assert data.ids("train2014")[:3] == (NINE, FIVE, SEVEN)
    assert data.ids("val2014") == ("COCO_val2014_000000000004", "COCO_val2014_000000000002")
    tags = data.tags("train2014")
    assert (tags[NINE], tags[FIVE], tags[SEVEN]) == ((1, 2), (2, 3), ())
    assert list(tags) == list(data.ids("train2014"))
    assert data.tag_source == "annotations"
    assert data.has_masks("train2014")
    assert data.has_masks("val2014")


def test_one_image_with_its_mask(read: Callable[..., CocoSet]):
    sample = read().sample(NINE, with_mask=True)
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[3:33, 2:22] = 1
    expected[8:13, 6:10] = 2
    np.testing.assert_array_equal(sample.mask, expected)
    assert sample.image.shape == (HEIGHT, WIDTH, 3)
    np.testing.assert_allclose(sample.image[5, 12], (200, 40, 40), atol=8)  # JPEG


def test_an_image_without_annotations_is_background_and_may_be_left_out(read: Callable[..., CocoSet]):
    data = read()
    assert data.class_ids(SEVEN) == ()
    assert not data.mask(SEVEN).any()
    assert set(data.ids("train2014")) - set(read("data.untagged=false").ids("train2014")) == {SEVEN}


def test_crowds_are_tags_unless_told_otherwise_and_ignored_in_masks(read: Callable[..., CocoSet]):
    assert read().class_ids(FIVE) == (2, 3)
    data = read("data.crowd_tags=false")
    assert data.class_ids(FIVE) == (2,)
    assert np.unique(data.mask(FIVE)).tolist() == [0, 2, 255]
    assert (data.mask(FIVE)[:10, :10] == 255).all()


def test_a_list_takes_a_part(root: Path, read: Callable[..., CocoSet]):
    (root / "few.txt").write_text(f"{FIVE}.jpg\n{NINE}\n")
    data = read("data.train_list=few.txt")
    assert data.ids("train2014") == (FIVE, NINE)
    assert len(data.ids("val2014")) == 2
    (root / "few.txt").write_text("COCO_train2014_000000000006\n")
    with pytest.raises(DataError, match=r"few\.txt names 'COCO_train2014_000000000006', but there is no image"):
        read("data.train_list=few.txt")


def test_images_beyond_the_list_need_not_be_there(root: Path, read: Callable[..., CocoSet]):
    (root / "few.txt").write_text(f"{FIVE}\n")
    for path in (root / "train2014").iterdir():
        if path.stem != FIVE:
            path.unlink()
    assert read("data.train_list=few.txt").ids("train2014") == (FIVE,)
    with pytest.raises(DataError) as error:
        read()
    assert str(root / "train2014" / NINE) in str(error.value)
    assert "(7 of 8 ids have none)" in str(error.value)


def test_a_set_that_went_through_pickle(read: Callable[..., CocoSet]):
    data = read()
    other = pickle.loads(pickle.dumps(data))
    assert other.tags("val2014") == data.tags("val2014")
    np.testing.assert_array_equal(other.mask(NINE), data.mask(NINE))


# --- what is kept ------------------------------------------------------------------------------------------------


def test_masks_are_rendered_when_asked_for_and_once(
    read: Callable[..., CocoSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = read()
    data.tags("train2014")
    assert not pngs(tmp_path / "cache")
    mask = data.mask(NINE)
    (kept,) = pngs(tmp_path / "cache")
    assert kept.stem == NINE
    with Image.open(kept) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.array(image), mask)
    monkeypatch.setattr(coco, "render", None)
    np.testing.assert_array_equal(read().mask(NINE), mask)


def test_a_render_that_is_interrupted_leaves_no_half_file(
    read: Callable[..., CocoSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def half(path: Path, *, mask: np.ndarray) -> None:
        path.write_bytes(b"\x89PNG")
        raise KeyboardInterrupt

    data = read()
    with monkeypatch.context() as patch:
        patch.setattr(coco, "_save_mask", half)
        with pytest.raises(KeyboardInterrupt):
            data.mask(NINE)
    assert not pngs(tmp_path / "cache")
    assert data.mask(NINE).max() == 2


def test_a_broken_file_in_the_cache_is_made_again(read: Callable[..., CocoSet], tmp_path: Path):
    expected = read().mask(NINE)
    for path in (tmp_path / "cache").rglob("*.*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:20])
    np.testing.assert_array_equal(read().mask(NINE), expected)
    assert pngs(tmp_path / "cache")[0].stat().st_size > 20


def test_the_index_is_made_once_for_each_content(
    root: Path, read: Callable[..., CocoSet], monkeypatch: pytest.MonkeyPatch
):
    assert read().mask(NINE)[3, 2] == 1
    made: list[Path] = []
    monkeypatch.setattr(coco, "read_columns", lambda path: made.append(path) or read_columns(path))
    read()
    assert not made
    path = write_json(root, "train2014", content("train2014", (5, 7, 9), [(9, 90, box(0, 0, 9, 9), 0)]))
    data = read()
    assert made == [path]
    assert data.class_ids(NINE) == (3,)
    assert np.unique(data.mask(NINE)).tolist() == [0, 3]  # and not the mask kept before


def test_a_file_replaced_meanwhile_is_told(root: Path, read: Callable[..., CocoSet]):
    data = read()
    path = write_json(root, "train2014", content("train2014", (9,), []))
    with pytest.raises(DataError) as error:
        data.mask(NINE)
    assert str(path) in str(error.value)
    assert "start again" in str(error.value)


def test_a_file_where_the_cache_should_be(read: Callable[..., CocoSet], tmp_path: Path):
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(DataError, match=r"cannot write .*data\.cache"):
        read()


# --- the index ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", [{}, {"indent": 1}, {"separators": (",", ":")}, {"ensure_ascii": False}])
def test_the_places_in_the_file_are_those_of_the_annotations(tmp_path: Path, style: dict[str, Any]):
    """Whatever the spaces, the order of keys, or letters of more than one byte before them."""
    values = content("train2014", (9, 5), [(5, 3, box(1, 1, 2, 2), 0), (9, 90, [], 1), (5, 1, [], 0)])
    for table in (values, {key: values[key] for key in sorted(values)}):
        path = tmp_path / "instances.json"
        path.write_text(json.dumps(table, **style), encoding="utf-8")
        columns = read_columns(path)
        assert columns["classes"].tolist() == ["person", "car", "café"]
        assert columns["files"].tolist() == [f"COCO_train2014_{id:012d}.jpg" for id in (9, 5)]
        assert columns["sizes"].tolist() == [[WIDTH, HEIGHT]] * 2
        assert columns["starts"].tolist() == [0, 1, 3]
        assert columns["class_ids"].tolist() == [3, 2, 1]
        assert columns["crowds"].tolist() == [True, False, False]
        text = path.read_bytes()
        found = [json.loads(text[begin:end])["id"] for begin, end in columns["spans"].tolist()]
        assert found == [101, 100, 102]


def test_entries_of_nested_and_empty_lists():
    text = ' {"x": {"a": [9]}, "a" : [ ], "b":[1 , {"a": [2]}], "c": 3}\n'
    found = list(entries(text, ("a", "b")))
    assert [(key, item) for key, item, _, _ in found] == [("b", 1), ("b", {"a": [2]})]
    assert [json.loads(text[begin:end]) for _, _, begin, end in found] == [1, {"a": [2]}]
    assert list(entries("{}", ("a",))) == []


@pytest.mark.parametrize("text", ["", "[]", '{"a": [1', '{"a": [1 2]}', '{"a": 1 "b": 2}', '{"a" 1}', '{"a": [1],'])
def test_a_text_that_is_no_object_is_refused(text: str):
    with pytest.raises(json.JSONDecodeError):
        list(entries(text, ("a",)))


BROKEN: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no categories": (lambda values: values.pop("categories"), "has no categories"),
    "no images": (lambda values: values["images"].clear(), "has no images"),
    "unknown image": (lambda values: values["annotations"][0].update(image_id=77), "has the image_id 77, which no"),
    "unknown category": (lambda values: values["annotations"][0].update(category_id=2), "the category_id 2, which no"),
    "image twice": (lambda values: values["images"].append(values["images"][0]), f"the image {NINE} twice"),
    "image id twice": (lambda values: values["images"][1].update(id=9), "image_id 9, which two entries have"),
    "category twice": (lambda values: values["categories"][0].update(id=1), "categories has the id 1 twice"),
    "no segmentation": (lambda values: values["annotations"][0].pop("segmentation"), "KeyError: 'segmentation'"),
    "an id of text": (lambda values: values["images"][0].update(id="nine"), "images: the entry {"),
    "no entry": (lambda values: values["annotations"].append(3), "annotations: the entry 3 "),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_annotations_that_contradict_themselves(fault: str, root: Path, read: Callable[..., CocoSet]):
    change, told = BROKEN[fault]
    path = root / "annotations" / "instances_train2014.json"
    values = json.loads(path.read_text())
    change(values)
    write_json(root, "train2014", values)
    with pytest.raises(DataError) as error:
        read()
    assert str(path) in str(error.value)
    assert told in str(error.value)


@pytest.mark.parametrize("cut", [0, 100, -10])
def test_a_json_file_cut_short(cut: int, root: Path, read: Callable[..., CocoSet]):
    path = root / "annotations" / "instances_train2014.json"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match="no whole JSON file") as error:
        read()
    assert str(path) in str(error.value)


def test_a_segmentation_that_cannot_be_rendered_names_its_image(root: Path, read: Callable[..., CocoSet]):
    wrong = {"size": [HEIGHT, WIDTH + 1], "counts": [HEIGHT * (WIDTH + 1)]}
    path = write_json(root, "train2014", content("train2014", (5, 9), [(5, 1, wrong, 1)]))
    with pytest.raises(DataError) as error:
        read().mask(FIVE)
    assert f"{path}, image {FIVE}: run lengths of {HEIGHT * (WIDTH + 1)} pixels" in str(error.value)


def test_an_image_of_another_size_than_its_annotations(root: Path, read: Callable[..., CocoSet]):
    Image.new("RGB", (WIDTH - 1, HEIGHT)).save(root / "train2014" / f"{NINE}.jpg")
    with pytest.raises(DataError, match=f"{WIDTH}x{HEIGHT} but its image .* is {WIDTH - 1}x{HEIGHT}"):
        read().mask(NINE)


def test_two_files_of_different_releases(root: Path, read: Callable[..., CocoSet]):
    values = content("val2014", (2, 4), [])
    values["categories"] = values["categories"][:2]
    write_json(root, "val2014", values)
    with pytest.raises(DataError, match="differ in their categories"):
        read()


def test_splits_of_another_release_are_named(root: Path, read: Callable[..., CocoSet]):
    for split in ("train", "val"):
        (root / f"annotations/instances_{split}2014.json").rename(root / f"annotations/instances_{split}2017.json")
        (root / f"{split}2014").rename(root / f"{split}2017")
    with pytest.raises(DataError) as error:
        read()
    assert "instances_train2014.json is missing (splits there: train2017, val2017)" in str(error.value)
    assert "Choose them with data.train=train2017 data.val=val2017" in str(error.value)
    assert read("data.train=train2017", "data.val=val2017").ids("val2017")


@pytest.mark.parametrize("missing", ["", "annotations/instances_val2014.json", "val2014"])
def test_what_is_missing_can_be_fetched(missing: str, root: Path, read: Callable[..., CocoSet]):
    (root / missing).rename(root.parent / "away")
    with pytest.raises(DataError) as error:
        read()
    assert str(root) in str(error.value)
    assert "data.download=true" in str(error.value)


# --- in the pipeline ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_pipeline_runs_on_it(root: Path, tmp_path: Path):
    with tiny.contained():
        pipeline = tiny.pipeline(root, tmp_path, "data=coco2014", f"data.cache={tmp_path}/cache")
        artifact = pipeline.make_all()
    assert set(artifact.metrics["iou"]) == {"background", "person", "car", "café"}
    assert artifact.metrics["images"] == 2
    assert pipeline.artifact("labels").metrics["images"] == 8
    assert len(pngs(tmp_path / "cache")) == 10
