"""What verify finds."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_store import NOW, A, B, put, put_chain, run
from safetensors.torch import save_file

from wsss.artifacts import Artifact, Seeds
from wsss.store import read_store, verify


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(time, "time", lambda: NOW)
    return put_chain(tmp_path / "artifacts")


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
