"""What every finished artifact holds, whatever its stage."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from importlib.metadata import version
from typing import Any

import pytest
import tiny

from wsss.pipeline import STAGES, Pipeline

FILES = {
    "classifier": {"weights.safetensors", "last.ckpt"},
    "seeds": {f"maps/{id}.npz" for id in tiny.TRAIN},
    "labels": {f"masks/{id}.png" for id in tiny.TRAIN} | {"per_image.json"},
    "segmenter": {"weights.safetensors", "last.ckpt", "per_image.json"} | {f"predictions/{id}.png" for id in tiny.VAL},
}


def floats(value: Any) -> Iterator[float]:
    """All floats of nested JSON."""
    if isinstance(value, float):
        yield value
    elif isinstance(value, dict):
        yield from floats(list(value.values()))
    elif isinstance(value, list):
        for item in value:
            yield from floats(item)


@pytest.mark.parametrize("stage", tiny.STAGES)
def test_the_files_of_an_artifact(stage: str, made: Pipeline):
    """Neither more nor less: no half-written file, nothing pickled beside Lightning's checkpoint."""
    artifact = made.artifact(stage)
    assert set(tiny.files(artifact.directory)) == {"manifest.json", "metrics.json"} | FILES[stage]
    others = [path for path in artifact.directory.rglob("*") if path.is_file() and path.name != "manifest.json"]
    assert (artifact.directory / "manifest.json").stat().st_mtime_ns >= max(path.stat().st_mtime_ns for path in others)


@pytest.mark.parametrize("stage", tiny.STAGES)
def test_the_manifest_records_what_was_run_on_what_and_when(stage: str, made: Pipeline):
    manifest = made.artifact(stage).manifest
    assert manifest["stage"] == stage
    assert manifest["fingerprint"] == made.artifact(stage).directory.name == made.fingerprint(stage)
    assert manifest["version"] == STAGES[stage].version
    assert manifest["experiment"] == made.experiment
    assert manifest["seed"] == made.config.seed
    assert manifest["upstream"] == {need: made.fingerprint(need) for need in made.needs(stage)}
    assert set(manifest["config"]) == set(STAGES[stage].reads)
    assert manifest["config"] == made.read_config(stage)
    assert manifest["supervision"] == "image tags (from masks)"
    assert manifest["command"] == made.command(stage)

    data = manifest["data"]
    assert (data["name"], data["tags"], data["classes"]) == (made.data.name, "masks", list(tiny.CLASSES))
    assert data["root"] == str(made.data.root)
    assert data["splits"] == {"train": {"name": "train", "images": 8}, "val": {"name": "val", "images": 4}}
    assert re.fullmatch("[0-9a-f]{64}", data["sha256"])


@pytest.mark.parametrize("stage", tiny.STAGES)
def test_the_manifest_records_the_circumstances(stage: str, made: Pipeline):
    manifest = made.artifact(stage).manifest
    assert manifest["versions"]["torch"] == version("torch")
    assert all(manifest["versions"].values())
    assert manifest["hardware"]["cores"] >= 1
    assert manifest["hardware"]["machine"]
    assert "gpu" in manifest["hardware"]
    assert manifest["git_commit"] is None or re.fullmatch("[0-9a-f]{40}(-dirty)?", manifest["git_commit"])
    assert datetime.fromisoformat(manifest["created"]).tzinfo is not None
    assert 0 <= manifest["wall_seconds"] < 600


@pytest.mark.parametrize("stage", tiny.STAGES)
def test_every_fraction_is_between_0_and_1(stage: str, made: Pipeline):
    metrics = made.artifact(stage).metrics
    numbers = list(floats(metrics))
    assert len(numbers) >= 3
    assert all(0 <= number <= 1 for number in numbers), metrics
    assert 0 <= metrics[STAGES[stage].metric] <= 1
