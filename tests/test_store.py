"""The store seen from outside: what is listed, what a rule may delete and what never goes, and what verify finds."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from safetensors.torch import save_file

import wsss.store
from wsss.artifacts import Artifact, Seeds, write_json
from wsss.data.cache import VERSION
from wsss.errors import ConfigError, MissingArtifact
from wsss.pipeline import STAGES, Pipeline
from wsss.store import (
    FILES,
    Rule,
    changed_settings,
    default_config,
    delete,
    differences,
    flat,
    format_size,
    grouped,
    in_common,
    leftovers,
    main,
    plan,
    read_store,
    records,
    short_keys,
    together,
    usage,
    verify,
    whole_config,
)

DAY = 86400
NOW = 1_800_000_000.0
TRAIN, VAL = 2, 1
A, B, C, D = ("a" * 12, "b" * 12, "c" * 12, "d" * 12)


def put(
    root: Path,
    stage: str,
    name: str,
    *,
    upstream: Mapping[str, str] | None = None,
    metric: float | None = 0.5,
    config: Mapping[str, Any] | None = None,
    experiment: str = "first",
    data: str = "shapes",
    days: float = 30,
    finished: bool = True,
) -> Artifact:
    """A small artifact as its stage would leave it, all of its files ``days`` old."""
    artifact = Artifact(root, stage, name)
    artifact.directory.mkdir(parents=True)
    for kind in FILES[stage]:
        for at in range({"weights": 0, "predictions": VAL}.get(kind, TRAIN)):
            if kind == "maps":
                artifact.write_seeds(f"image_{at}", Seeds(np.array([1]), np.full((1, 2, 2), 0.5), (4, 4)))
            elif kind == "boundaries":
                artifact.write_boundaries(f"image_{at}", np.full((2, 2), 0.5))
            else:
                artifact.write_mask(f"image_{at}", np.ones((4, 4), np.uint8), folder=kind)
    if "weights" in FILES[stage]:
        save_file({"weight": torch.ones(2)}, artifact.directory / "weights.safetensors")
    if finished:
        manifest = {
            "stage": stage,
            "fingerprint": name,
            "experiment": experiment,
            "upstream": dict(upstream or {}),
            "config": dict(config or {"seed": 0}),
            "data": {
                "name": data,
                "sha256": data * 4,
                "classes": ["disc"],
                "splits": {"train": {"images": TRAIN}, "val": {"images": VAL}},
            },
            "wall_seconds": 60,
        }
        artifact.publish(manifest, {STAGES[stage].metric: metric})
    artifact.directory.with_name(f"{name}.lock").touch()
    age(artifact.directory, days)
    return artifact


def age(path: Path, days: float) -> None:
    for each in (*path.rglob("*"), path):
        os.utime(each, (NOW - days * DAY,) * 2, follow_symlinks=False)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(wsss.store.time, "time", lambda: NOW)
    return tmp_path / "artifacts"


@pytest.fixture
def chain(root: Path) -> Path:
    """A classifier, two seeds of it, labels of the first of them, a segmenter of the labels."""
    put(root, "classifier", A)
    put(root, "seeds", A, upstream={"classifier": A}, metric=0.4, config={"cam": {"gamma": 1}})
    put(root, "seeds", B, upstream={"classifier": A}, metric=0.6, config={"cam": {"gamma": 2}})
    put(root, "labels", A, upstream={"seeds": A})
    put(root, "segmenter", A, upstream={"labels": A})
    return root


def names(plan_or_entries: Any) -> list[str]:
    entries = getattr(plan_or_entries, "go", plan_or_entries)
    return [f"{entry.stage}/{entry.name[0]}" for entry in entries]


def kept(root: Path, rule: Rule, **options: bool) -> dict[str, str]:
    return {f"{entry.stage}/{entry.name[0]}": why for entry, why in plan(read_store(root), rule, **options).kept}


def run(*arguments: Any) -> int:
    return main([str(argument) for argument in arguments])


def there(root: Path) -> list[str]:
    return [f"{path.parent.name}/{path.name[0]}" for path in sorted(root.glob("*/*")) if path.is_dir()]


@contextmanager
def held(artifact: Artifact, *, shared: bool = False, part: str = "") -> Iterator[None]:
    """Another living process works on an artifact, alone or as one of several, which leave no word in the file."""
    code = """if True:
        import fcntl, sys
        file = open(sys.argv[1], "a+")
        fcntl.flock(file, fcntl.LOCK_SH if sys.argv[2] else fcntl.LOCK_EX)
        file.write("" if sys.argv[2] else "process 7 on here")
        file.flush()
        print("ready", flush=True)
        sys.stdin.read()
    """
    path = artifact.directory.with_name(f"{artifact.fingerprint}{part}.lock")
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path), "shared" if shared else ""],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield
    finally:
        process.communicate("")
        path.write_text("")


# --- reading ----------------------------------------------------------------------------------------------------------


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


# --- what differs -----------------------------------------------------------------------------------------------------


def test_only_what_differs_is_told() -> None:
    first, second = {"seed": 0, "cam.gamma": 1, "cam.grid": "keep"}, {"seed": 0, "cam.gamma": 2, "cam.grid": "keep"}
    assert differences([first, second]) == [{"cam.gamma": 1}, {"cam.gamma": 2}]
    assert in_common([first, second]) == {"seed": 0, "cam.grid": "keep"}
    assert differences([first, first]) == [{}, {}]
    assert differences([first]) == [{}]
    assert differences([]) == []


def test_settings_of_other_parts_are_not_compared() -> None:
    """Layer-CAM has a gamma and CAM has none: the method says so, and gamma differs among Layer-CAMs alone."""
    cam = {"cam._target_": "w.Cam"}
    layer, other = [{"cam._target_": "w.LayerCam", "cam.gamma": gamma} for gamma in (1, 2)]
    assert differences([cam, layer]) == [{"cam._target_": "w.Cam"}, {"cam._target_": "w.LayerCam"}]
    assert differences([cam, layer, other])[1:] == [
        {"cam._target_": "w.LayerCam", "cam.gamma": gamma} for gamma in (1, 2)
    ]


def test_what_is_not_known_does_not_differ() -> None:
    assert differences([{"cam.gamma": 1, "classifier.encoder": "x"}, {"cam.gamma": 1}]) == [{}, {}]
    assert differences([{"cam.gamma": 1, "cam.grid": "x"}, {"cam.gamma": 1}]) == [{"cam.grid": "x"}, {}]


def test_steps_in_a_list_have_keys() -> None:
    settings = flat({"refiner": {"smoothing": [{"_target_": "w.Pamr", "steps": 3}], "empty": []}})
    assert settings == {"refiner.smoothing.0._target_": "w.Pamr", "refiner.smoothing.0.steps": 3, "refiner.empty": []}
    assert short_keys(settings)["refiner.smoothing.0._target_"] == "smoothing.0"


def test_upstream_settings_count(chain: Path) -> None:
    put(chain, "labels", B, upstream={"seeds": B})
    store = read_store(chain)
    (group,) = grouped(store, [entry for entry in store.entries if entry.stage == "labels"])
    assert {entry.name: dict(differs) for entry, differs in zip(group.entries, group.differs, strict=True)} == {
        A: {"cam.gamma": 1},
        B: {"cam.gamma": 2},
    }
    assert group.common == {"seed": 0}


def test_changes_from_another_configuration() -> None:
    before = {"cam._target_": "w.LayerCam", "cam.gamma": 2, "seed": 0, "loss._target_": "w.Loss"}
    after = {"cam._target_": "w.Lpcam", "cam.clusters": 8, "seed": 0}
    assert changed_settings(before, after) == [("cam._target_", "LayerCam", "Lpcam"), ("cam.clusters", "-", "8")]


def test_the_defaults_differ_in_nothing_from_themselves(finished: Pipeline) -> None:
    store = read_store(Path(finished.config.paths.artifacts))
    entry = store.by_key["labels", finished.fingerprint("labels")]
    chain = [entry, *(store.by_key[key] for key in store.needs(entry))]
    changes = {key for key, _, _ in changed_settings(default_config(chain), whole_config(store, entry))}
    assert "classifier._target_" in changes
    assert "recipe.classifier.epochs" in changes
    assert not any(key.startswith(("seed", "trainer", "data.root")) for key in changes - {"seeds.scales"})


# --- list and show ----------------------------------------------------------------------------------------------------


def test_the_table(chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(chain, "seeds", C, finished=False)
    (chain / "superpixels" / "x").mkdir(parents=True)
    (chain / "superpixels" / "x" / "y.npz").write_bytes(bytes(5000))
    (chain / "seeds" / C / "maps" / "z.npz.1-2.partial").write_bytes(bytes(5000))
    assert run(chain) == 0
    output = capsys.readouterr().out
    assert "seeds on shapes: 2 finished, 1 unfinished" in output
    assert "all: experiment first" in output
    rows = {line.split()[0]: line.split() for line in output.splitlines() if line.strip()}
    assert rows[B][1] == "60.0"
    assert rows[B][-1] == "gamma=2"
    assert rows[B][4:7] == ["30", "d", "0"]
    assert "unfinished: maps 2/2" in output
    assert "superpixels" in rows
    assert "half-written," in rows


@pytest.mark.parametrize(
    ("filters", "wanted"),
    [
        (["--stage", "seeds"], ["seeds/b", "seeds/a"]),
        (["--stage", "seeds", "--stage", "labels", "--unused"], ["seeds/b"]),
        (["--unused"], ["seeds/b", "affinity/d"]),
        (["--unused", "--stage", "segmenter"], ["segmenter/a"]),
        (["--unfinished"], ["affinity/d"]),
        (["--experiment", "second"], ["threshold/c"]),
        (["--data", "elsewhere"], ["threshold/c"]),
        (["--older-than", "29d"], ["classifier/a", "seeds/b", "seeds/a", "labels/a", "segmenter/a"]),
        (["--older-than", "31d"], []),
    ],
)
def test_filters(chain: Path, filters: list[str], wanted: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    put(chain, "threshold", C, experiment="second", data="elsewhere", days=1)
    put(chain, "affinity", D, finished=False, days=2)
    put(chain, "labels", C, upstream={"threshold": C}, days=1)
    put(chain, "segmenter", C, upstream={"labels": C}, days=1)
    wanted = [*wanted, "segmenter/c"] if "segmenter" in filters else wanted
    assert run("list", chain, "--json", "--sort", "metric", *filters) == 0
    content = json.loads(capsys.readouterr().out)
    assert [f"{row['stage']}/{row['fingerprint'][0]}" for row in content["artifacts"]] == wanted


def test_csv_and_json_say_the_same(chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(chain, "--csv") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    store = read_store(chain)
    wanted = records(store, grouped(store, store.entries))
    assert [(row["fingerprint"], row["bytes"]) for row in rows] == [
        (row["fingerprint"], str(row["bytes"])) for row in wanted
    ]
    assert json.loads(rows[2]["differs"]) == wanted[2]["differs"] != {}


def test_show_tells_the_chain(chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(chain / "classifier" / A)
    assert run("show", "labels/a", chain) == 0
    output = capsys.readouterr().out
    assert f"seeds {A}  miou 40.0  1 min 00 s" in output
    assert f"segmenter {A}" in output
    assert f"classifier {A}: not in this store" in output
    assert run("show", "bb", chain, "--against", "seeds/aa") == 0
    assert "cam.gamma: 1 -> 2" in capsys.readouterr().out


def test_a_made_store_is_listed_and_sound(finished: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(finished.config.paths.artifacts)
    assert run("list", root, "--json") == 0
    rows = {row["stage"]: row for row in json.loads(capsys.readouterr().out)["artifacts"]}
    assert [(stage, row["needed_by"]) for stage, row in rows.items()] == [
        ("classifier", 3),
        ("seeds", 2),
        ("labels", 1),
        ("segmenter", 0),
    ]
    assert rows["labels"]["upstream"] == {"seeds": finished.fingerprint("seeds")}
    assert rows["seeds"]["value"] == finished.artifact("seeds").metrics["miou"]
    assert run("verify", root) == 0
    assert "4 artifacts" in capsys.readouterr().out
    assert run("show", finished.fingerprint("segmenter")[:6], root) == 0
    assert "command:" in capsys.readouterr().out


# --- what may go ------------------------------------------------------------------------------------------------------


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


def test_a_lock_taken_since_is_seen(chain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


# --- deleting ---------------------------------------------------------------------------------------------------------


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
        wsss.artifacts.shutil.rmtree = rmtree  # type: ignore[attr-defined, assignment]
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


# --- files of no artifact ---------------------------------------------------------------------------------------------


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


# --- verify -----------------------------------------------------------------------------------------------------------


def test_every_stage_is_sound(chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(chain, "threshold", A, upstream={"classifier": A, "seeds": A})
    put(chain, "affinity", A, upstream={"classifier": A, "seeds": A, "threshold": A})
    put(chain, "relabels", A, upstream={"teacher": A})
    put(chain, "labels", B, finished=False)
    assert run("verify", chain) == 0
    assert "8 artifacts" in capsys.readouterr().out


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


BROKEN: list[tuple[str, str, Callable[[Path], Any], str, bool]] = [
    ("seeds", "maps/image_0.npz", cut, "cannot be read", False),
    ("seeds", "maps/image_0.npz", Path.unlink, "maps holds 1 files for 2 images", True),
    ("labels", "masks/image_0.png", cut, "cannot be read", False),
    ("labels", "masks/image_0.png", lambda path: path.write_bytes(b"x"), "cannot be read", False),
    ("segmenter", "predictions/image_0.png", Path.unlink, "predictions holds 0 files for 1 images", True),
    ("segmenter", "weights.safetensors", cut, "weights.safetensors cannot be read", True),
    ("classifier", "weights.safetensors", Path.unlink, "weights.safetensors cannot be read", True),
    ("classifier", "metrics.json", Path.unlink, "metrics.json cannot be read", True),
    ("classifier", "manifest.json", cut, "Unterminated|Expecting|delimiter", True),
]


@pytest.mark.parametrize(("stage", "file", "spoil", "problem", "quickly"), BROKEN)
def test_verify_finds(
    chain: Path, stage: str, file: str, spoil: Callable[[Path], Any], problem: str, quickly: bool
) -> None:
    spoil(chain / stage / A / file)
    store = read_store(chain)
    (said,) = verify(store, store.by_key[stage, A])
    assert any(word in said for word in problem.split("|"))
    assert bool(verify(store, store.by_key[stage, A], quick=True)) is quickly
    assert run("verify", chain) == 1
    assert run("verify", chain, "--quick") == quickly


def test_verify_finds_values_that_cannot_be(chain: Path) -> None:
    Artifact(chain, "labels", A).write_mask("image_0", np.full((2, 2), 7, np.uint8))
    Artifact(chain, "seeds", A).write_seeds("image_0", Seeds(np.array([3]), np.zeros((1, 2, 2)), (2, 2)))
    save_file({"weight": torch.tensor([1.0, float("nan")])}, chain / "classifier" / A / "weights.safetensors")
    store = read_store(chain)
    assert verify(store, store.by_key["labels", A]) == ["masks/image_0.png holds a label that is not in 0..1 or 255"]
    assert verify(store, store.by_key["seeds", A]) == ["maps/image_0.npz holds scores of a class that is not in 1..1"]
    assert verify(store, store.by_key["classifier", A]) == ["weights.safetensors: weight holds NaN or infinite values"]


def test_verify_finds_that_upstream_is_gone(chain: Path) -> None:
    shutil.rmtree(chain / "seeds" / A)
    store = read_store(chain)
    assert verify(store, store.by_key["labels", A]) == [f"made from seeds {A}, which is not there or not finished"]


def test_pickles_are_not_read(chain: Path) -> None:
    """A file that holds objects is broken here: nothing in it is run."""
    with (chain / "seeds" / A / "maps" / "image_0.npz").open("wb") as file:
        np.savez(file, class_ids=np.array([print], dtype=object), scores=np.zeros((1, 2, 2)), size=np.array([2, 2]))
    store = read_store(chain)
    assert "cannot be read" in verify(store, store.by_key["seeds", A])[0]
