"""The store seen from outside: tables, filters, one artifact."""

from __future__ import annotations

import csv
import io
import json
import shutil
import time
from pathlib import Path

import pytest
from made_store import NOW, A, B, C, D, put, put_chain, run

from wsss.pipeline import Pipeline
from wsss.store import read_store
from wsss.store.listing import grouped, records


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(time, "time", lambda: NOW)
    return put_chain(tmp_path / "artifacts")


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


def test_that_nothing_is_of_a_kind_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put_chain(tmp_path)
    for arguments in (
        ("list", "--experiment", "nope"),
        ("verify", "--stage", "affinity"),
        ("verify", "--data", "nope"),
    ):
        assert run(arguments[0], tmp_path, *arguments[1:]) == 0
        assert "is of that kind" in capsys.readouterr().out
    assert run("list", tmp_path, "--experiment", "nope", "--json") == 0
    assert "of that kind" not in capsys.readouterr().out
