"""What tells configurations apart."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from made_store import NOW, A, B, put, put_chain

from wsss.pipeline import Pipeline
from wsss.store import read_store
from wsss.store.details import default_config
from wsss.store.differences import (
    changed_settings,
    differences,
    flat,
    in_common,
    short_keys,
    whole_config,
)
from wsss.store.listing import grouped


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(time, "time", lambda: NOW)
    return put_chain(tmp_path / "artifacts")


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
