"""Reading a store: manifests, metrics, file sizes and locks. Nothing is written."""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from wsss.artifacts import FINGERPRINT_DIGITS, PARTIAL, Artifact
from wsss.errors import CorruptArtifact, MissingArtifact
from wsss.pipeline import STAGES
from wsss.store.entries import Entry, Store
from wsss.store.layout import FOLDERS, OLD, OURS, SUFFIXES
from wsss.store.sizes import Usage, usage

NAME = re.compile(rf"[0-9a-f]{{{FINGERPRINT_DIGITS}}}(?:{re.escape(OLD)})?")


def read_store(root: Path, *, now: float | None = None) -> Store:
    """Look at everything below ``root``.

    Raises:
        MissingArtifact: there is no such folder, or it is no artifact store.
    """
    if not root.is_dir():
        raise MissingArtifact(
            f"no folder {root.absolute()}. Give that of the store: python -m wsss.store ROOT, or one of the commands "
            f"list, show, prune, verify"
        )
    entries = [entry for stage in STAGES for entry in _entries(root, stage)]
    if not any(entry.state != "foreign" for entry in entries):
        raise MissingArtifact(
            f"{root.absolute()} is no artifact store: it holds no <stage>/<fingerprint> with <stage> one of "
            f"{', '.join(STAGES)}. Give the folder of paths.artifacts: python -m wsss.store ROOT"
        )
    folders = {name: usage(root / name) for name in FOLDERS if (root / name).is_dir()}
    partials = {path: usage(path) for path in sorted(_partials(root))}
    return Store(root, tuple(entries), folders, partials, time.time() if now is None else now)


def _entries(root: Path, stage: str) -> Iterator[Entry]:
    folder = root / stage
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if NAME.fullmatch(path.name) and path.is_dir():
                yield read_entry(Artifact(root, stage, path.name))


def _partials(root: Path) -> Iterator[Path]:
    for name in (*STAGES, *FOLDERS):
        for directory, _, files in os.walk(root / name) if not (root / name).is_symlink() else ():
            yield from (Path(directory) / file for file in files if file.endswith(PARTIAL))


def read_entry(artifact: Artifact) -> Entry:
    """Look at one directory of a stage."""
    directory = artifact.directory
    linked = directory.is_symlink() or directory.parent.is_symlink()
    entry = Entry(
        artifact,
        "unfinished",
        usage=Usage() if linked else usage(directory),
        counts={name: _count(directory / name) for name in SUFFIXES if (directory / name).is_dir()},
        checkpoint=artifact.checkpoint.is_file(),
        linked=linked,
    )
    held_by, left_by = lock_of(entry.owner)
    entry = replace(entry, held_by=held_by, left_by=left_by)
    if not artifact.complete:
        written = (path.name for path in directory.iterdir())
        others = sorted(name for name in written if name not in OURS and not name.endswith(PARTIAL))
        if others:
            return replace(entry, state="foreign", problem=f"no artifact: no manifest, but {others[0]}")
        return entry
    try:
        manifest = artifact.manifest
    except CorruptArtifact as error:
        return replace(entry, state="damaged", problem=str(error.__cause__ or error))
    problem = _misfit(manifest, artifact)
    manifest = manifest if isinstance(manifest, dict) else {}
    if problem:
        return replace(entry, state="damaged", manifest=manifest, problem=problem)
    state = "aside" if artifact.fingerprint.endswith(OLD) else "finished"
    return replace(entry, state=state, manifest=manifest, metric=_metric(artifact))


def _count(folder: Path) -> int:
    suffix = SUFFIXES[folder.name]
    return sum(name.endswith(suffix) for _, _, names in os.walk(folder) for name in names)


def _misfit(manifest: Any, artifact: Artifact) -> str:
    """Why a manifest is not that of its directory; empty where it is."""
    if not isinstance(manifest, dict):
        return "the manifest is no JSON object"
    lacks = [key for key in ("stage", "fingerprint", "upstream", "config", "data") if key not in manifest]
    if lacks:
        return f"the manifest lacks {', '.join(lacks)}"
    for key in ("upstream", "config", "data"):
        if not isinstance(manifest[key], dict):
            return f"{key} in the manifest is no JSON object"
    there = (manifest["stage"], manifest["fingerprint"])
    name = artifact.fingerprint.removesuffix(OLD)
    return "" if there == (artifact.stage, name) else f"its manifest is that of {there[0]}/{there[1]}"


def _metric(artifact: Artifact) -> float | None:
    try:
        value = artifact.metrics.get(STAGES[artifact.stage].metric)
    except (CorruptArtifact, AttributeError):  # told by verify
        return None
    return float(value) if isinstance(value, (int, float)) else None


def lock_of(artifact: Artifact) -> tuple[str, str]:
    """Who works on an artifact or a part of it, and who ended before it was done; empty where nobody."""
    folder, left_by = artifact.directory.parent, ""
    for path in [folder / f"{artifact.fingerprint}.lock", *sorted(folder.glob(f"{artifact.fingerprint}.*.lock"))]:
        try:
            held, words = _try_lock(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            return f"perhaps a process ({path} cannot be locked: {error})", ""
        if held:
            return words or "another process", ""
        left_by = left_by or words
    return "", left_by


def _try_lock(path: Path) -> tuple[bool, str]:
    """Whether a living process holds a lock, alone or with others, and what the file says.

    The lock is taken and given back at once. A process that asks for it in this very moment asks again a second later.
    """
    try:
        file = path.open("r+", encoding="utf-8")  # network disks give an exclusive lock only to who may write
    except PermissionError:
        file = path.open(encoding="utf-8")
    with file:
        words = file.read().strip()
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True, words
        return False, words
