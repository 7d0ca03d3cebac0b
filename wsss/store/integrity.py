"""``verify``: whether what artifacts hold can be read, is complete, and is what it can be."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors import SafetensorError, safe_open

from wsss.artifacts import read_json
from wsss.console import progress
from wsss.errors import CorruptArtifact
from wsss.stages.segmenter import PREDICTIONS
from wsss.store.entries import Entry, Store
from wsss.store.layout import FILES, SUFFIXES, needs_of
from wsss.store.printing import say
from wsss.types import IGNORE

log = logging.getLogger(__name__)


def verify(store: Store, entry: Entry, *, quick: bool = False) -> list[str]:
    """What is wrong with a finished or damaged artifact, in words; empty where nothing is.

    Args:
        store: what lies around it.
        entry: what to look at.
        quick: count files and read headers, but decode nothing.
    """
    if entry.state == "damaged":
        return [entry.problem]
    artifact, found = entry.artifact, []
    for need, name in entry.upstream:
        if need not in needs_of(entry.stage):
            found.append(f"made from {need}, which is nothing that {entry.stage} reads")
        elif not any(other.state in ("finished", "aside") for other in store.resolve((need, name))):
            found.append(f"made from {need} {name}, which is not there or not finished")
    try:
        if not isinstance(artifact.metrics, dict):
            found.append("metrics.json is no JSON object")
    except CorruptArtifact as error:
        found.append(_first(error))
    splits = entry.split_sizes
    if splits is None:
        found.append("the manifest does not say how many images the splits have")
    for name in FILES[entry.stage]:
        if name in SUFFIXES:
            wanted = splits[name == PREDICTIONS] if splits else None
            count = entry.counts.get(name, 0)
            if wanted is not None and count != wanted:
                found.append(f"{name} holds {count} files for {wanted} images")
            found += [] if quick else _broken(entry, name)
        else:
            found += _tensors(artifact.directory / f"{name}.safetensors", quick=quick)
    if (artifact.directory / "prototypes.safetensors").exists():
        found += _tensors(artifact.directory / "prototypes.safetensors", quick=quick)
    if (artifact.directory / "per_image.json").exists():
        try:
            read_json(artifact.directory / "per_image.json")
        except CorruptArtifact as error:
            found.append(_first(error))
    return found


def _first(error: Exception) -> str:
    """What an error says, without the remedy, which is told once at the end."""
    return str(error).partition(". Delete ")[0]


def _tensors(path: Path, *, quick: bool) -> list[str]:
    try:
        with safe_open(path, framework="numpy") as file:  # reads the header, which must fit the length of the file
            names = list(file.keys())
            for name in [] if quick else names:
                values = file.get_tensor(name)
                if values.dtype.kind == "f" and not np.isfinite(values).all():
                    return [f"{path.name}: {name} holds NaN or infinite values"]
    except (OSError, SafetensorError, TypeError, ValueError) as error:
        return [f"{path.name} cannot be read ({error})"]
    return [] if names else [f"{path.name} holds no tensor"]


def _broken(entry: Entry, folder: str) -> list[str]:
    """The files of a folder that cannot be read or hold what cannot be."""
    artifact, place = entry.artifact, entry.artifact.directory / folder
    classes = len(entry.manifest["data"].get("classes", ())) or None
    found = []
    for path in sorted(place.rglob(f"*{SUFFIXES[folder]}")):
        id = path.relative_to(place).with_suffix("").as_posix()  # takes one suffix off: an id may hold dots
        try:
            if folder == "maps":
                seeds = artifact.read_seeds(id)
                if classes and not set(seeds.class_ids.tolist()) <= set(range(1, classes + 1)):
                    found.append(f"maps/{path.name} holds scores of a class that is not in 1..{classes}")
            elif folder == "boundaries":
                artifact.read_boundaries(id)
            else:
                with Image.open(path) as image:
                    image.verify()  # reads checksums and the end of the file, which decoding can do without
                labels = artifact.read_mask(id, folder=folder)
                if labels.dtype != np.uint8 or labels.ndim != 2:
                    found.append(f"{folder}/{path.name} is no mask (H, W) of 8 bits")
                elif classes and ((labels > classes) & (labels != IGNORE)).any():
                    found.append(f"{folder}/{path.name} holds a label that is not in 0..{classes} or {IGNORE}")
        except CorruptArtifact as error:
            found.append(_first(error))
        except (OSError, SyntaxError, ValueError) as error:
            found.append(f"{folder}/{path.name} cannot be read ({error})")
    return found


def verify_all(store: Store, entries: Sequence[Entry], *, quick: bool) -> int:
    """The body of ``verify``: tell what is wrong; returns the exit code, 1 where something is."""
    looked = [entry for entry in entries if entry.state in ("finished", "damaged", "aside")]
    problems = [(entry, verify(store, entry, quick=quick)) for entry in progress(looked, "verify", unit="artifacts")]
    for entry, said in problems:
        for text in said[:10]:
            log.error("%s %s: %s", entry.stage, entry.name, text)
        if len(said) > 10:
            log.error("%s %s: and %d more", entry.stage, entry.name, len(said) - 10)
    wrong = sum(bool(said) for _, said in problems)
    how = "counts and headers alone" if quick else "every file read"
    if wrong:
        say(f"{wrong} of {len(looked)} artifacts in {store.root} are NOT sound ({how}).")
        say("What is broken: delete its directory and run its stage again. What lacks its upstream can still be used")
        return 1
    say(f"{len(looked)} artifacts in {store.root} are sound ({how})")
    return 0
