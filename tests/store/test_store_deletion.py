"""What a rule may delete and what never goes."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
from made_store import DAY, NOW, A, B, C, D, age, held, kept, names, put, put_chain, run, there

from wsss.artifacts import Artifact, write_json
from wsss.store import Rule, delete, plan, read_store


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(time, "time", lambda: NOW)
    return put_chain(tmp_path / "artifacts")


def test_what_a_finished_artifact_needs_stays(chain: Path) -> None:
    assert names(plan(read_store(chain), Rule(stages=("seeds",)))) == ["seeds/b"]
    assert kept(chain, Rule(stages=("seeds",))) == {"seeds/a": f"labels {A} needs it"}
    assert "needs it" in kept(chain, Rule(stages=("classifier",)))["classifier/a"]


def test_dependants_go_first(chain: Path) -> None:
    assert names(plan(read_store(chain), Rule(older_than=DAY))) == [
        "segmenter/a",
        "labels/a",
        "seeds/a",
        "seeds/b",
        "classifier/a",
    ]


def test_what_stays_holds_what_it_needs(chain: Path) -> None:
    """All but the segmenter are old: it is young and stays, and so does all that it was made from."""
    manifest = chain / "segmenter" / A / "manifest.json"
    write_json(manifest, json.loads(manifest.read_text()) | {"created": "2027-01-14T08:00:00+00:00"})
    age(chain / "segmenter" / A, 1)
    found = plan(read_store(chain), Rule(older_than=7 * DAY))
    assert names(found) == ["seeds/b"]
    assert len(found.kept) == 3


def test_through_an_unfinished_link(chain: Path) -> None:
    """The labels were forced and killed: the segmenter still says what it was made from."""
    (chain / "labels" / A / "manifest.json").unlink()
    age(chain / "labels" / A, 30)
    assert kept(chain, Rule(unfinished=True)) == {"labels/a": f"segmenter {A} needs it"}


def test_the_best_are_kept(chain: Path) -> None:
    put(chain, "seeds", C, upstream={"classifier": A}, metric=0.5)
    put(chain, "seeds", D, upstream={"classifier": A}, metric=None)
    assert names(plan(read_store(chain), Rule(keep_best=1))) == ["seeds/c"]  # a is needed, d was not measured
    assert names(plan(read_store(chain), Rule(keep_best=0, stages=("seeds",)))) == ["seeds/b", "seeds/c"]
    put(chain, "seeds", "e" * 12, upstream={"classifier": A}, metric=0.1, data="other")
    assert names(plan(read_store(chain), Rule(keep_best=1))) == ["seeds/c"]  # e is the best of its data


def test_rules_together_mean_what_all_of_them_mean(chain: Path) -> None:
    put(chain, "seeds", C, finished=False, days=1)
    store = read_store(chain)
    assert names(plan(store, Rule(unfinished=True))) == ["seeds/c"]
    assert names(plan(store, Rule(unfinished=True, older_than=7 * DAY))) == []
    assert names(plan(store, Rule(fingerprints=("bb", "cc"), older_than=7 * DAY))) == ["seeds/b"]
    assert names(plan(store, Rule(unused=True))) == ["seeds/b", "seeds/c"]


def test_what_was_just_written_stays(chain: Path) -> None:
    age(chain / "seeds" / B, 300 / DAY)
    assert "last 10 minutes" in kept(chain, Rule(unused=True))["seeds/b"]
    assert names(plan(read_store(chain), Rule(unused=True), force_recent=True)) == ["seeds/b"]
    put(chain, "labels", C, finished=False, days=0)
    assert "last 10 minutes" in kept(chain, Rule(unfinished=True))["labels/c"]


def test_what_a_living_process_works_on_stays(chain: Path) -> None:
    artifact = put(chain, "labels", C, finished=False)
    other = put(chain, "labels", D, finished=False)
    with held(artifact):
        assert names(plan(read_store(chain), Rule(unfinished=True), force_recent=True)) == ["labels/d"]
        # it may be made from these seeds, which no manifest tells yet
        assert "--while-running" in kept(chain, Rule(unused=True, stages=("seeds",)))["seeds/b"]
        found = plan(read_store(chain), Rule(unused=True, stages=("seeds",)), while_running=True)
        assert names(found) == ["seeds/b"]
        assert run("prune", chain, "--unfinished", "--yes") == 0
        assert artifact.directory.is_dir()
        assert not other.directory.exists()
    assert names(plan(read_store(chain), Rule(unfinished=True))) == ["labels/c"]


def test_a_lock_taken_since_is_seen(chain: Path) -> None:
    """What needs it was planned to go and cannot: what that was made from stays as well."""
    store = read_store(chain)
    found = plan(store, Rule(older_than=DAY))
    with held(Artifact(chain, "labels", A)):
        failed = delete(store, found.go)
    assert there(chain) == ["classifier/a", "labels/a", "seeds/a"]
    assert names([entry for entry, _ in failed]) == ["labels/a", "seeds/a", "classifier/a"]
    assert "process 7 on here works on" in failed[0][1]
    assert "stays and needs it" in failed[1][1]


def test_what_changed_since_it_was_looked_at_stays(chain: Path) -> None:
    artifact = put(chain, "labels", C, finished=False)
    store = read_store(chain)
    found = plan(store, Rule(unfinished=True))
    (artifact.directory / "masks" / "more.png").touch()
    assert delete(store, found.go)[0][1] == "it has changed since it was looked at"
    artifact.publish(Artifact(chain, "labels", A).manifest | {"fingerprint": C}, {})
    assert delete(store, found.go)[0][1] == "it has changed since it was looked at"
    assert artifact.complete


def test_an_unreadable_manifest_may_need_anything_before_it(chain: Path) -> None:
    (chain / "labels" / A / "manifest.json").write_text("{")
    shutil.rmtree(chain / "segmenter" / A)
    age(chain / "labels" / A, 30)
    assert "cannot be read" in kept(chain, Rule(stages=("seeds",)))["seeds/a"]
    assert "seeds/b" in kept(chain, Rule(unused=True, stages=("seeds",)))
    both = plan(read_store(chain), Rule(stages=("seeds", "labels")))
    assert names(both) == ["labels/a", "seeds/a", "seeds/b"]
    store = read_store(chain)
    with held(Artifact(chain, "labels", A)):
        assert names([entry for entry, _ in delete(store, both.go)]) == ["labels/a", "seeds/a", "seeds/b"]
    assert there(chain) == ["classifier/a", "labels/a", "seeds/a", "seeds/b"]


def test_what_is_no_artifact_stays(chain: Path) -> None:
    folder = chain / "labels" / D
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    age(folder, 30)
    (chain / "labels" / "my labels").mkdir()
    assert (
        kept(chain, Rule(stages=("labels",), older_than=DAY))["labels/d"] == "no artifact: no manifest, but notes.txt"
    )
    assert run("prune", chain, "--older-than", "1d", "--yes") == 0
    assert (folder / "notes.txt").is_file()
    assert (chain / "labels" / "my labels").is_dir()


@pytest.mark.parametrize("level", ["artifact", "stage"])
def test_a_linked_artifact_stays_and_holds_what_it_needs(chain: Path, tmp_path: Path, level: str) -> None:
    place = chain / "labels" / A if level == "artifact" else chain / "labels"
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    shutil.rmtree(chain / "segmenter")
    assert run("prune", chain, "--older-than", "1d", "--yes") == 0
    assert (place / ("manifest.json" if level == "artifact" else f"{A}/manifest.json")).is_file()
    assert there(chain) == ["classifier/a", "labels/a", "seeds/a"]


def test_links_inside_go_without_what_they_point_at(chain: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    (chain / "seeds" / B / "link").symlink_to(tmp_path / "precious")
    age(chain / "seeds" / B, 30)
    assert run("prune", chain, "--unused", "--yes") == 0
    assert not (chain / "seeds" / B).exists()
    assert (tmp_path / "precious" / "file").is_file()


def test_what_was_set_aside_stays_while_it_is_the_last_result(chain: Path) -> None:
    """A forced run renames what is there; where it was killed, the old one is what the labels were made from."""
    (chain / "seeds" / A).rename(chain / "seeds" / f"{A}.old")
    store = read_store(chain)
    old = store.by_key["seeds", f"{A}.old"]
    assert old.state == "aside"
    assert len(store.needed_by[old.key]) == 2
    rule = Rule(fingerprints=(f"seeds/{A}.old",))
    assert "the last result" in kept(chain, rule)["seeds/a"]
    put(chain, "seeds", A, upstream={"classifier": A})
    assert names(plan(read_store(chain), rule)) == ["seeds/a"]
