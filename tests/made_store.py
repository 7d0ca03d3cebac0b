"""A small store, and what tests of it ask: which artifacts are there, what a rule means, who holds a lock."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from wsss.artifacts import Artifact, Seeds
from wsss.pipeline import STAGES
from wsss.store import Rule, plan, read_store
from wsss.store.cli import main
from wsss.store.layout import FILES

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


def put_chain(root: Path) -> Path:
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
