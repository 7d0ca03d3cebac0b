"""A store as data: its directories, and which of them needs which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from wsss.artifacts import Artifact
from wsss.errors import ConfigError
from wsss.stages.segmenter import PREDICTIONS
from wsss.store.layout import OLD, RESULT, SUFFIXES, Key, earlier_than, stage_of
from wsss.store.sizes import Usage, together


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
    def split_sizes(self) -> tuple[int, int] | None:
        """Images of the training and the validation split; None where the manifest does not say."""
        try:
            splits = self.manifest["data"]["splits"]
            return int(splits["train"]["images"]), int(splits["val"]["images"])
        except (KeyError, TypeError, ValueError):
            return None

    @property
    def upstream(self) -> tuple[Key, ...]:
        """What its manifest says it was made from. The teacher is a segmenter."""
        needs = self.manifest.get("upstream")
        if not isinstance(needs, Mapping):
            return ()
        return tuple((stage_of(name), str(fingerprint)) for name, fingerprint in needs.items())

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
            parts = [
                f"{name} {count}{f'/{images[name]}' if name in images else ''}" for name, count in self.counts.items()
            ]
            parts += ["last.ckpt"] if self.checkpoint else []
            return f"unfinished: {', '.join(parts) or 'empty'}{lock}"
        said = "set aside by a forced run" if self.state == "aside" else self.state
        link = " (a symlink)" if self.linked else ""
        return f"{said}{link}{': ' if self.problem else ''}{self.problem}{lock}"


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

    @cached_property
    def usage(self) -> Usage:
        """All files of the entries and the folders."""
        return together([*(entry.usage for entry in self.entries), *self.folders.values()])

    @cached_property
    def worked_on(self) -> Entry | None:
        """The first entry that a living process works on; None where none does."""
        return next((entry for entry in self.entries if entry.held_by), None)

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
            earlier = earlier_than(entry.stage)
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
            if (splits := entry.split_sizes)
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
        found = [entry for entry in found if entry.name == digits] or found
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
