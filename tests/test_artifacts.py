import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from wsss.artifacts import Artifact, Seeds, SuperpixelStore, fingerprint, read_json, write_atomically, write_json
from wsss.errors import CorruptArtifact, LockTimeout
from wsss.palette import voc_palette


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return Artifact(tmp_path / "store", "seeds", "0123456789ab")


def files(artifact: Artifact) -> list[str]:
    return sorted(str(p.relative_to(artifact.directory)) for p in artifact.directory.rglob("*") if p.is_file())


def says(error: pytest.ExceptionInfo[Exception], *parts: object) -> None:
    for part in parts:
        assert str(part) in str(error.value)


# --- fingerprints ------------------------------------------------------------------------------------------------

FACTS = {"stage": "seeds", "config": {"scales": [1.0, 0.5], "flip": True, "stride": 4}, "ids": ["a", "b"], "none": None}


def test_a_fingerprint_is_twelve_hexadecimal_digits_and_never_changes() -> None:
    assert fingerprint(FACTS) == "9d9df58a240d"


@pytest.mark.parametrize(
    "same",
    [
        {**FACTS, "config": {"stride": 4, "flip": True, "scales": [1.0, 0.5]}},  # order of keys
        dict(reversed(FACTS.items())),
        {**FACTS, "config": {"scales": [1, 0.5], "flip": True, "stride": 4.0}},  # 1 and 1.0
        {**FACTS, "config": {"scales": (1.0, 0.5), "flip": True, "stride": 4}},  # a tuple
        {**FACTS, "ids": ("a", "b")},
    ],
)
def test_what_makes_no_difference(same: dict) -> None:
    assert fingerprint(same) == fingerprint(FACTS)


@pytest.mark.parametrize(
    "other",
    [
        {**FACTS, "stage": "labels"},
        {**FACTS, "config": {"scales": [0.5, 1.0], "flip": True, "stride": 4}},  # order of a list
        {**FACTS, "config": {"scales": [1.0, 0.5], "flip": True, "stride": 4.5}},
        {**FACTS, "config": {"scales": [1.0, 0.5], "flip": True, "stride": "4"}},
        {**FACTS, "config": {"scales": [1.0, 0.5], "flip": False, "stride": 4}},
        {**FACTS, "config": {"scales": [1.0, 0.5], "flip": 1, "stride": 4}},
        {**FACTS, "ids": ["a", "b", "c"]},
        {**FACTS, "ids": ["ab"]},
        {**FACTS, "none": 0},
        {key: value for key, value in FACTS.items() if key != "none"},
    ],
)
def test_what_makes_a_difference(other: dict) -> None:
    assert fingerprint(other) != fingerprint(FACTS)


# --- files -------------------------------------------------------------------------------------------------------


def test_write_atomically(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"

    def write(partial: Path) -> None:
        assert not path.exists()
        assert partial.parent == path.parent  # the same disk: renaming is atomic there alone
        partial.write_text("done")

    write_atomically(path, write)
    assert [p.name for p in path.parent.iterdir()] == ["file"]
    assert path.read_text() == "done"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write(partial: Path) -> None:
        partial.write_text("half")
        raise error

    with pytest.raises(error):
        write_atomically(path, write)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "old"


def test_json_round_trip(tmp_path: Path) -> None:
    content = {"miou": 0.5, "iou": {"cat": None}, "curve": [[0.1, 0.2]]}
    write_json(tmp_path / "metrics.json", content)
    assert read_json(tmp_path / "metrics.json") == content


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_json_has_no_nan(tmp_path: Path, number: float) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "metrics.json", {"miou": number})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [None, b"{", b"\xff\xfe{}"])
def test_json_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "metrics.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CorruptArtifact) as error:
        read_json(path)
    says(error, path, f"Delete {tmp_path} and run its stage again")


# --- the life of an artifact -------------------------------------------------------------------------------------


