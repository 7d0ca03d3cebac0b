"""Files that no artifact needs: half-written ones, training states of what is finished, caches."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import PIL

from wsss.artifacts import PARTIAL, Artifact
from wsss.data.cache import VERSION as DECODER_VERSION
from wsss.errors import LockTimeout
from wsss.store.deletion import JUST_NOW, RECENT, reason_to_stay
from wsss.store.entries import Entry, Store
from wsss.store.layout import CACHES
from wsss.store.printing import format_age, format_size, heading, print_table
from wsss.store.rules import ANY, Rule
from wsss.store.sizes import Usage, usage


@dataclass(frozen=True)
class Leftover:
    """A file or folder that no artifact needs.

    Attributes:
        path: where it lies.
        usage: its files.
        why: what it is.
        owner: the artifact whose lock guards it, if it lies in one.
        kept: why it stays; empty where it may go.
    """

    path: Path
    usage: Usage
    why: str
    owner: Artifact | None = None
    kept: str = ""


def leftovers(
    store: Store,
    *,
    partial: bool = False,
    checkpoints: bool = False,
    caches: bool = False,
    rule: Rule = ANY,
    force_recent: bool = False,
    while_running: bool = False,
) -> list[Leftover]:
    """Files that no artifact needs.

    Args:
        store: as just read.
        partial: half-written files, and images that were decoded by another version of this program or of Pillow.
        checkpoints: training states of finished artifacts.
        caches: all superpixels and decoded images; a run that wants them makes them again.
        rule: checkpoints only of the artifacts that it means; of the others ``stages`` and ``older_than`` alone count.
        force_recent: also what was written a moment ago.
        while_running: also caches while a process works in the store.
    """
    found = []
    if partial:
        for path, files in store.partials.items():
            inside = path.relative_to(store.root).parts
            entry = store.by_key.get((inside[0], inside[1]))
            if rule.stages and inside[0] not in rule.stages:
                continue
            found.append(Leftover(path, files, "half written", entry.owner if entry else None, _writer(path, entry)))
        current = f"v{DECODER_VERSION}-pillow{PIL.__version__}"
        folder = store.root / "decoded"
        for path in sorted(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else ():
            if path.is_dir() and re.fullmatch(r"v\d+-pillow.+", path.name) and path.name != current:
                found.append(Leftover(path, usage(path), "decoded by another version"))
    if checkpoints:
        for entry in rule.select(store):
            if entry.finished and entry.checkpoint:
                path = entry.artifact.checkpoint
                kept = reason_to_stay(store, entry, force_recent=force_recent)
                found.append(Leftover(path, usage(path), "training state, finished", entry.owner, kept))
    if caches:
        found += [Leftover(store.root / name, store.folders[name], "cache") for name in CACHES if name in store.folders]
    running = store.worked_on.held_by if store.worked_on and not while_running else ""
    ages = [store.now - item.usage.newest for item in found]
    return [
        replace(item, kept=item.kept or _reason(item.path, running, recent=age < RECENT and not force_recent))
        for item, age in zip(found, ages, strict=True)
        if rule.older_than is None or age > rule.older_than
    ]


def _reason(path: Path, running: str, *, recent: bool) -> str:
    if path.is_symlink():
        return "it is a symlink"
    if running and path.is_dir():
        return f"{running} works in this store (--while-running)"
    return JUST_NOW if recent else ""


def _writer(path: Path, entry: Entry | None) -> str:
    """Why a half-written file may still be needed: its name tells the process that wrote it."""
    if entry is not None and entry.held_by:
        return f"{entry.held_by} works on it"
    if entry is not None and entry.linked:
        return "it is reached through a symlink"
    match = re.search(rf"\.(\d+)-\d+{re.escape(PARTIAL)}$", path.name)
    if match:
        try:
            os.kill(int(match[1]), 0)
        except (ProcessLookupError, OverflowError):
            return ""
        except PermissionError:
            pass
        return f"process {match[1]}, which wrote it, still runs"
    return ""


def print_leftovers(store: Store, found: Sequence[Leftover]) -> None:
    """What would go, and what stays although it is meant."""
    going, kept = [item for item in found if not item.kept], [item for item in found if item.kept]
    for title, items in (("would go", going), ("kept although meant", kept)):
        if items:
            heading(title)
            rows = [
                [str(item.path.relative_to(store.root)), format_size(item.usage.freed),
                 format_age(store.now - item.usage.newest), item.kept or item.why]
                for item in items
            ]  # fmt: skip
            print_table(["file", "size", "age", "because" if items is kept else "what"], rows)


def delete_leftovers(items: Sequence[Leftover]) -> list[tuple[Leftover, str]]:
    """Delete files and folders, those of an artifact under its lock; returns those that could not go."""
    failed = []
    for item in items:
        try:
            with ExitStack() as stack:
                if item.owner is not None:
                    stack.enter_context(item.owner.locked(timeout=0))
                    if item.path.name == "last.ckpt" and not item.owner.complete:  # it is needed again
                        raise OSError("its artifact is no longer finished")
                if item.path.is_dir():
                    shutil.rmtree(item.path)
                else:
                    item.path.unlink(missing_ok=True)
        except (LockTimeout, OSError) as error:
            failed.append((item, str(error)))
    return failed
