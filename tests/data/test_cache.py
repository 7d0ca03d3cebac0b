import logging
import os
import pickle
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from wsss.data import Augment, DataModule, ImageSet, VocLayout, cache
from wsss.data.cache import DiskImages, MemoryImages, cached
from wsss.errors import ConfigError, DataError

if TYPE_CHECKING:
    from wsss.pipeline import Pipeline

KINDS = ("disk", "memory")
BYTES = 18 * 24 * 3
"""Of one decoded image of the set below."""


@pytest.fixture
def data(tmp_path: Path) -> VocLayout:
    """Four training images whose red value is their number times ten, and two of validation."""
    root = tmp_path / "set"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for number in range(6):
        paint(root / "JPEGImages" / f"{number}.png", 10 * number)
        mask = np.zeros((18, 24), np.uint8)
        mask[:, :9] = 1
        Image.fromarray(mask).save(root / "SegmentationClass" / f"{number}.png")
    (root / "classes.txt").write_text("cat\ndog\n")
    (root / "ImageSets/Segmentation/train.txt").write_text("\n".join("0123"))
    (root / "ImageSets/Segmentation/val.txt").write_text("4\n5\n")
    return VocLayout(root)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store" / "decoded"


def paint(path: Path, red: int, *, size: tuple[int, int] = (24, 18), time: int | None = None) -> None:
    Image.new("RGB", size, (red, 0, 7)).save(path)
    if time is not None:
        os.utime(path, (time, time))


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.npy"))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids that were decoded from their files, in order."""
    seen: list[str] = []
    image = VocLayout.image

    def counted(self: VocLayout, id: str) -> np.ndarray:
        seen.append(id)
        return image(self, id)

    monkeypatch.setattr(VocLayout, "image", counted)
    return seen


# --- both kinds --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_decoded_once(kind: str, data: VocLayout, folder: Path, decoded: list[str]) -> None:
    kept = cached(data, kind, folder=folder)
    for _ in range(3):
        for id in ("2", "4"):
            image = kept.image(id)
            assert (image.shape, image.dtype) == ((18, 24, 3), np.uint8)
            assert image[5, 5].tolist() == [10 * int(id), 0, 7]
            assert type(image) is np.ndarray
    assert decoded == ["2", "4"]


@pytest.mark.parametrize("kind", KINDS)
def test_writing_into_an_image_changes_none_that_is_kept(kind: str, data: VocLayout, folder: Path) -> None:
    kept = cached(data, kind, folder=folder)
    for _ in range(3):
        image = kept.image("1")
        assert image[0, 0].tolist() == [10, 0, 7]
        image[:] = 99


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_changes_is_decoded_again(kind: str, data: VocLayout, folder: Path) -> None:
    paint(data.image_path("1"), 10, time=1_000)
    kept = cached(data, kind, folder=folder)
    assert kept.image("1")[0, 0, 0] == 10
    paint(data.image_path("1"), 11, time=2_000)
    assert kept.image("1")[0, 0, 0] == 11
    assert kept.image("1")[0, 0, 0] == 11
    paint(data.image_path("1"), 12, size=(5, 4), time=3_000)
    assert kept.image("1").shape == (4, 5, 3)
    assert kept.image("1")[0, 0, 0] == 12


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_is_of_the_white_of_the_set(kind: str, data: VocLayout, folder: Path) -> None:
    data.image_path("1").unlink()
    Image.fromarray(np.full((18, 24), 4095, np.uint16)).save(data.image_path("1"))
    for white, seen in ((None, 15), (4095, 255), (None, 15), (8191, 127)):
        kept = cached(VocLayout(data.root, white=white), kind, folder=folder)
        for _ in range(2):
            assert kept.image("1")[0, 0, 0] == seen


@pytest.mark.parametrize("kind", KINDS)
def test_all_but_the_images_is_the_set_as_it_is(kind: str, data: VocLayout, folder: Path) -> None:
    kept = cached(data, kind, folder=folder)
    assert isinstance(kept, VocLayout)
    assert (kept.classes, kept.ids("train"), kept.tags("val")) == (data.classes, data.ids("train"), data.tags("val"))
    assert np.array_equal(kept.truth("1"), data.truth("1"))
    sample = kept.sample("3", with_mask=True)
    assert sample.image[0, 0, 0] == 30
    assert sample.class_ids == (1,)
    assert "image" not in vars(data)  # the set that was given reads its files as before