def test_the_manifest_comes_last(artifact: Artifact) -> None:
    artifact.prepare()
    artifact.write_mask("a", np.zeros((2, 2), np.uint8))
    assert not artifact.complete
    with pytest.raises(TypeError):
        artifact.publish({"stage": {1, 2}}, {"miou": 0.5})  # the manifest cannot be written; the metrics are
    assert (files(artifact), artifact.complete) == (["masks/a.png", "metrics.json"], False)
    artifact.publish({"stage": "seeds"}, {"miou": 0.5})
    assert artifact.complete
    assert artifact.manifest == {"stage": "seeds"}
    assert artifact.metrics == {"miou": 0.5}
    assert artifact.directory == artifact.root / "seeds" / "0123456789ab"


def test_metrics_that_are_no_number_do_not_complete_an_artifact(artifact: Artifact) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        artifact.publish({"stage": "seeds"}, {"miou": float("nan")})
    assert not artifact.complete
    assert files(artifact) == []


def test_prepare_drops_what_was_half_written_and_nothing_else(artifact: Artifact) -> None:
    artifact.prepare()
    artifact.write_mask("a", np.zeros((2, 2), np.uint8))
    for name in ("masks/b.png.77.partial", "last.ckpt.partial"):
        (artifact.directory / name).write_text("half")
    artifact.prepare()
    assert files(artifact) == ["masks/a.png"]


def test_remove(artifact: Artifact) -> None:
    artifact.remove()  # nothing there: nothing to do
    artifact.write_mask("a", np.zeros((2, 2), np.uint8))
    artifact.publish({}, {})
    other = Artifact(artifact.root, "seeds", "ba9876543210")
    other.publish({}, {})
    artifact.remove()
    assert not artifact.directory.exists()
    assert not artifact.complete
    assert other.complete


def test_the_manifest_goes_first(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact.publish({}, {})

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("wsss.artifacts.shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        artifact.remove()
    assert (files(artifact), artifact.complete) == (["metrics.json"], False)


# --- weights -----------------------------------------------------------------------------------------------------


def test_weights_round_trip(artifact: Artifact) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    network(torch.rand(2, 3, 8, 8))
    assert not artifact.has_weights
    artifact.write_weights(network)
    assert artifact.has_weights
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    artifact.read_weights(other)
    for name, tensor in network.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)
    assert files(artifact) == ["weights.safetensors"]


def test_weights_that_cannot_be_read(artifact: Artifact) -> None:
    path = artifact.directory / "weights.safetensors"
    with pytest.raises(CorruptArtifact) as error:
        artifact.read_weights(nn.Linear(1, 1))
    says(error, path, f"Delete {artifact.directory} and run its stage again")
    artifact.write_weights(nn.Linear(1, 2))
    with pytest.raises(CorruptArtifact) as error:
        artifact.read_weights(nn.Linear(1, 1))
    says(error, path, "size mismatch")
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(CorruptArtifact) as error:
        artifact.read_weights(nn.Linear(1, 2))
    says(error, path)


def test_tensors_round_trip(artifact: Artifact) -> None:
    assert artifact.read_tensors("prototypes") is None
    tensors = {"a": torch.rand(2, 3), "b": torch.rand(4, 2).T}
    artifact.write_tensors("prototypes", tensors)
    read = artifact.read_tensors("prototypes")
    assert set(read) == {"a", "b"}
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)


def test_tensors_that_cannot_be_read(artifact: Artifact) -> None:
    artifact.write_tensors("prototypes", {"a": torch.zeros(1)})
    path = artifact.directory / "prototypes.safetensors"
    path.write_bytes(b"broken")
    with pytest.raises(CorruptArtifact) as error:
        artifact.read_tensors("prototypes")
    says(error, path, f"Delete {artifact.directory}")


# --- seeds -------------------------------------------------------------------------------------------------------


def test_seeds_round_trip(artifact: Artifact) -> None:
    scores = np.random.default_rng(0).random((2, 3, 4), np.float32)
    assert not artifact.has_seeds("a")
    artifact.write_seeds("a", Seeds([2, 20], scores, (12, 15)))
    assert artifact.has_seeds("a")
    seeds = artifact.read_seeds("a")
    assert (seeds.class_ids.tolist(), seeds.size) == ([2, 20], (12, 15))
    assert seeds.scores.dtype == np.float32
    np.testing.assert_allclose(seeds.scores, scores, atol=5e-4)  # half precision
    assert files(artifact) == ["maps/a.npz"]


