import json
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsss.data import demo
from wsss.data.demo import CLASSES, draw_scene, render_demo
from wsss.errors import DataError
from wsss.palette import voc_palette

SMALL = {"seed": 3, "train": 4, "val": 2, "size": 48}


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def names(root: Path, split: str) -> list[str]:
    return (root / "ImageSets" / "Segmentation" / f"{split}.txt").read_text().split()


def pair(root: Path, name: str) -> tuple[bytes, bytes]:
    image, mask = root / "JPEGImages" / f"{name}.jpg", root / "SegmentationClass" / f"{name}.png"
    return image.read_bytes(), mask.read_bytes()


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo") / "set"
    render_demo(root, **SMALL)
    return root


def test_layout(rendered: Path) -> None:
    assert names(rendered, "train") == ["demo_00001", "demo_00002", "demo_00003", "demo_00004"]
    assert names(rendered, "val") == ["demo_00005", "demo_00006"]
    assert (rendered / "classes.txt").read_text().split() == list(CLASSES)
    assert json.loads((rendered / "demo.json").read_text()).items() >= SMALL.items()
    assert [path.name for path in rendered.parent.iterdir()] == ["set"]


def test_files_are_rgb_and_indexed(rendered: Path) -> None:
    for name in names(rendered, "train") + names(rendered, "val"):
        image = Image.open(rendered / "JPEGImages" / f"{name}.jpg")
        mask = Image.open(rendered / "SegmentationClass" / f"{name}.png")
        assert (image.mode, mask.mode) == ("RGB", "P")
        assert image.size == mask.size == (48, 48)
        assert np.asarray(mask).max() <= len(CLASSES)
        used = np.unique(np.asarray(mask)).tolist()
        palette = np.array(mask.getpalette()).reshape(-1, 3)
        np.testing.assert_array_equal(palette[used], voc_palette()[used])


def test_same_seed_same_bytes_other_seed_other_bytes(rendered: Path, tmp_path: Path) -> None:
    render_demo(tmp_path / "again", **SMALL)
    render_demo(tmp_path / "other", **{**SMALL, "seed": 4})
    assert contents(tmp_path / "again") == contents(rendered)
    assert not set(contents(tmp_path / "other").values()) & {
        b for name in names(rendered, "train") for b in pair(rendered, name)
    }


def test_an_image_does_not_depend_on_how_many_there_are(rendered: Path, tmp_path: Path) -> None:
    render_demo(tmp_path / "set", **{**SMALL, "train": 2, "val": 1})
    for split in ("train", "val"):
        for few, many in zip(names(tmp_path / "set", split), names(rendered, split), strict=False):
            assert pair(tmp_path / "set", few) == pair(rendered, many)


def test_reuse_writes_nothing(rendered: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in [rendered, *rendered.rglob("*")]}
    render_demo(rendered, **SMALL)
    assert before == {path: path.stat().st_mtime_ns for path in [rendered, *rendered.rglob("*")]}


def test_other_parameters_are_refused(rendered: Path) -> None:
    before = contents(rendered)
    with pytest.raises(DataError, match=r"holds another demo data set(.|\n)*\"size\": 48(.|\n)*\"size\": 64"):
        render_demo(rendered, **{**SMALL, "size": 64})
    assert contents(rendered) == before


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match="is not a demo data set"):
        render_demo(tmp_path, **SMALL)
    assert contents(tmp_path) == {"thesis.txt": b"precious"}


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    root = tmp_path / "set"
    root.mkdir()
    render_demo(root, seed=0, train=1, val=0, size=32)
    assert names(root, "train") == ["demo_00001"]


@pytest.mark.parametrize("bad", [{"seed": -1}, {"train": -1}, {"size": 8}])
def test_parameters_out_of_range(tmp_path: Path, bad: dict[str, int]) -> None:
    with pytest.raises(DataError, match="needs seed, train, val >= 0"):
        render_demo(tmp_path / "set", **{**SMALL, **bad})


def test_an_interrupted_render_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, calls = demo.draw_scene, []

    def interrupted(*args: object, **kwargs: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return draw(*args, **kwargs)

    monkeypatch.setattr(demo, "draw_scene", interrupted)
    with pytest.raises(KeyboardInterrupt):
        render_demo(tmp_path / "set", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_render_are_removed_and_those_of_a_running_one_kept(tmp_path: Path) -> None:
    host = socket.gethostname()
    dead = tmp_path / f".set.partial-{2**22 + 1}-{host}-0a0a0a0a"  # above the largest process id of Linux
    alive = tmp_path / f".set.partial-{os.getpid()}-{host}-0b0b0b0b"
    for folder in (dead, alive):
        (folder / "JPEGImages").mkdir(parents=True)
    render_demo(tmp_path / "set", seed=0, train=1, val=0, size=32)
    assert not dead.exists()
    assert alive.exists()


def test_who_comes_second_keeps_the_set_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, publish = tmp_path / "set", demo._publish

    def overtaken(partial: Path, *args: object) -> None:
        monkeypatch.setattr(demo, "_publish", publish)
        render_demo(root, seed=0, train=1, val=0, size=32)
        publish(partial, *args)

    monkeypatch.setattr(demo, "_publish", overtaken)
    render_demo(root, seed=0, train=1, val=0, size=32)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_two_renders_at_once(tmp_path: Path, rendered: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        for job in [pool.submit(render_demo, tmp_path / "set", **SMALL) for _ in range(2)]:
            job.result()
    assert contents(tmp_path / "set") == contents(rendered)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_tags() -> None:
    tags = [demo._classes_of(np.random.default_rng([0, 0, index]), index) for index in range(600)]
    counts = np.bincount([len(t) for t in tags], minlength=4) / len(tags)
    np.testing.assert_allclose(counts, demo.COUNT_SHARES, atol=0.05)
    assert all(len(set(t)) == len(t) for t in tags)
    per_class = np.bincount(np.concatenate(tags).astype(int), minlength=7)[1:]
    assert per_class.min() > 0.7 * per_class.max()


@pytest.mark.parametrize("classes", [(), (1,), (2, 3), (4, 5, 6)])
def test_a_scene_shows_its_classes_and_no_other(classes: tuple[int, ...]) -> None:
    for seed in range(5):
        image, mask = draw_scene(np.random.default_rng(seed), size=48, classes=classes)
        assert image.shape == (48, 48, 3)
        assert image.dtype == mask.dtype == np.uint8
        assert image.std() > 10
        assert set(np.unique(mask)) - {0} == set(classes)


def test_paired_classes_share_their_body() -> None:
    """From the same random numbers, bus and train have the same carriage: the masks agree on most of the object."""

    def silhouette(label: int) -> np.ndarray:
        parts = demo.MAKERS[label](np.random.default_rng(0))
        return demo._label_map([demo.Thing(1, parts, x=80, y=120, unit=50)], 160) > 0

    for one, other in ((demo.CAT, demo.DOG), (demo.BUS, demo.TRAIN), (demo.SAILBOAT, demo.STEAMBOAT)):
        first, second = silhouette(one), silhouette(other)
        assert 0.55 < (first & second).sum() / (first | second).sum() < 0.97
