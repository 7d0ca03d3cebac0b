"""What is read of a store: what needs what, states, locks and sizes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_store import DAY, NOW, A, B, C, held, kept, put, put_chain, run

from wsss.artifacts import Artifact, write_json
from wsss.errors import ConfigError, MissingArtifact
from wsss.store import Rule, read_store, verify
from wsss.store.sizes import together, usage


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(time, "time", lambda: NOW)
    return tmp_path / "artifacts"


@pytest.fixture
def chain(root: Path) -> Path:
    return put_chain(root)


def test_what_needs_what(chain: Path) -> None:
    store = read_store(chain)
    count = {f"{stage}/{name[0]}": len(needers) for (stage, name), needers in store.needed_by.items()}
    assert count == {"classifier/a": 4, "seeds/a": 2, "seeds/b": 0, "labels/a": 1, "segmenter/a": 0}
    assert [entry.state for entry in store.entries] == ["finished"] * 5
    assert store.age(store.entries[0]) == 30 * DAY


def test_a_teacher_is_a_segmenter(chain: Path) -> None:
    put(chain, "relabels", C, upstream={"teacher": A})
    put(chain, "segmenter", C, upstream={"relabels": C})
    store = read_store(chain)
    assert store.needed_by["segmenter", A] == {("relabels", C), ("segmenter", C)}
    assert not verify(store, store.by_key["relabels", C])
    assert not verify(store, store.by_key["segmenter", C])


def test_the_age_is_that_of_the_manifest(root: Path) -> None:
    artifact = put(root, "classifier", A, days=30)
    manifest = artifact.manifest | {"created": "2027-01-14T08:00:00+00:00"}  # NOW is the 15th, 8:00
    write_json(artifact.directory / "manifest.json", manifest)
    store = read_store(root)
    assert store.age(store.entries[0]) == DAY


def test_unfinished_says_how_much_is_there(chain: Path) -> None:
    artifact = put(chain, "labels", B, finished=False)
    (artifact.directory / "masks" / "image_1.png").unlink()
    artifact.checkpoint.write_bytes(b"state")
    artifact.directory.with_name(f"{B}.lock").write_text("process 7 on here")
    store = read_store(chain)
    entry = store.by_key["labels", B]
    assert entry.state == "unfinished"
    assert not entry.held_by
    assert entry.words(store.images) == "unfinished: masks 1/2, last.ckpt; process 7 on here ended"
    put(chain, "classifier", C, data="other")  # now its data is anybody's guess; the sizes of both sets are the same
    assert read_store(chain).images["masks"] == 2


def test_a_living_process_is_told_from_one_that_ended(chain: Path) -> None:
    artifact = Artifact(chain, "labels", A)
    with held(artifact):
        entry = read_store(chain).by_key["labels", A]
        assert (entry.held_by, entry.left_by) == ("process 7 on here", "")
    assert not read_store(chain).by_key["labels", A].held_by


def test_processes_that_share_an_artifact_are_seen(chain: Path) -> None:
    """Shards leave no word in the lock file; one that was killed alone before them did."""
    artifact = put(chain, "labels", C, finished=False)
    lock = artifact.directory.with_name(f"{C}.lock")
    for words, told in (("", "another process"), ("process 7 on here", "process 7 on here")):
        lock.write_text(words)
        with held(artifact, shared=True):
            entry = read_store(chain).by_key["labels", C]
            assert (entry.held_by, entry.left_by) == (told, "")
            assert "works on it" in kept(chain, Rule(unfinished=True))["labels/c"]
    with held(artifact, part=".learnt"):
        assert read_store(chain).by_key["labels", C].held_by


def test_looking_leaves_locks_as_they_are(chain: Path) -> None:
    lock = chain / "labels" / f"{A}.lock"
    lock.write_text("process 7 on here")
    before = lock.stat()
    assert read_store(chain).by_key["labels", A].left_by == "process 7 on here"
    assert (lock.stat().st_mtime_ns, lock.read_text()) == (before.st_mtime_ns, "process 7 on here")
    with Artifact(chain, "labels", A).locked(timeout=0):
        assert str(os.getpid()) in read_store(chain).by_key["labels", A].held_by


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda path: path.write_text("{"), "Expecting"),
        (lambda path: path.write_text("[]"), "no JSON object"),
        (lambda path: path.write_text("{}"), "lacks stage"),
        (lambda path: path.write_text(path.read_text().replace(A, B)), f"that of seeds/{B}"),
    ],
)
def test_a_damaged_manifest_is_told(chain: Path, spoil: Callable[[Path], Any], problem: str) -> None:
    spoil(chain / "seeds" / A / "manifest.json")
    entry = read_store(chain).by_key["seeds", A]
    assert entry.state == "damaged"
    assert problem in entry.problem


def test_hard_links_count_once(root: Path) -> None:
    first, second = put(root, "seeds", A, finished=False), put(root, "seeds", B, finished=False)
    file = first.directory / "maps" / "image_0.npz"
    file.write_bytes(bytes(100_000))
    alone = usage(second.directory).size
    os.link(file, second.directory / "maps" / "linked.npz")
    parts = [usage(first.directory), usage(second.directory)]
    extra = file.stat().st_blocks * 512
    assert extra >= 100_000
    assert parts[1].size == alone + extra
    assert together(parts).size == parts[0].size + alone == together(parts).freed
    assert parts[1].freed == alone  # the other link keeps the file
    os.link(file, first.directory / "maps" / "twice.npz")
    assert usage(first.directory).size == parts[0].size


def test_symlinks_are_not_followed(root: Path, tmp_path: Path) -> None:
    artifact = put(root, "classifier", A)
    size = usage(artifact.directory).size
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "file").write_bytes(bytes(1_000_000))
    (artifact.directory / "link").symlink_to(tmp_path / "big")
    assert usage(artifact.directory).size < size + 100_000


@pytest.mark.parametrize("kind", ["missing", "empty", "other"])
def test_what_is_no_store_is_refused(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "folder"
    if kind != "missing":
        folder.mkdir()
    if kind == "other":  # a data set with a folder called labels, of images that are called like a fingerprint
        (folder / "labels" / "202601011230").mkdir(parents=True)
        (folder / "labels" / "202601011230" / "photo.jpg").touch()
    with pytest.raises(MissingArtifact, match="no folder" if kind == "missing" else "is no artifact store"):
        read_store(folder)
    assert run("prune", folder, "--stage", "labels", "--yes") == 2
    assert kind != "other" or (folder / "labels" / "202601011230" / "photo.jpg").is_file()


def test_a_fingerprint_by_its_first_digits(chain: Path) -> None:
    store = read_store(chain)
    assert store.find("bbb").key == ("seeds", B)
    assert store.find("labels/a").key == ("labels", A)
    with pytest.raises(ConfigError, match=r"4 artifacts .* begin with aa: classifier/aaaaaaaaaaaa"):
        store.find("aa")
    with pytest.raises(ConfigError, match=r"no artifact in .* begins with ff"):
        store.find("ff")