def test_the_contract_on_disk(artifact: Artifact) -> None:
    """Other programs read these files with NumPy alone."""
    artifact.write_seeds("a", Seeds([2, 20], np.array([[[0.0, 0.25]], [[1.0, 0.5]]]), (4, 8)))
    with np.load(artifact.directory / "maps" / "a.npz", allow_pickle=False) as file:
        arrays = dict(file)
    assert set(arrays) == {"class_ids", "scores", "size"}
    assert (arrays["class_ids"].dtype, arrays["class_ids"].tolist()) == (np.uint8, [2, 20])
    assert (arrays["scores"].dtype, arrays["scores"].tolist()) == (np.float16, [[[0, 0.25]], [[1, 0.5]]])
    assert (arrays["size"].shape, arrays["size"].tolist()) == ((2,), [4, 8])


def test_seeds_of_an_image_without_classes(artifact: Artifact) -> None:
    artifact.write_seeds("a", Seeds([], np.zeros((0, 3, 4)), (12, 15)))
    seeds = artifact.read_seeds("a")
    assert (seeds.class_ids.shape, seeds.class_ids.dtype) == ((0,), np.uint8)
    assert (seeds.scores.shape, seeds.size) == ((0, 3, 4), (12, 15))


def test_missing_seeds(artifact: Artifact) -> None:
    with pytest.raises(CorruptArtifact) as error:
        artifact.read_seeds("a")
    says(error, artifact.directory / "maps/a.npz", f"Delete {artifact.directory} and run its stage again")


@pytest.mark.parametrize("damage", ["empty", "cut short", "no archive", "flipped bits", "an array is missing"])
def test_damaged_seeds(artifact: Artifact, damage: str) -> None:
    scores = np.random.default_rng(0).random((2, 9, 9))
    artifact.write_seeds("a", Seeds([1, 2], scores, (36, 36)))
    path = artifact.directory / "maps" / "a.npz"
    good = path.read_bytes()
    if damage == "an array is missing":
        np.savez(path, class_ids=np.array([1], np.uint8), size=np.array([1, 1]))
        variants = [path.read_bytes()]
    elif damage == "flipped bits":  # in the compressed scores: some are found by zlib, some by the checksum
        start = good.index(b"scores.npy") + 40
        variants = [good[:i] + bytes([good[i] ^ 0x81]) + good[i + 1 :] for i in range(start, start + 200, 5)]
    else:
        variants = {"empty": [b""], "cut short": [good[:-20], good[:60]], "no archive": [b"not an archive"]}[damage]
    for content in variants:
        path.write_bytes(content)
        with pytest.raises(CorruptArtifact) as error:
            artifact.read_seeds("a")
        says(error, path, "cannot be read")


@pytest.mark.parametrize("value", [1.01, -0.01, float("nan"), float("inf")])
def test_scores_out_of_range(artifact: Artifact, value: float) -> None:
    artifact.write_seeds("a", Seeds([1], np.array([[[0.5, value]]]), (4, 8)))
    with pytest.raises(CorruptArtifact) as error:
        artifact.read_seeds("a")
    says(error, artifact.directory / "maps/a.npz", "outside [0,1] or NaN")


@pytest.mark.parametrize(
    ("class_ids", "scores", "size"),
    [
        ([1], np.zeros((2, 3, 4)), (4, 8)),
        ([1, 2], np.zeros((3, 4)), (4, 8)),
        (1, np.zeros((1, 3, 4)), (4, 8)),
        ([1], np.zeros((1, 3, 4)), (4, 8, 3)),
    ],
)
def test_arrays_that_do_not_belong_together(
    artifact: Artifact, class_ids: object, scores: np.ndarray, size: tuple
) -> None:
    artifact.write_seeds("a", Seeds(class_ids, scores, size))
    with pytest.raises(CorruptArtifact) as error:
        artifact.read_seeds("a")
    says(error, artifact.directory / "maps/a.npz", "do not belong together", str(scores.shape))


