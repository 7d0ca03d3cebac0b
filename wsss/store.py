"""``python -m wsss.store``: what lies in the artifact store, what needs what, what may go, and whether it is sound.

    python -m wsss.store                                     a table: size, age, what differs, what is needed
    python -m wsss.store show 53cbf2f250e9                   what one artifact was made from and what was made of it
    python -m wsss.store prune --unfinished --older-than 7d  shows what would go, and asks
    python -m wsss.store verify                              reads every file of every finished artifact

Only manifests, metrics and file sizes are read, but by ``verify``. Nothing but ``prune`` writes.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import io
import itertools
import json
import logging
import os
import re
import shutil
import stat
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from omegaconf import OmegaConf
from PIL import Image
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text
from rich.tree import Tree
from safetensors import SafetensorError, safe_open

from wsss.artifacts import FINGERPRINT_DIGITS, PARTIAL, Artifact, read_json
from wsss.cli import INTERRUPTED, USER_ERROR
from wsss.console import console, format_cell, format_seconds, progress, quiet_libraries, setup_logging
from wsss.data.cache import VERSION as DECODER_VERSION
from wsss.errors import ConfigError, CorruptArtifact, LockTimeout, MissingArtifact, UserError
from wsss.pipeline import ADDED, LEARNT_FROM, NOT_HASHED, STAGES, TEACHER
from wsss.show import composed
from wsss.stages.segmenter import PREDICTIONS
from wsss.types import IGNORE

log = logging.getLogger("wsss.store")  # run as a command, this module is called __main__

UNSOUND = 1
DECLINED = 0
RESULT = "segmenter"
"""The stage whose artifacts are results: that nothing is made of them does not make them unused."""

RECENT = 600
"""Seconds: what was written to later than that may be in the hands of a process that holds no lock right now."""

UNBOUNDED = 10_000
"""More columns than any table has."""

JUST_NOW = f"written to in the last {RECENT // 60} minutes (--force-recent)"
OLD = ".old"
CACHES = ("superpixels", "decoded")
FOLDERS = (*CACHES, "report", "compare")
"""What lies in a store beside the stages."""

FILES = {
    "classifier": ("weights",),
    "seeds": ("maps",),
    "threshold": (),
    "affinity": ("weights", "masks", "boundaries"),
    "labels": ("masks",),
    "relabels": ("masks",),
    "segmenter": ("weights", PREDICTIONS),
}
"""What a finished artifact of each stage holds beside its manifest and metrics: folders with a file for each image."""

SUFFIXES = {"maps": ".npz", "masks": ".png", "boundaries": ".npz", PREDICTIONS: ".png"}
OURS = {
    *SUFFIXES,
    "last.ckpt",
    "manifest.json",
    "metrics.json",
    "per_image.json",
    "weights.safetensors",
    "prototypes.safetensors",
}
"""Every name that a stage writes."""

Key = tuple[str, str]
"""Stage and name of a directory."""


# --- sizes ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Usage:
    """The files below some directories.

    Attributes:
        inodes: (device, inode) -> bytes on disk, links that the file has, links that were found.
        newest: seconds since 1970 of the last change; 0 where there is nothing.
    """

    inodes: Mapping[tuple[int, int], tuple[int, int, int]] = field(default_factory=dict)
    newest: float = 0.0

    @property
    def size(self) -> int:
        """Bytes on disk; a file with several links counts once."""
        return sum(size for size, _, _ in self.inodes.values())

    @property
    def freed(self) -> int:
        """Bytes that come free when these directories go: those of files that have no link elsewhere."""
        return sum(size for size, links, found in self.inodes.values() if found >= links)


def usage(path: Path) -> Usage:
    """The files below ``path``, or that file itself. Symlinks are not followed; what vanishes meanwhile is left out."""
    inodes: dict[tuple[int, int], tuple[int, int, int]] = {}
    newest = 0.0
    for status in _walk(path):
        newest = max(newest, status.st_mtime)
        if not stat.S_ISDIR(status.st_mode):
            at = (status.st_dev, status.st_ino)
            found = inodes.get(at, (0, 0, 0))[2]
            inodes[at] = (status.st_blocks * 512, status.st_nlink, found + 1)
    return Usage(inodes, newest)


def _walk(path: Path | os.DirEntry[str]) -> Iterator[os.stat_result]:
    try:
        status = os.lstat(path)
        yield status
        if stat.S_ISDIR(status.st_mode):
            for entry in os.scandir(path):
                yield from _walk(entry)
    except FileNotFoundError:
        return


def together(parts: Iterable[Usage]) -> Usage:
    """The files of all parts; one that several hold counts once."""
    inodes: dict[tuple[int, int], tuple[int, int, int]] = {}
    newest = 0.0
    for part in parts:
        newest = max(newest, part.newest)
        for at, (size, links, found) in part.inodes.items():
            inodes[at] = (size, links, found + inodes.get(at, (0, 0, 0))[2])
    return Usage(inodes, newest)


def format_size(size: float) -> str:
    """Write bytes with two or three digits.

    >>> format_size(999), format_size(34_500), format_size(2_560_000), format_size(3_400_000_000)
    ('999 B', '34 kB', '2.6 MB', '3.4 GB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if size >= 9.95 or unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def seconds_of(text: str) -> float:
    """Read a duration like ``30m``, ``12h``, ``7d`` or ``2w``.

    >>> seconds_of("12h"), seconds_of("1.5d")
    (43200.0, 129600.0)

    Raises:
        ValueError: it is written in another way.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([mhdw])", text)
    if match is None:
        raise ValueError(f"{text!r} is no duration: write a number and m, h, d or w, as in 12h or 7d")
    return float(match[1]) * UNITS[match[2]]


def format_age(seconds: float) -> str:
    """Write an age in its largest unit.

    >>> format_age(20), format_age(7500), format_age(200_000)
    ('0 min', '2 h', '2 d')
    """
    seconds = max(seconds, 0)
    if seconds < 3600:
        return f"{seconds // 60:.0f} min"
    return f"{seconds // 3600:.0f} h" if seconds < 2 * 86400 else f"{seconds // 86400:.0f} d"


# --- the store --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """One directory of a stage.

    Attributes:
        artifact: where it lies; of what a forced run set aside, ``fingerprint`` ends with ``.old``.
        state: ``finished``, ``unfinished``, ``damaged`` (a manifest that cannot be read or belongs elsewhere),
            ``aside`` (finished, and set aside by a forced run) or ``foreign`` (nothing that a stage wrote).
        manifest: empty where there is none that can be read.
        metric: the stage's number, in [0,1]; None where it was not measured.
        usage: its files.
        counts: how many files its folders hold.
        checkpoint: whether it has a training state.
        held_by: the living process that works on it; empty where none does.
        left_by: the process that ended before it was done.
        linked: reached through a symlink: looked at, never deleted.
        problem: what is wrong with a damaged or foreign one.
    """

    artifact: Artifact
    state: str
    manifest: Mapping[str, Any] = field(default_factory=dict)
    metric: float | None = None
    usage: Usage = field(default_factory=Usage)
    counts: Mapping[str, int] = field(default_factory=dict)
    checkpoint: bool = False
    held_by: str = ""
    left_by: str = ""
    linked: bool = False
    problem: str = ""

    @property
    def stage(self) -> str:
        """The stage."""
        return self.artifact.stage

    @property
    def name(self) -> str:
        """The directory's name: mostly the fingerprint."""
        return self.artifact.fingerprint

    @property
    def key(self) -> Key:
        """What it is found by."""
        return self.stage, self.name

    @property
    def finished(self) -> bool:
        """Whether a run would reuse it."""
        return self.state == "finished"

    @property
    def owner(self) -> Artifact:
        """The artifact whose lock guards this directory."""
        return replace(self.artifact, fingerprint=self.name.removesuffix(OLD))

    @property
    def experiment(self) -> str:
        """Which experiment made it first; empty where that is not known."""
        return str(self.manifest.get("experiment", ""))

    @property
    def data(self) -> Key:
        """Name and hash of its data; empty where they are not known."""
        data = self.manifest.get("data")
        return (str(data.get("name", "")), str(data.get("sha256", ""))) if isinstance(data, Mapping) else ("", "")

    @property
    def upstream(self) -> tuple[Key, ...]:
        """What its manifest says it was made from. The teacher is a segmenter."""
        needs = self.manifest.get("upstream")
        if not isinstance(needs, Mapping):
            return ()
        return tuple((_stage_of(name), str(fingerprint)) for name, fingerprint in needs.items())

    def same_as(self, other: Entry) -> bool:
        """Whether it is the same directory, and nothing in it has changed."""
        mine, theirs = ((entry.key, entry.state, entry.manifest, entry.usage) for entry in (self, other))
        return mine == theirs

    @property
    def tells_upstream(self) -> bool:
        """Whether it says what it was made from."""
        return isinstance(self.manifest.get("upstream"), Mapping)

    @property
    def changed(self) -> float:
        """Seconds since 1970 when it was finished, or last written to."""
        try:
            return datetime.fromisoformat(self.manifest["created"]).timestamp()
        except (KeyError, TypeError, ValueError):
            return self.usage.newest

    def words(self, images: Mapping[str, int]) -> str:
        """Its state in a few words; ``images`` tells how many files its folders will hold, where that is known."""
        lock = f"; {self.held_by} works on it" if self.held_by else f"; {self.left_by} ended" if self.left_by else ""
        if self.state == "unfinished":
            there = [f"{name} {count}{_of(images.get(name))}" for name, count in self.counts.items()]
            parts = [*there, *(["last.ckpt"] if self.checkpoint else [])]
            return f"unfinished: {', '.join(parts) or 'empty'}{lock}"
        said = {"aside": "set aside by a forced run"}.get(self.state, self.state)
        link = " (a symlink)" if self.linked else ""
        return f"{said}{link}{': ' if self.problem else ''}{self.problem}{lock}"


def _stage_of(need: str) -> str:
    return RESULT if need == TEACHER else need


def _of(total: int | None) -> str:
    return "" if total is None else f"/{total}"


@dataclass(frozen=True)
class Store:
    """Everything below one root.

    Attributes:
        root: the folder.
        entries: by stage in the order of the pipeline, then by name.
        folders: what lies beside the stages.
        partials: files that were being written, below the root.
        now: seconds since 1970; ages count from here.
    """

    root: Path
    entries: tuple[Entry, ...]
    folders: Mapping[str, Usage]
    partials: Mapping[Path, Usage]
    now: float

    @cached_property
    def by_key(self) -> dict[Key, Entry]:
        """The entries by stage and directory."""
        return {entry.key: entry for entry in self.entries}

    def resolve(self, key: Key) -> list[Entry]:
        """The directories that stand for a fingerprint: also what was set aside, while nothing has replaced it."""
        stage, name = key
        own, old = self.by_key.get(key), self.by_key.get((stage, name + OLD))
        return [entry for entry in (own, None if own and own.finished else old) if entry is not None]

    def is_finished(self, artifact: Artifact) -> bool:
        """Whether a run would reuse it."""
        entry = self.by_key.get((artifact.stage, artifact.fingerprint))
        return entry is not None and entry.finished

    def made_from(self, entry: Entry, *, cautious: bool = False) -> list[Entry]:
        """What ``entry`` was made from directly.

        With ``cautious``, one whose manifest cannot be read was perhaps made from every finished artifact of the stages
        before.
        """
        if cautious and entry.state == "damaged" and not entry.tells_upstream:
            earlier = _earlier(entry.stage)
            return [other for other in self.entries if other.stage in earlier and other.manifest and other is not entry]
        return [other for need in entry.upstream for other in self.resolve(need)]

    def needs(self, entry: Entry, *, cautious: bool = False) -> set[Key]:
        """Everything that ``entry`` was made from, directly or through others; ``cautious`` as above."""
        found: set[Key] = set()
        left = [entry]
        while left:
            for other in self.made_from(left.pop(), cautious=cautious):
                if other.key not in found:
                    found.add(other.key)
                    left.append(other)
        return found - {entry.key}

    @cached_property
    def needed_by(self) -> dict[Key, set[Key]]:
        """Which finished artifacts need an entry, directly or through others."""
        found: dict[Key, set[Key]] = {entry.key: set() for entry in self.entries}
        for entry in self.entries:
            if entry.finished:
                for key in self.needs(entry):
                    found[key].add(entry.key)
        return found

    def unused(self, entry: Entry) -> bool:
        """Whether no finished artifact needs it, and it is no result itself."""
        return not self.needed_by[entry.key] and not (entry.finished and entry.stage == RESULT)

    @cached_property
    def images(self) -> dict[str, int]:
        """How many files a folder of a stage will hold; nothing where the store holds several data sets."""
        found = {
            (folder, count)
            for entry in self.entries
            if (splits := split_sizes(entry.manifest))
            for folder, count in ((name, splits[name == PREDICTIONS]) for name in SUFFIXES)
        }
        counts = Counter(folder for folder, _ in found)
        return {folder: count for folder, count in found if counts[folder] == 1}

    def age(self, entry: Entry) -> float:
        """Seconds since it was finished or last written to."""
        return self.now - entry.changed

    def find(self, given: str) -> Entry:
        """The entry whose name begins with ``given``; ``stage/digits`` tells stages apart.

        Raises:
            ConfigError: there is none, or several begin like that.
        """
        stage, _, digits = given.rpartition("/")
        found = [
            entry for entry in self.entries if entry.name.startswith(digits) and stage in ("", entry.stage) and digits
        ]
        exact = [entry for entry in found if entry.name == digits]
        found = exact or found
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(f"{entry.stage}/{entry.name}" for entry in found[:6])
            raise ConfigError(
                f"{len(found)} artifacts in {self.root} begin with {given}: {names}"
                f"{', ...' if len(found) > 6 else ''}. Give more digits, or the stage: {found[0].stage}/{given}"
            )
        raise ConfigError(
            f"no artifact in {self.root} begins with {given}. List them: python -m wsss.store {self.root}"
        )


def split_sizes(manifest: Mapping[str, Any]) -> tuple[int, int] | None:
    """Images of the training and the validation split; None where the manifest does not say."""
    try:
        splits = manifest["data"]["splits"]
        return int(splits["train"]["images"]), int(splits["val"]["images"])
    except (KeyError, TypeError, ValueError):
        return None


NAME = re.compile(rf"[0-9a-f]{{{FINGERPRINT_DIGITS}}}(?:{re.escape(OLD)})?")


def read_store(root: Path, *, now: float | None = None) -> Store:
    """Look at everything below ``root``.

    Raises:
        MissingArtifact: there is no such folder, or it is no artifact store.
    """
    if not root.is_dir():
        raise MissingArtifact(f"no folder {root.absolute()}. Give that of the store: python -m wsss.store ROOT")
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
        others = sorted(path.name for path in directory.iterdir() if not _ours(path.name))
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


def _ours(name: str) -> bool:
    return name in OURS or name.endswith(PARTIAL)


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


# --- what differs -----------------------------------------------------------------------------------------------------

TARGET = "_target_"


def flat(value: Any, key: str = "") -> dict[str, Any]:
    """Settings by dotted key; the items of a list that holds more than plain values have their position for a name.

    >>> flat({"cam": {"gamma": 2, "stages": [4]}, "steps": [{"a": 1}]})
    {'cam.gamma': 2, 'cam.stages': [4], 'steps.0.a': 1}
    """
    if isinstance(value, Mapping) and value:
        items: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list) and any(isinstance(item, (Mapping, list)) for item in value):
        items = enumerate(value)
    else:
        return {key: value}
    return {
        name: setting
        for part, item in items
        for name, setting in flat(item, f"{key}.{part}" if key else str(part)).items()
    }


