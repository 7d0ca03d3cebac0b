"""Pruning from the command line: refusals, questions, and files of no artifact."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import PIL
import pytest
from made_store import DAY, NOW, A, B, age, held, put, put_chain, run, there

from wsss.artifacts import Artifact
from wsss.data.cache import VERSION
from wsss.report.index import write_index
from wsss.store import read_store, verify
from wsss.store.leftovers import leftovers
from wsss.store.printing import format_size
from wsss.store.sizes import usage


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(time, "time", lambda: NOW)
    return put_chain(tmp_path / "artifacts")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--dry-run",),
        ("--unfinished", "--keep-best", "1"),
        ("--unfinished", "--experiment", "first"),
        ("--partial", "--unfinished"),
        ("--caches", "--stage", "seeds"),
        ("--fingerprint", "ffff"),
        ("--unused",),  # nobody to ask
    ],
)
def test_refusals(chain: Path, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    before = there(chain)
    assert run("prune", chain, *arguments) == 2
    assert there(chain) == before


@pytest.mark.parametrize("arguments", [("--older-than", "week"), ("--keep-best", "-1"), ("--stage", "cam"), ("--foo",)])
def test_arguments_that_cannot_be_read(chain: Path, arguments: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as stop:
        run("prune", chain, *arguments)
    assert stop.value.code == 2


@pytest.mark.parametrize(("answer", "goes"), [("", False), ("n", False), ("yes", True), ("Y", True), (None, False)])
def test_it_asks(
    chain: Path, answer: str | None, goes: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def reply(question: str) -> str:
        asked.append(question)
        if answer is None:
            raise EOFError
        return answer

    monkeypatch.setattr("builtins.input", reply)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    size = usage(chain / "seeds" / B).size
    assert run("prune", chain, "--unused") == 0
    assert asked == [f"Delete 1 artifact, {format_size(size)}? [y/N] "]
    assert (chain / "seeds" / B).exists() is not goes
    assert ("deleted 1 of 1" if goes else "nothing deleted") in capsys.readouterr().out


def test_what_came_to_be_needed_while_it_asked_stays(chain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reply(_: str) -> str:
        put(chain, "labels", B, upstream={"seeds": B})
        return "y"

    monkeypatch.setattr("builtins.input", reply)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    # the new labels are meant too, but nobody was asked about them: they stay, and so does what they need
    assert run("prune", chain, "--unused", "--force-recent") == 0
    assert run("prune", chain, "--unused", "--stage", "seeds", "--force-recent", "--dry-run") == 0
    assert there(chain) == ["classifier/a", "labels/a", "labels/b", "seeds/a", "seeds/b", "segmenter/a"]


def test_a_dry_run_changes_nothing(chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in chain.rglob("*")}
    assert run("prune", chain, "--older-than", "1d", "--dry-run") == 0
    output = capsys.readouterr().out
    assert "dry run: 5 artifacts" in output
    assert f"segmenter {A}" in output
    assert {path: path.stat().st_mtime_ns for path in chain.rglob("*")} == before


def test_prune_deletes_and_leaves_the_rest_as_it_is(chain: Path) -> None:
    rest = {path: path.read_bytes() for path in chain.rglob("*") if path.is_file() and B not in str(path)}
    assert run("prune", "--unused", "--yes", "--fingerprint", "bbb", chain) == 0
    assert {path: path.read_bytes() for path in chain.rglob("*") if path.is_file() and B not in str(path)} == rest
    assert there(chain) == ["classifier/a", "labels/a", "seeds/a", "segmenter/a"]
    assert (chain / "seeds" / f"{B}.lock").read_text() == ""  # free, and the same file for whoever waits for it


def test_a_killed_prune_leaves_nothing_that_looks_complete(chain: Path) -> None:
    """The process is killed as it has deleted one file of the labels; segmenter and seeds are then what they say."""
    child = os.fork()
    if child == 0:
        deleted = []

        def rmtree(path: Path) -> None:
            deleted.append(path)
            if path.parent.name == "labels":
                next((path / "masks").iterdir()).unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            original(path)

        original = shutil.rmtree
        shutil.rmtree = rmtree  # type: ignore[assignment]
        run("prune", chain, "--older-than", "1d", "--yes")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    store = read_store(chain)
    assert {f"{entry.stage}/{entry.name[0]}": entry.state for entry in store.entries} == {
        "classifier/a": "finished",
        "seeds/a": "finished",
        "seeds/b": "finished",
        "labels/a": "unfinished",
    }
    assert store.by_key["labels", A].left_by
    assert not store.by_key["labels", A].held_by
    assert all(verify(store, entry) == [] for entry in store.entries if entry.finished)
    assert run("prune", chain, "--older-than", "1d", "--yes", "--force-recent") == 0
    assert there(chain) == []


def test_half_written_files(chain: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    folder = chain / "labels" / A / "masks"
    left = folder / f"x.png.{dead.pid}-1.partial"
    alive = folder / f"y.png.{os.getpid()}-1.partial"
    recent = folder / f"z.png.{dead.pid}-1.partial"
    for path in (left, alive, recent):
        path.write_bytes(b"half")
    for path in (left, alive):
        os.utime(path, (NOW - DAY,) * 2)
    os.utime(recent, (NOW - 60,) * 2)
    found = {item.path: item.kept for item in leftovers(read_store(chain), partial=True)}
    assert found[left] == ""
    assert "still runs" in found[alive]
    assert "last 10 minutes" in found[recent]
    with held(Artifact(chain, "labels", A)):
        assert all(item.kept for item in leftovers(read_store(chain), partial=True))
    assert run("prune", chain, "--partial", "--yes") == 0
    assert not left.exists()
    assert alive.exists()
    assert recent.exists()
    assert Artifact(chain, "labels", A).complete


def test_images_decoded_by_another_version(chain: Path) -> None:
    old = chain / "decoded" / "v0-pillow1.0"
    current = chain / "decoded" / f"v{VERSION}-pillow{PIL.__version__}"
    mine = chain / "decoded" / "mine"
    for folder in (old, current, mine):
        folder.mkdir(parents=True)
        (folder / "file.npy").touch()
    age(chain / "decoded", 1)
    assert run("prune", chain, "--partial", "--yes") == 0
    assert not old.exists()
    assert current.exists()
    assert mine.exists()


def test_caches_go_as_a_whole_but_not_under_a_running_process(chain: Path) -> None:
    for name in ("superpixels", "decoded", "report"):
        (chain / name / "x").mkdir(parents=True)
        (chain / name / "x" / "file").write_bytes(b"kept")
        age(chain / name, 1)
    with held(Artifact(chain, "labels", A)):
        assert run("prune", chain, "--caches", "--yes") == 0
        assert (chain / "superpixels" / "x" / "file").exists()
    assert run("prune", chain, "--caches", "--yes", "--older-than", "2d") == 0
    assert (chain / "superpixels" / "x" / "file").exists()
    assert run("prune", chain, "--caches", "--yes") == 0
    assert not (chain / "superpixels").exists()
    assert not (chain / "decoded").exists()
    assert (chain / "report").exists()


def test_training_states_of_finished_artifacts(chain: Path) -> None:
    done, other = Artifact(chain, "segmenter", A), put(chain, "segmenter", B, finished=False)
    for artifact in (done, other):
        artifact.checkpoint.write_bytes(b"state")
        age(artifact.directory, 30)
    assert run("prune", chain, "--checkpoints", "--experiment", "second", "--yes") == 0
    assert done.checkpoint.exists()
    assert run("prune", chain, "--checkpoints", "--yes") == 0
    assert not done.checkpoint.exists()
    assert other.checkpoint.exists()
    store = read_store(chain)
    assert verify(store, store.by_key["segmenter", A]) == []


def test_the_index_forgets_what_was_deleted(chain: Path) -> None:
    page = write_index(chain)
    assert A in page.read_text()
    assert run("prune", chain, "--stage", "segmenter", "--unused", "--yes") == 0
    assert not (chain / "segmenter" / A).exists()
    assert A not in page.read_text()
    put(chain, "segmenter", B)
    page.unlink()
    assert run("prune", chain, "--stage", "segmenter", "--unused", "--yes") == 0
    assert not page.exists()  # who wants none gets none


def test_what_unused_means_is_said(chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("prune", chain, "--unused", "--dry-run") == 0
    assert "a study that ends at seeds or labels" in " ".join(capsys.readouterr().out.split())
    assert run("prune", chain, "--older-than", "1d", "--stage", "segmenter", "--dry-run") == 0
    assert "a study that ends" not in capsys.readouterr().out