def test_pickled_seeds_are_refused(artifact: Artifact) -> None:
    path = artifact.directory / "maps" / "a.npz"
    path.parent.mkdir(parents=True)
    np.savez(path, class_ids=np.array([{}], dtype=object), scores=np.zeros((1, 1, 1)), size=np.array([1, 1]))
    with pytest.raises(CorruptArtifact, match="allow_pickle=False"):
        artifact.read_seeds("a")


# --- masks -------------------------------------------------------------------------------------------------------


def test_masks_round_trip_as_indexed_images(artifact: Artifact) -> None:
    labels = np.array([[0, 1, 20], [255, 7, 0]])
    assert not artifact.has_mask("a")
    artifact.write_mask("a", labels)
    assert artifact.has_mask("a")
    read = artifact.read_mask("a")
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, labels)
    assert files(artifact) == ["masks/a.png"]
    with Image.open(artifact.directory / "masks" / "a.png") as image:
        assert (image.format, image.mode, image.size) == ("PNG", "P", (3, 2))
        np.testing.assert_array_equal(np.array(image.convert("RGB")), voc_palette()[labels])


def test_masks_of_another_folder(artifact: Artifact) -> None:
    artifact.write_mask("a", np.ones((2, 3)), folder="predictions")
    assert artifact.has_mask("a", folder="predictions")
    assert not artifact.has_mask("a")
    assert artifact.read_mask("a", folder="predictions").tolist() == [[1, 1, 1]] * 2


@pytest.mark.parametrize("keep", [None, 0, 30, -60])
def test_masks_that_cannot_be_read(artifact: Artifact, keep: int | None) -> None:
    artifact.write_mask("a", np.arange(64).reshape(8, 8))
    path = artifact.directory / "masks" / "a.png"
    path.unlink() if keep is None else path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CorruptArtifact) as error:
        artifact.read_mask("a")
    says(error, path, f"Delete {artifact.directory} and run its stage again")


# --- lock --------------------------------------------------------------------------------------------------------