@pytest.mark.parametrize("kind", KINDS)
def test_asked_again_it_is_the_same(kind: str, data: VocLayout, folder: Path) -> None:
    kept = cached(data, kind, folder=folder)
    assert cached(data, kind, folder=folder) is kept
    assert cached(data, "none", folder=folder) is data
    assert cached(VocLayout(data.root), kind, folder=folder) is not kept


@pytest.mark.parametrize("kind", KINDS)
def test_it_travels_to_other_processes(kind: str, data: VocLayout, folder: Path) -> None:
    kept = cached(data, kind, folder=folder)
    kept.image("2")
    copy: ImageSet = pickle.loads(pickle.dumps(kept))
    assert copy.image("2")[0, 0].tolist() == [20, 0, 7]
    assert copy.image("3")[0, 0].tolist() == [30, 0, 7]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_batches_do_not_depend_on_it(kind: str, workers: int, data: VocLayout, folder: Path) -> None:
    def batches(source: ImageSet, workers: int) -> list[dict[str, torch.Tensor]]:
        augment = Augment(size=16, scale=(0.8, 1.5), jitter=0.4)
        module = DataModule(source, augment=augment, batch_size=2, seed=3, workers=workers, masks=data.truth)
        loader, found = module.train_dataloader(), []
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            found += list(loader)
        return found + list(module.val_dataloader())

    plain, kept = batches(data, 0), batches(cached(data, kind, folder=folder), workers)
    assert len(plain) == len(kept) == 2 * 2 + 2
    for one, other in zip(plain, kept, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("kind", KINDS)
def test_images_that_cannot_be_read_say_so(kind: str, data: VocLayout, folder: Path) -> None:
    path = data.image_path("2")
    kept = cached(data, kind, folder=folder)
    path.write_bytes(b"no image")
    with pytest.raises(DataError, match=f"the image {path} does not decode"):
        kept.image("2")
    path.unlink()
    with pytest.raises(DataError, match=f"the image {path} does not decode"):
        kept.image("2")
    with pytest.raises(DataError, match=f"the image {path} does not decode"):
        DiskImages(data, folder) if kind == "disk" else MemoryImages(data)


def test_kinds(data: VocLayout, folder: Path) -> None:
    assert cached(data, "none", folder=folder) is data
    assert not folder.exists()
    with pytest.raises(ConfigError, match="cache=ram must be none, memory or disk"):
        cached(data, "ram", folder=folder)


@pytest.mark.parametrize("kind", KINDS)
def test_it_moves_no_number_of_a_run(kind: str, finished: "Pipeline", tiny_pipeline: Callable[..., "Pipeline"]) -> None:
    pipeline = tiny_pipeline(f"cache={kind}")
    pipeline.make_all()
    for stage in ("classifier", "seeds", "labels", "segmenter"):
        made, plain = pipeline.artifact(stage), finished.artifact(stage)
        assert made.fingerprint == plain.fingerprint
        assert made.metrics == plain.metrics
    for stage in ("classifier", "segmenter"):
        weights = [
            (artifact.directory / "weights.safetensors").read_bytes()
            for artifact in (pipeline.artifact(stage), finished.artifact(stage))
        ]
        assert weights[0] == weights[1]
    decoded = files(Path(pipeline.config.paths.artifacts) / "decoded")
    assert len(decoded) == (12 if kind == "disk" else 0)


# --- on disk -----------------------------------------------------------------------------------------------------


def test_a_later_run_finds_what_an_earlier_one_wrote(data: VocLayout, folder: Path, decoded: list[str]) -> None:
    first = DiskImages(data, folder)
    for id in "0123":
        first(id)
    assert len(files(folder)) == 4
    assert files(folder)[0].stat().st_size == BYTES + cache.HEADER
    later = DiskImages(VocLayout(data.root), folder)
    assert [int(later(id)[0, 0, 0]) for id in "0123"] == [0, 10, 20, 30]
    assert decoded == ["0", "1", "2", "3"]


def test_what_was_kept_of_an_older_file_is_removed(data: VocLayout, folder: Path) -> None:
    images = DiskImages(data, folder)
    paint(data.image_path("1"), 10, time=1_000)
    images("1"), images("2")
    old = images.path("1")
    paint(data.image_path("1"), 11, time=2_000)
    assert images.path("1") != old
    images("1")
    assert files(folder) == sorted([images.path("1"), images.path("2")])
    assert [path.name for path in folder.rglob("*.partial")] == []


@pytest.mark.parametrize("damage", ["cut off", "another shape", "pickled"])
def test_a_broken_file_is_written_anew(damage: str, data: VocLayout, folder: Path) -> None:
    images = DiskImages(data, folder)
    images("1")
    path = images.path("1")
    if damage == "cut off":
        path.write_bytes(path.read_bytes()[:200])
    elif damage == "another shape":
        np.save(path, np.zeros((18, 24), np.uint8))
    else:
        np.save(path, np.array([{}]), allow_pickle=True)
    assert images("1")[0, 0].tolist() == [10, 0, 7]
    assert np.array_equal(np.load(path), images("1"))


def test_another_decoder_does_not_read_what_this_one_wrote(
    data: VocLayout, folder: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[str]
) -> None:
    DiskImages(data, folder)("1")
    monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
    DiskImages(data, folder)("1")
    assert decoded == ["1", "1"]


def test_a_disk_without_room_is_refused_before_the_first_image(
    data: VocLayout, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def free(space: int) -> None:
        monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: type("Usage", (), {"free": space}))

    monkeypatch.setattr(cache, "MB", 1)
    needed = 6 * (BYTES + cache.HEADER)
    free(needed - 1)
    with pytest.raises(ConfigError, match=f"needs {needed} MB for 6 decoded images .* has {needed - 1} MB left"):
        DiskImages(data, folder)
    free(needed)
    images = DiskImages(data, folder)
    images("1")
    free(needed * 5 // 6)  # what is there needs no room
    assert DiskImages(data, folder)("1")[0, 0, 0] == 10


def test_a_file_that_cannot_be_written_costs_only_time(
    data: VocLayout, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    images = DiskImages(data, folder)

    def full(path: Path, write: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "write_atomically", full)
    with caplog.at_level(logging.WARNING):
        assert images("1")[0, 0, 0] == 10
    assert "No space left on device" in caplog.text
    assert files(folder) == []


def test_the_log_says_how_much_it_will_take(
    data: VocLayout, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cache, "MB", 1)
    with caplog.at_level(logging.INFO, logger=cache.__name__):
        DiskImages(data, folder)("0")
        DiskImages(data, folder)
    first, second = caplog.messages
    assert f"0 of 6 images are decoded in {folder}" in first
    assert f"the others will take {6 * (BYTES + cache.HEADER)} MB" in first
    assert f"1 of 6 images are decoded in {folder}" in second
    assert f"the others will take {5 * (BYTES + cache.HEADER)} MB" in second


# --- in memory ---------------------------------------------------------------------------------------------------


def test_no_more_is_kept_than_fits(data: VocLayout, decoded: list[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger=cache.__name__):
        images = MemoryImages(data, limit=4 * BYTES + BYTES // 2)
    assert "4 of 6 decoded images" in caplog.text
    for _ in range(2):
        assert [int(images(id)[0, 0, 0]) for id in "012345"] == [0, 10, 20, 30, 40, 50]
    assert decoded == [*"012345", "4", "5"]


def test_half_of_the_free_memory_is_the_limit(
    data: VocLayout, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_free_memory", lambda: 4 * BYTES)
    images = MemoryImages(data)
    for _ in range(2):
        [images(id) for id in "0123"]
    assert decoded == [*"0123", "2", "3"]


def test_forked_processes_share_it(data: VocLayout, decoded: list[str]) -> None:
    images = MemoryImages(data)
    process = get_context("fork").Process(target=images, args=("3",))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert images("3")[0, 0].tolist() == [30, 0, 7]
    assert decoded == []  # the other process did it


def test_free_memory_is_what_the_machine_and_the_control_group_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"/proc/meminfo": "MemTotal: 9000 kB\nMemAvailable: 5000 kB\n"}
    monkeypatch.setattr(cache, "_read", lambda path: files.get(str(path), ""))
    assert cache._free_memory() == 5000 * 1024
    files |= {"/sys/fs/cgroup/memory.max": "max\n", "/sys/fs/cgroup/memory.current": "1000\n"}
    assert cache._free_memory() == 5000 * 1024
    files["/sys/fs/cgroup/memory.max"] = "4000\n"
    assert cache._free_memory() == 3000