def whole_config(store: Store, entry: Entry) -> dict[str, Any]:
    """What ``entry`` stands for: its own settings and those of all it was made from, by dotted key."""
    chain = [entry, *(store.by_key[key] for key in sorted(store.needs(entry), key=_late_first))]
    return reduce(lambda found, other: flat(other.manifest.get("config", {})) | found, chain, {})


def _late_first(key: Key) -> tuple[int, str]:
    return -list(STAGES).index(key[0]), key[1]


def differences(configs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What tells configurations apart: of each, the settings that others have otherwise.

    The settings of a part are compared among those that have the same part: that a refiner has settings which another
    refiner lacks is said by its name. Whose classifier is unknown is not said to have another one.

    >>> differences([{"seed": 0, "cam.gamma": 1}, {"seed": 0, "cam.gamma": 2}])
    [{'cam.gamma': 1}, {'cam.gamma': 2}]
    """
    seen: dict[tuple[Any, ...], set[str]] = {}
    keys = list(dict.fromkeys(key for config in configs for key in config))
    for config in configs:
        nodes = {_node(key) for key in config}
        for key in keys:
            if _node(key) in nodes:
                seen.setdefault(_part(key, config), set()).add(_text(config[key]) if key in config else "")
    return [
        {key: config[key] for key in keys if key in config and len(seen[_part(key, config)]) > 1} for config in configs
    ]


def in_common(configs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The settings that all configurations have alike.

    >>> in_common([{"seed": 0, "cam.gamma": 1}, {"seed": 0, "cam.gamma": 2}])
    {'seed': 0}
    """
    first, *others = configs or [{}]
    return {
        key: value
        for key, value in first.items()
        if all(key in other and _text(other[key]) == _text(value) for other in others)
    }


def _node(key: str) -> str:
    """The part of the configuration that stages read or leave as a whole."""
    parts = key.split(".")
    return ".".join(parts[: 1 + (parts[0] in ("recipe", "evaluation", "trainer"))])


def _part(key: str, config: Mapping[str, Any]) -> tuple[Any, ...]:
    """The key, and what is constructed at each node above it."""
    nodes = key.removesuffix(f".{TARGET}").split(".")
    return key, *(config.get(".".join((*nodes[:end], TARGET))) for end in range(1, len(nodes)))


def _text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def short_keys(keys: Iterable[str]) -> dict[str, str]:
    """Each key by as many of its last parts as tell it apart; what is constructed goes by the name of its node.

    >>> short_keys(["cam._target_", "cam.gamma", "a.epochs", "b.epochs"])
    {'cam._target_': 'cam', 'cam.gamma': 'gamma', 'a.epochs': 'a.epochs', 'b.epochs': 'b.epochs'}
    """
    parts = {key: key.removesuffix(f".{TARGET}").split(".") for key in keys}
    names = {}
    for key, own in parts.items():
        for length in range(1, len(own) + 1):
            if own[-length].isdigit():
                continue
            if sum(other[-length:] == own[-length:] for other in parts.values()) == 1:
                break
        names[key] = ".".join(own[-length:])
    return names


def setting_words(settings: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Settings as one line: ``cam=LayerCam gamma=2``."""
    return " ".join(f"{names[key]}={_value(key, value)}" for key, value in settings.items())


def _value(key: str, value: Any) -> str:
    text = _text(value)
    return text.rpartition(".")[2] if key.endswith(TARGET) else text


# --- choosing ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """Which entries are meant: those for which all holds that is set.

    Attributes:
        stages: of these stages.
        experiments: made by these experiments.
        data: on data sets of this name.
        fingerprints: their first digits; each must mean one entry.
        older_than: seconds since they were finished or last written to.
        unfinished: without a manifest.
        unused: needed by no finished artifact, and no result themselves.
        keep_best: finished, but not among so many best of their stage and data; what was not measured is not meant.
    """

    stages: tuple[str, ...] = ()
    experiments: tuple[str, ...] = ()
    data: str | None = None
    fingerprints: tuple[str, ...] = ()
    older_than: float | None = None
    unfinished: bool = False
    unused: bool = False
    keep_best: int | None = None

    def select(self, store: Store) -> list[Entry]:
        """The entries that are meant.

        Raises:
            ConfigError: a fingerprint means none or several.
        """
        named = {store.find(given).key for given in self.fingerprints}
        worse = set() if self.keep_best is None else _not_best(store, self.keep_best)
        return [
            entry
            for entry in store.entries
            if (not self.stages or entry.stage in self.stages)
            and (not self.experiments or entry.experiment in self.experiments)
            and (self.data is None or entry.data[0] == self.data)
            and (not named or entry.key in named)
            and (self.older_than is None or store.age(entry) > self.older_than)
            and (not self.unfinished or entry.state == "unfinished")
            and (not self.unused or store.unused(entry) or (entry.stage in self.stages and entry.stage == RESULT))
            and (self.keep_best is None or entry.key in worse)
        ]


def _not_best(store: Store, count: int) -> set[Key]:
    groups: dict[tuple[str, Key], list[Entry]] = {}
    for entry in store.entries:
        if entry.finished and entry.metric is not None:
            groups.setdefault((entry.stage, entry.data), []).append(entry)
    ranked = (sorted(group, key=lambda entry: (-(entry.metric or 0.0), entry.name)) for group in groups.values())
    return {entry.key for group in ranked for entry in group[count:]}


# --- list -------------------------------------------------------------------------------------------------------------

SORTS: dict[str, Callable[[Store, Entry], Any]] = {
    "size": lambda store, entry: -entry.usage.size,
    "age": lambda store, entry: store.age(entry),
    "metric": lambda store, entry: -1.0 if entry.metric is None else -entry.metric,
}
"""How rows are ordered: the largest, the youngest, the best first."""


CHOICES = {"data": 1, "classifier": 1, "cam": 1, "refiner": 2, "segmenter": 1, "loss": 1}
"""Groups of options that are named among what all rows have alike, and how deep."""


@dataclass(frozen=True)
class Group:
    """The rows of one stage and one data set, and what tells them apart.

    Attributes:
        stage: of all rows.
        data: name and hash of the data; empty where it is not known.
        entries: the rows.
        differs: of each row, the settings that others have otherwise.
        common: what all rows have alike.
    """

    stage: str
    data: Key
    entries: Sequence[Entry]
    differs: Sequence[Mapping[str, Any]]
    common: Mapping[str, Any]


def grouped(store: Store, entries: Sequence[Entry], *, sort: str | None = None) -> list[Group]:
    """Rows by stage and data. What is unfinished does not tell its data: it stands with the only data there is."""
    known = {entry.data for entry in store.entries if entry.data != ("", "")}
    only = next(iter(known)) if len(known) == 1 else ("", "")
    rows: dict[tuple[str, Key], list[Entry]] = {}
    for entry in entries:
        rows.setdefault((entry.stage, entry.data if entry.data[0] else only), []).append(entry)
    found = []
    for (stage, data), group in rows.items():
        group.sort(key=lambda entry: (not entry.finished, entry.experiment, entry.changed))
        if sort:
            group.sort(key=lambda entry: SORTS[sort](store, entry))
        configs = [whole_config(store, entry) if entry.manifest else None for entry in group]
        known_configs = [config for config in configs if config is not None]
        told = iter(differences(known_configs))
        differs = [{} if config is None else next(told) for config in configs]
        found.append(Group(stage, data, group, differs, in_common(known_configs)))
    return found


def print_list(store: Store, groups: Sequence[Group]) -> None:
    """The tables of ``list``, one for each stage and data set, and the totals."""
    hashes: dict[str, set[str]] = {}
    for group in groups:
        hashes.setdefault(group.data[0], set()).add(group.data[1])
    for group in groups:
        name, digest = group.data
        data = f" on {name}{f' ({digest[:6]})' if len(hashes[name]) > 1 else ''}" if name else ""
        console.print(Text(f"{group.stage}{data}: {_tally(group.entries)}", style="bold"), soft_wrap=True)
        _print_group(store, group)
    _print_totals(store, [entry for group in groups for entry in group.entries])


def _tally(entries: Sequence[Entry]) -> str:
    states = Counter(entry.state for entry in entries)
    size = format_size(together(entry.usage for entry in entries).size)
    return ", ".join([*(f"{count} {state}" for state, count in states.items()), size])


def _print_group(store: Store, group: Group) -> None:
    names = short_keys(dict.fromkeys(key for settings in group.differs for key in settings))
    experiments = {entry.experiment for entry in group.entries if entry.finished}
    plain = all(entry.words({}) == "finished" for entry in group.entries)
    heads = ["fingerprint", STAGES[group.stage].metric, "size", "age", "needed by"]
    if len(experiments) > 1:
        heads.append("experiment")
    # of the hundreds of settings that all have alike, what was chosen: the parts, and the seed
    chosen = {key: value for key, value in group.common.items() if key in ("seed", "labels") or _is_choice(key)}
    alike = [f"experiment {name}" for name in experiments if name and len(experiments) == 1]
    alike += [setting_words(chosen, short_keys(chosen))] if len(group.entries) > 1 and chosen else []
    if alike:
        _say(f"all: {', '.join(alike)}")
    rows = []
    for entry, settings in zip(group.entries, group.differs, strict=True):
        row = [entry.name, format_cell(entry.metric), format_size(entry.usage.size), format_age(store.age(entry))]
        row.append(str(len(store.needed_by[entry.key])))
        if len(experiments) > 1:
            row.append(entry.experiment or "-")
        words = [] if entry.words({}) == "finished" else [entry.words(store.images)]
        words += [f"{stage} {name} is gone" for stage, name in entry.upstream if not store.resolve((stage, name))]
        words += [setting_words(settings, names)] if settings else []
        rows.append([*row, "; ".join(words) or "-"])
    heads.append("differs in" if plain else "differs in, state")
    _print_table(heads, rows)


def _is_choice(key: str) -> bool:
    """Whether a key says what a group of options, or a part right below one, is made of."""
    return key.endswith(f".{TARGET}") and key.split(".")[0] in CHOICES and key.count(".") <= CHOICES[key.split(".")[0]]


def _print_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table whose last column folds; outside a terminal it is as wide as it needs, unless COLUMNS says otherwise."""
    grid = Table(box=None, pad_edge=False)
    for head in heads:
        right = head in ("size", "age", "needed by", "holds", *(stage.metric for stage in STAGES.values()))
        last = head == heads[-1]
        grid.add_column(head, justify="right" if right else "left", no_wrap=not last, overflow="fold")
    for row in rows:
        grid.add_row(*(Text(cell) for cell in row))
    if console.is_terminal or "COLUMNS" in os.environ:
        width = console.width
    else:
        width = Measurement.get(console, console.options.update(max_width=UNBOUNDED), grid).maximum
    with io.StringIO() as text:
        Console(file=text, width=width, color_system=None).print(grid)
        for line in text.getvalue().splitlines():
            _say(line.rstrip())
    console.print()


def _print_totals(store: Store, shown: Sequence[Entry]) -> None:
    rows = []
    for stage in STAGES:
        entries = [entry for entry in store.entries if entry.stage == stage]
        if entries:
            rows.append(
                [
                    stage,
                    f"{len(entries)} artifact{'s' * (len(entries) != 1)}",
                    format_size(together(entry.usage for entry in entries).size),
                ]
            )
    rows += [[name, f"{len(found.inodes)} files", format_size(found.size)] for name, found in store.folders.items()]
    partials = together(store.partials.values())
    everything = together([*(entry.usage for entry in store.entries), *store.folders.values()])
    if store.partials:
        rows.append(["half-written, in the above", f"{len(store.partials)} files", format_size(partials.size)])
    rows.append(["all", "", format_size(everything.size)])
    console.print(Text(f"{store.root}: {len(store.entries)} artifacts", style="bold"), soft_wrap=True)
    _print_table(["", "holds", "size"], rows)
    if len(shown) < len(store.entries):
        _say(f"shown: {len(shown)} of {len(store.entries)} artifacts; the totals are those of all")
    ckpt = together(usage(entry.artifact.checkpoint) for entry in store.entries if entry.finished and entry.checkpoint)
    if ckpt.size:
        _say(f"{format_size(ckpt.size)} are training states of finished artifacts, which nothing reads again: "
             f"prune --checkpoints")  # fmt: skip
    shared = sum(entry.usage.size for entry in store.entries) - together(e.usage for e in store.entries).size
    if shared:
        _say(f"{format_size(shared)} are hard links that several artifacts share: in the totals they count once")


def _say(text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def records(store: Store, groups: Sequence[Group]) -> list[dict[str, Any]]:
    """The rows of ``list`` for machines: bytes, seconds, fractions, full keys."""
    return [
        {
            "stage": entry.stage,
            "fingerprint": entry.name,
            "state": entry.state,
            "experiment": entry.experiment or None,
            "data": entry.data[0] or None,
            "metric": STAGES[entry.stage].metric,
            "value": entry.metric,
            "bytes": entry.usage.size,
            "age_seconds": round(store.age(entry)),
            "wall_seconds": entry.manifest.get("wall_seconds"),
            "needed_by": len(store.needed_by[entry.key]),
            "upstream": dict(entry.upstream),
            "files": dict(entry.counts),
            "checkpoint": entry.checkpoint,
            "held_by": entry.held_by or None,
            "left_by": entry.left_by or None,
            "problem": entry.problem or None,
            "differs": dict(settings),
        }
        for group in groups
        for entry, settings in zip(group.entries, group.differs, strict=True)
    ]


def to_json(store: Store, groups: Sequence[Group]) -> str:
    """The rows and the totals as JSON."""
    everything = together([*(entry.usage for entry in store.entries), *store.folders.values()])
    content = {
        "root": str(store.root.absolute()),
        "artifacts": records(store, groups),
        "common": [
            {"stage": group.stage, "data": group.data[0] or None, "settings": dict(group.common)} for group in groups
        ],
        "folders": {name: found.size for name, found in store.folders.items()},
        "partial_files": {str(path.relative_to(store.root)): found.size for path, found in store.partials.items()},
        "bytes": everything.size,
    }
    return json.dumps(content, indent=2)


def to_csv(store: Store, groups: Sequence[Group]) -> str:
    """The rows as CSV; what has parts of its own is JSON in its cell."""
    rows = records(store, groups)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["stage", "fingerprint"], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: json.dumps(value) if isinstance(value, dict) else value for key, value in row.items()})
    return text.getvalue().rstrip("\n")


# --- show -------------------------------------------------------------------------------------------------------------


def print_one(store: Store, entry: Entry, *, against: Entry | None) -> None:
    """What ``show`` prints: where an artifact comes from, what was made of it, and how it differs."""
    console.print(Text(f"{entry.stage} {entry.name}: {entry.words(store.images)}", style="bold"), soft_wrap=True)
    facts = {
        "directory": str(entry.artifact.directory),
        "size": format_size(entry.usage.size),
        "created": entry.manifest.get("created"),
        "experiment": entry.experiment,
        "data": _data_words(entry),
        "supervision": entry.manifest.get("supervision"),
        "command": entry.manifest.get("command"),
        "commit": entry.manifest.get("git_commit"),
    }
    for name, value in facts.items():
        if value:
            _say(f"  {name + ':':<12} {value}")
    console.print()
    _print_tree("made from", entry, lambda at: _upstream(store, at))
    chain = [entry, *(store.by_key[key] for key in store.needs(entry))]
    seconds = [other.manifest.get("wall_seconds") for other in chain]
    if len(chain) > 1 and all(isinstance(value, (int, float)) for value in seconds):
        _say(f"all of it took {format_seconds(sum(value for value in seconds if value is not None))}")
    console.print()
    _print_tree("needed by", entry, lambda at: _downstream(store, at))
    console.print()
    if not entry.manifest:
        return
    here = whole_config(store, entry)
    if against is not None:
        title, there = f"differs from {against.stage} {against.name} in", whole_config(store, against)
    else:
        title, there = "differs from the default configuration in", default_config(chain)
    changes = changed_settings(there, here)
    console.print(Text(title if changes else f"{title} nothing", style="bold"), soft_wrap=True)
    for key, before, after in changes:
        change = after if before == "-" else f"{before} -> {'(not set)' if after == '-' else after}"
        _say(f"  {key.removesuffix('.' + TARGET)}: {change}")


def _data_words(entry: Entry) -> str:
    splits = split_sizes(entry.manifest)
    return f"{entry.data[0]}, {splits[0]} + {splits[1]} images" if splits else entry.data[0]


def _upstream(store: Store, entry: Entry) -> list[Entry | str]:
    found: list[Entry | str] = []
    for key in entry.upstream:
        found += store.resolve(key) or [f"{key[0]} {key[1]}: not in this store"]
    return found


def _downstream(store: Store, entry: Entry) -> list[Entry | str]:
    return [other for other in store.entries if any(entry in store.resolve(key) for key in other.upstream)]


def _print_tree(title: str, entry: Entry, after: Callable[[Entry], list[Entry | str]]) -> None:
    root = Tree(Text(title, style="bold"))
    shown: set[Key] = set()

    def grow(tree: Tree, at: Entry) -> None:
        for other in after(at):
            if isinstance(other, str):
                tree.add(Text(other))
            elif other.key in shown:
                tree.add(Text(f"{other.stage} {other.name} (above)"))
            else:
                shown.add(other.key)
                grow(tree.add(Text(_line(other))), other)

    grow(root, entry)
    if root.children:
        console.print(root)
    else:
        _say(f"{title}: nothing")


def _line(entry: Entry) -> str:
    seconds = entry.manifest.get("wall_seconds")
    parts = [
        f"{entry.stage} {entry.name}",
        f"{STAGES[entry.stage].metric} {format_cell(entry.metric)}",
        format_seconds(seconds) if isinstance(seconds, (int, float)) else "",
        format_size(entry.usage.size),
        entry.experiment,
        "" if entry.finished else entry.words({}),
    ]
    return "  ".join(part for part in parts if part)


def default_config(chain: Sequence[Entry]) -> dict[str, Any]:
    """What the stages of ``chain`` read where no option is given, by dotted key."""
    whole: Any = OmegaConf.to_container(composed([])[0], resolve=True, enum_to_str=True)
    found: dict[str, Any] = {}
    for path in dict.fromkeys(path for entry in chain for path in STAGES[entry.stage].reads):
        value = reduce(lambda node, key: node.get(key) if isinstance(node, dict) else None, path.split("."), whole)
        found |= flat(value, path)
    unread = {key for key, value in found.items() if key in NOT_HASHED or (key in ADDED and ADDED[key] == value)}
    return {key: value for key, value in found.items() if key not in unread}


def changed_settings(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Keys whose settings differ, with both; ``-`` where one has none.

    What a part lacks because it is another part altogether is not told: the part is. Nor is what one of them does not
    read at all.

    >>> changed_settings({"cam.gamma": 1, "seed": 0}, {"cam.gamma": 2, "seed": 0})
    [('cam.gamma', '1', '2')]
    """
    found = []
    shared = {_node(key) for key in before} & {_node(key) for key in after}
    for key in dict.fromkeys([*after, *before]):
        texts = [_value(key, config[key]) if key in config else "-" for config in (before, after)]
        same_part = _part(key, before) == _part(key, after)
        if texts[0] != texts[1] and _node(key) in shared and (same_part or key in after):
            found.append((key, texts[0], texts[1]))
    return found


# --- prune ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What a prune deletes, and what it leaves although the rules mean it.

    Attributes:
        go: dependants before what they need.
        kept: with the reason.
    """

    go: Sequence[Entry]
    kept: Sequence[tuple[Entry, str]]


def plan(
    store: Store,
    rule: Rule,
    *,
    force_recent: bool = False,
    while_running: bool = False,
    among: Sequence[Entry] | None = None,
) -> Plan:
    """What ``rule`` means and may go.

    Nothing goes that a finished artifact which stays was made from, that a living process works on, that was written
    to within the last minutes, or that is no artifact. What a running stage reads is in no manifest yet: while one
    runs, everything finished stays.

    Args:
        store: as just read.
        rule: what is meant.
        force_recent: also what was written to a moment ago.
        while_running: also finished artifacts while a process works in the store.
        among: of what is meant, only what is the same as it was here.

    Raises:
        ConfigError: a fingerprint means none or several.
    """
    meant = rule.select(store)
    if among is not None:
        meant = [entry for entry in meant if any(entry.same_as(other) for other in among)]
    reasons: dict[Key, str] = {}
    for entry in meant:
        reason = _own_reason(store, entry, force_recent=force_recent)
        if reason or entry.state not in ("finished", "aside"):
            reasons[entry.key] = reason
        else:
            reasons[entry.key] = "" if while_running else _others_reason(store, entry)
    go = {entry.key for entry in meant if not reasons[entry.key]}
    stay = [entry for entry in store.entries if entry.key not in go]
    while stay:
        entry = stay.pop()
        for other in store.made_from(entry, cautious=True):
            if other.key in go:
                sure = f"{entry.stage} {entry.name} needs it"
                reasons[other.key] = sure if entry.tells_upstream else f"perhaps {sure}: its manifest cannot be read"
                go.discard(other.key)
                stay.append(other)
    return Plan(
        go=sorted((store.by_key[key] for key in go), key=lambda entry: (-_depth(store, entry), *entry.key)),
        kept=[(entry, reasons[entry.key]) for entry in meant if reasons[entry.key]],
    )


def _own_reason(store: Store, entry: Entry, *, force_recent: bool) -> str:
    """Why an entry may not go, whatever the others are."""
    if entry.linked:
        return "it is reached through a symlink"
    if entry.state == "foreign":
        return entry.problem
    if entry.held_by:
        return f"{entry.held_by} works on it"
    if entry.state == "aside" and not store.is_finished(entry.owner):
        return "the forced run that set it aside has not finished, and it is the last result"
    if not force_recent and store.now - entry.usage.newest < RECENT:
        return JUST_NOW
    return ""


def _others_reason(store: Store, entry: Entry) -> str:
    for other in store.entries:
        if other.held_by:
            return f"{other.held_by} works on {other.stage} {other.name} and may read it (--while-running)"
    return ""


def _earlier(stage: str) -> set[str]:
    """The stages that an artifact of ``stage`` can be made from, directly or through others."""
    found: set[str] = set()
    left = [stage]
    while left:
        new = _needs_of(left.pop()) - found
        found |= new
        left += new
    return found


def _needs_of(stage: str) -> set[str]:
    """The stages that an artifact of ``stage`` can be made from directly."""
    needs = itertools.chain(*LEARNT_FROM.values()) if stage == RESULT else STAGES[stage].needs
    return {_stage_of(need) for need in needs}


def _depth(store: Store, entry: Entry) -> int:
    """How many entries it was made from: more than any of those."""
    return len(store.needs(entry, cautious=True))


def print_plan(store: Store, found: Plan) -> None:
    """What would go, and what stays although it is meant."""
    if found.go:
        console.print(Text("would go", style="bold"))
        rows = [
            [f"{entry.stage} {entry.name}", format_cell(entry.metric), format_size(entry.usage.freed),
             format_age(store.age(entry)), entry.experiment or "-", entry.words(store.images)]
            for entry in found.go
        ]  # fmt: skip
        _print_table(["artifact", "miou", "size", "age", "experiment", "state"], rows)
    if found.kept:
        console.print(Text("kept although meant", style="bold"))
        reasons = Counter(reason for _, reason in found.kept)
        rows = [[f"{entry.stage} {entry.name}", reason] for entry, reason in found.kept]
        if len(rows) > 30:  # a rule that means the whole store: the reasons tell more than the names
            rows = [[f"{count} artifact{'s' * (count != 1)}", reason] for reason, count in reasons.most_common()]
        _print_table(["artifact", "because"], rows)


def delete(store: Store, entries: Sequence[Entry]) -> list[tuple[Entry, str]]:
    """Delete entries in this order, each under its lock; returns those that could not go, with the reason.

    What such a one was made from stays as well.
    """
    failed: list[tuple[Entry, str]] = []
    blocked: dict[Key, Entry] = {}
    for entry in entries:
        if entry.key in blocked:
            other = blocked[entry.key]
            failed.append((entry, f"{other.stage} {other.name} stays and needs it"))
            continue
        reason = _delete(entry)
        if reason:
            failed.append((entry, reason))
            blocked |= dict.fromkeys(store.needs(entry, cautious=True), entry)
    return failed


def _delete(entry: Entry) -> str:
    try:
        with entry.owner.locked(timeout=0):
            if not read_entry(entry.artifact).same_as(entry):
                return "it has changed since it was looked at"
            # the lock file stays: a process that waits for it would hold a lock on a file that nobody else finds
            entry.artifact.remove()
    except LockTimeout as error:
        return str(error)
    except OSError as error:
        return f"it cannot be deleted ({error})"
    return ""


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
    rule: Rule = Rule(),
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
                kept = _own_reason(store, entry, force_recent=force_recent)
                found.append(Leftover(path, usage(path), "training state, finished", entry.owner, kept))
    if caches:
        found += [Leftover(store.root / name, store.folders[name], "cache") for name in CACHES if name in store.folders]
    running = next((entry.held_by for entry in store.entries if entry.held_by), "")
    return [_settle(store, item, rule, running if not while_running else "", force_recent) for item in found if
            rule.older_than is None or store.now - item.usage.newest > rule.older_than]  # fmt: skip


def _settle(store: Store, item: Leftover, rule: Rule, running: str, force_recent: bool) -> Leftover:
    age = store.now - item.usage.newest
    if item.kept:
        return item
    if item.path.is_symlink():
        return replace(item, kept="it is a symlink")
    if running and item.path.is_dir():
        return replace(item, kept=f"{running} works in this store (--while-running)")
    if age < RECENT and not force_recent:
        return replace(item, kept=JUST_NOW)
    return item


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
            console.print(Text(title, style="bold"))
            rows = [
                [str(item.path.relative_to(store.root)), format_size(item.usage.freed),
                 format_age(store.now - item.usage.newest), item.kept or item.why]
                for item in items
            ]  # fmt: skip
            _print_table(["file", "size", "age", "because" if items is kept else "what"], rows)


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


def prune(options: argparse.Namespace) -> int:
    """The body of ``prune``; returns the exit code.

    Raises:
        ConfigError: no rule is given, rules contradict each other, or there is nobody to ask.
        MissingArtifact: the root is no store.
    """
    rule = _rule(options)
    files = options.partial or options.checkpoints or options.caches
    _check_rules(rule, options, files=files)
    allowed = {"force_recent": options.force_recent, "while_running": options.while_running}
    kinds = {name: getattr(options, name) for name in ("partial", "checkpoints", "caches")}

    def look(among: Sequence[Entry] | None = None) -> tuple[Store, Plan, list[Leftover]]:
        store = read_store(options.root)
        if files:
            return store, Plan((), ()), leftovers(store, **kinds, rule=rule, **allowed)
        return store, plan(store, rule, **allowed, among=among), []

    store, found, rest = look()
    print_plan(store, found)
    print_leftovers(store, rest)
    going = [item for item in rest if not item.kept]
    count = len(found.go) + len(going)
    if not count:
        _say("nothing to delete")
        return 0
    whole = together([*(entry.usage for entry in found.go), *(item.usage for item in going)])
    noun = ("file or folder" if count == 1 else "files and folders") if files else f"artifact{'s' * (count != 1)}"
    amount = f"{count} {noun}, {format_size(whole.freed)}"
    if whole.size > whole.freed:
        _say(f"{format_size(whole.size - whole.freed)} of them are hard-linked from elsewhere and stay on the disk")
    if options.dry_run:
        _say(f"dry run: {amount} would be deleted")
        return 0
    if not options.yes:
        if not sys.stdin.isatty():
            raise ConfigError(f"nobody to ask whether to delete {amount}. Add --yes to delete, --dry-run to look")
        if not _ask(f"Delete {amount}? [y/N] "):
            _say("nothing deleted")
            return DECLINED
        # the answer may have taken hours
        store, again, rest_again = look(among=found.go)
        for entry in found.go:
            if entry.key not in {other.key for other in again.go}:
                log.warning("%s %s stays: things have changed since you were asked", entry.stage, entry.name)
        paths = {item.path for item in going}
        found, going = again, [item for item in rest_again if item.path in paths and not item.kept]
    failed = [(f"{entry.stage} {entry.name}", why) for entry, why in delete(store, found.go)]
    failed += [(str(item.path), why) for item, why in delete_leftovers(going)]
    for name, why in failed:
        log.error("%s is still there: %s", name, why)
    _say(f"deleted {len(found.go) + len(going) - len(failed)} of {count}")
    return UNSOUND if failed else 0


def _check_rules(rule: Rule, options: argparse.Namespace, *, files: bool) -> None:
    if not files and rule == Rule():
        raise ConfigError(
            "say what may go: --unfinished, --unused, --keep-best N, --older-than 7d, --stage, --experiment, --data, "
            "--fingerprint, or --partial, --checkpoints, --caches. Several together mean what all of them mean"
        )
    if rule.unfinished and (rule.keep_best is not None or rule.experiments or rule.data is not None):
        raise ConfigError(
            "--unfinished means artifacts without a manifest, which tell neither experiment nor data nor a number: it "
            "goes with --stage, --older-than, --unused and --fingerprint"
        )
    of_artifacts = replace(rule, stages=(), older_than=None) != Rule()
    if (options.partial or options.caches) and of_artifacts:
        raise ConfigError("--partial and --caches mean files of no artifact: they go with --stage and --older-than")
    if options.caches and rule.stages:
        raise ConfigError("--caches means superpixels and decoded images, which belong to no stage: leave out --stage")


def _ask(question: str) -> bool:
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        return False


# --- verify -----------------------------------------------------------------------------------------------------------


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
        if need not in _needs_of(entry.stage):
            found.append(f"made from {need}, which is nothing that {entry.stage} reads")
        elif not any(other.state in ("finished", "aside") for other in store.resolve((need, name))):
            found.append(f"made from {need} {name}, which is not there or not finished")
    try:
        metrics = artifact.metrics
        if not isinstance(metrics, dict):
            found.append("metrics.json is no JSON object")
    except CorruptArtifact as error:
        found.append(_first(error))
    splits = split_sizes(entry.manifest)
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
        id = path.relative_to(place).with_suffix("").as_posix()
        # with_suffix takes one suffix off: an id may hold dots
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
    """The body of ``verify``: tell what is wrong; returns the exit code."""
    looked = [entry for entry in entries if entry.state in ("finished", "damaged", "aside")]
    wrong = 0
    problems = []
    for entry in progress(looked, "verify", unit="artifacts"):
        problems.append((entry, verify(store, entry, quick=quick)))
    for entry, said in problems:
        for text in said[:10]:
            log.error("%s %s: %s", entry.stage, entry.name, text)
        if len(said) > 10:
            log.error("%s %s: and %d more", entry.stage, entry.name, len(said) - 10)
        wrong += bool(said)
    how = "counts and headers alone" if quick else "every file read"
    if wrong:
        _say(f"{wrong} of {len(looked)} artifacts in {store.root} are NOT sound ({how}).")
        _say("What is broken: delete its directory and run its stage again. What lacks its upstream can still be used")
        return UNSOUND
    _say(f"{len(looked)} artifacts in {store.root} are sound ({how})")
    return 0


# --- the command ------------------------------------------------------------------------------------------------------

COMMANDS = ("list", "show", "prune", "verify")


def main(arguments: Sequence[str] | None = None) -> int:
    """The body of ``python -m wsss.store``; returns the exit code."""
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    setup_logging()
    quiet_libraries()
    try:
        return _run(options)
    except UserError as error:
        log.error("%s: %s", type(error).__name__, error)
        return USER_ERROR
    except PermissionError as error:
        log.error("this store is not yours to read: %s", error)
        return USER_ERROR
    except KeyboardInterrupt:
        log.warning("interrupted")
        return INTERRUPTED


def _run(options: argparse.Namespace) -> int:
    if options.command == "prune":
        return prune(options)
    store = read_store(options.root)
    if options.command == "show":
        against = store.find(options.against) if options.against else None
        print_one(store, store.find(options.fingerprint), against=against)
        return 0
    entries = _rule(options).select(store)
    if options.command == "verify":
        return verify_all(store, entries, quick=options.quick)
    groups = grouped(store, entries, sort=options.sort)
    if options.json or options.csv:
        console.out((to_json if options.json else to_csv)(store, groups), highlight=False)
    else:
        print_list(store, groups)
    return 0


def _rule(options: argparse.Namespace) -> Rule:
    given = vars(options)
    return Rule(
        stages=tuple(given.get("stage") or ()),
        experiments=tuple(given.get("experiment") or ()),
        data=given.get("data"),
        fingerprints=tuple(given.get("fingerprints") or ()),
        older_than=given.get("older_than"),
        unfinished=given.get("unfinished", False),
        unused=given.get("unused", False),
        keep_best=given.get("keep_best"),
    )


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    arguments = list(arguments)
    asks_help = bool(arguments) and arguments[0] in ("-h", "--help")
    if not asks_help and (not arguments or arguments[0] not in COMMANDS):
        arguments.insert(0, "list")
    parser = argparse.ArgumentParser(
        prog="python -m wsss.store",
        description="The artifact store: list it (also without a command), show one artifact with all it was made "
        "from, prune by rule, verify every file. Exit code 0: done; 1: verify found something, or something could not "
        "be deleted; 2: the arguments or the folder cannot be used.",
        epilog="ROOT is the folder of paths.artifacts; default: artifacts. A command's own options: "
        "python -m wsss.store prune --help",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", metavar="{list,show,prune,verify}")
    listing = commands.add_parser("list", help="a table of each stage", allow_abbrev=False)
    _add_root(listing)
    _add_filters(listing)
    listing.add_argument("--sort", choices=SORTS, help="largest, youngest or best first; default: by experiment")
    machine = listing.add_mutually_exclusive_group()
    machine.add_argument("--json", action="store_true", help="everything, for machines")
    machine.add_argument("--csv", action="store_true", help="a line for each artifact")
    show = commands.add_parser("show", help="one artifact: its chain, command and configuration", allow_abbrev=False)
    show.add_argument("fingerprint", metavar="FINGERPRINT", help="its first digits, or stage/digits")
    _add_root(show)
    show.add_argument("--against", metavar="FINGERPRINT", help="compare with this one; default: the default options")
    pruning = commands.add_parser(
        "prune",
        help="delete by rule, after asking",
        description="Delete the artifacts for which all given rules hold. Never goes: what a finished artifact that "
        "stays was made from, what a living process works on, what was just written to, what is no artifact.",
        allow_abbrev=False,
    )
    _add_root(pruning)
    _add_filters(pruning)
    pruning.add_argument("--keep-best", type=_whole, metavar="N", help="all but the N best of each stage and data set")
    pruning.add_argument("--fingerprint", nargs="+", default=[], metavar="FP", dest="fingerprints", help="first digits")
    pruning.add_argument(
        "--partial",
        action="store_true",
        help="instead of artifacts: half-written files, images decoded by old versions",
    )
    pruning.add_argument(
        "--checkpoints", action="store_true", help="instead of artifacts: training states of those that are finished"
    )
    pruning.add_argument(
        "--caches", action="store_true", help="instead of artifacts: all superpixels and decoded images"
    )
    pruning.add_argument("--force-recent", action="store_true", help="also what was written to in the last 10 minutes")
    pruning.add_argument(
        "--while-running", action="store_true", help="also finished artifacts while a process works in this store"
    )
    pruning.add_argument("--dry-run", action="store_true", help="show what would go")
    pruning.add_argument("-y", "--yes", action="store_true", help="do not ask")
    verifying = commands.add_parser("verify", help="read every file of every finished artifact", allow_abbrev=False)
    _add_root(verifying)
    _add_filters(verifying, few=True)
    verifying.add_argument("--quick", action="store_true", help="count files and read headers; decode nothing")
    options = parser.parse_args(arguments)
    if options.command == "prune":  # a folder that follows --fingerprint is taken for one
        folders = [given for given in options.fingerprints if not re.fullmatch(r"(\w+/)?[0-9a-f]+(\.old)?", given)]
        if len(folders) > 1 or (folders and options.root is not None):
            parser.error(f"{folders[0]} is no fingerprint")
        options.fingerprints = [given for given in options.fingerprints if given not in folders]
        options.root = Path(folders[0]) if folders else options.root
    options.root = options.root or Path("artifacts")
    return options


def _add_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", nargs="?", type=Path, metavar="ROOT", help="the store; default: artifacts")


def _add_filters(parser: argparse.ArgumentParser, *, few: bool = False) -> None:
    parser.add_argument(
        "--stage", action="append", choices=STAGES, metavar="NAME", help=f"{', '.join(STAGES)}; may be repeated"
    )
    parser.add_argument(
        "--experiment", action="append", metavar="NAME", help="made by this experiment; may be repeated"
    )
    parser.add_argument("--data", metavar="NAME", help="on the data set of this name")
    if few:
        return
    parser.add_argument("--unfinished", action="store_true", help="without a manifest: killed, or still running")
    parser.add_argument(
        "--unused",
        action="store_true",
        help="needed by no finished artifact; segmenters are results and only count with --stage segmenter",
    )
    parser.add_argument("--older-than", type=_duration, metavar="AGE", help="30m, 12h, 7d, 2w")


def _duration(text: str) -> float:
    try:
        return seconds_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} must be a whole number, 0 or more")
    return int(text)


if __name__ == "__main__":
    raise SystemExit(main())


__all__ = [
    "Entry",
    "Plan",
    "Rule",
    "Store",
    "delete",
    "differences",
    "leftovers",
    "main",
    "plan",
    "prune",
    "read_store",
    "usage",
    "verify",
]