HOLDER = """
import sys, time
from pathlib import Path
from wsss.artifacts import Artifact
with Artifact(Path(sys.argv[1]), "seeds", "0123456789ab").locked():
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_is_taken_and_given_back(artifact: Artifact, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        with artifact.locked(timeout=0):
            with pytest.raises(LockTimeout) as error, artifact.locked(timeout=0):
                pass
            says(error, f"process {os.getpid()} on ", artifact.directory)
        with pytest.raises(ZeroDivisionError), artifact.locked(timeout=0):
            raise ZeroDivisionError
    with Artifact(artifact.root, "seeds", "other").locked(timeout=0), artifact.locked(timeout=0):
        pass
    assert not [record for record in caplog.records if "taking over" in record.message]


def test_a_lock_waits_as_long_as_it_is_told_and_says_so_once(
    artifact: Artifact, caplog: pytest.LogCaptureFixture
) -> None:
    with artifact.locked():
        started = time.monotonic()
        with pytest.raises(LockTimeout), artifact.locked(timeout=0.1, poll=0.02):
            pass
        assert 0.1 <= time.monotonic() - started < 1
    assert len([record for record in caplog.records if record.message.startswith("waiting: process")]) == 1


def test_another_process_holds_the_lock_and_dies(artifact: Artifact, caplog: pytest.LogCaptureFixture) -> None:
    lock = artifact.root / "seeds" / "0123456789ab.lock"
    command = [sys.executable, "-c", HOLDER, str(artifact.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            with pytest.raises(LockTimeout) as error, artifact.locked(timeout=0):
                pass
            says(
                error,
                f"process {process.pid} on ",
                artifact.directory,
                "If that process no longer exists",
                f"delete {lock}",
            )
        finally:
            process.send_signal(signal.SIGKILL)
    with caplog.at_level(logging.WARNING), artifact.locked(timeout=5, poll=0.02):
        assert f"process {os.getpid()} on " in lock.read_text()
    assert f"taking over from process {process.pid} on " in caplog.text
    assert "ended before it was done" in caplog.text
    caplog.clear()
    with artifact.locked(timeout=0):
        pass
    assert not caplog.records


def test_the_lock_outlives_a_removed_artifact(artifact: Artifact) -> None:
    with artifact.locked():
        artifact.prepare()
        artifact.remove()
        with pytest.raises(LockTimeout), artifact.locked(timeout=0):
            pass


def test_json_is_readable_by_people(artifact: Artifact) -> None:
    artifact.publish({"b": 1, "a": [1, 2]}, {})
    text = (artifact.directory / "manifest.json").read_text()
    assert text.startswith('{\n  "b": 1')
    assert text.endswith("}\n")
    assert json.loads(text) == {"b": 1, "a": [1, 2]}


# --- boundaries and superpixels ----------------------------------------------------------------------------------


def test_boundaries_come_back(artifact: Artifact) -> None:
    kept = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    assert not artifact.has_boundaries("a")
    artifact.write_boundaries("a", kept)
    assert artifact.has_boundaries("a")
    found = artifact.read_boundaries("a")
    assert found.dtype == np.float32
    assert np.abs(found - kept).max() < 1e-3


@pytest.mark.parametrize("broken", [None, b"PK\x03\x04 cut off", "shape", "range"])
def test_broken_boundaries_are_named(artifact: Artifact, broken: bytes | str | None) -> None:
    path = artifact.directory / "boundaries" / "a.npz"
    path.parent.mkdir(parents=True)
    if isinstance(broken, bytes):
        path.write_bytes(broken)
    elif broken:
        np.savez(path, boundaries=np.full((2,) if broken == "shape" else (2, 2), 2.0))
    with pytest.raises(CorruptArtifact) as error:
        artifact.read_boundaries("a")
    says(error, path)


IMAGE = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
SEGMENTS = np.arange(24, dtype=np.int64).reshape(4, 6) // 5


def test_superpixels_are_computed_once_for_pixels_and_settings(tmp_path: Path) -> None:
    store, asked = SuperpixelStore(tmp_path), []

    def make() -> np.ndarray:
        asked.append(1)
        return SEGMENTS

    for image, settings, computed in [
        (IMAGE, "slic 4", 1),
        (IMAGE.copy(), "slic 4", 1),
        (IMAGE, "slic 5", 2),
        (IMAGE + 1, "slic 4", 3),
        (np.asfortranarray(IMAGE), "slic 4", 3),
    ]:
        found = store(image, settings, make)
        assert len(asked) == computed
        assert found.dtype == np.int64
        assert (found == SEGMENTS).all()


def test_superpixels_of_many_images_do_not_lie_in_one_folder(tmp_path: Path) -> None:
    store = SuperpixelStore(tmp_path)
    for at in range(40):
        store(IMAGE + np.uint8(at), "a", lambda: SEGMENTS)
    (made_by,) = (tmp_path / "superpixels").iterdir()
    assert len(list(made_by.rglob("*.npz"))) == 40
    assert not list(made_by.glob("*.npz"))
    assert len(list(made_by.iterdir())) > 10


def test_broken_superpixels_are_computed_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "wsss")
    store = SuperpixelStore(tmp_path)
    store(IMAGE, "a", lambda: SEGMENTS)
    (path,) = tmp_path.rglob("*.npz")
    path.write_bytes(b"no archive")
    assert (store(IMAGE, "a", lambda: SEGMENTS) == SEGMENTS).all()
    assert str(path) in caplog.text
    assert (store(IMAGE, "a", lambda: 1 / 0) == SEGMENTS).all()


def test_many_superpixels_fit(tmp_path: Path) -> None:
    segments = np.arange(300 * 300).reshape(300, 300)
    image, store = np.zeros((300, 300, 3), dtype=np.uint8), SuperpixelStore(tmp_path)
    assert all((store(image, "a", lambda: segments) == segments).all() for _ in range(2))
