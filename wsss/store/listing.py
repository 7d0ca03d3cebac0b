"""What ``list`` shows: a table for each stage and data set, or the same for machines."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wsss.console import format_cell
from wsss.pipeline import STAGES
from wsss.store.differences import TARGET, differences, in_common, setting_words, short_keys, whole_config
from wsss.store.entries import Entry, Store
from wsss.store.layout import Key
from wsss.store.printing import count_of, format_age, format_size, heading, print_table, say
from wsss.store.sizes import together, usage

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
        configs = [whole_config(store, entry) for entry in group if entry.manifest]
        told = iter(differences(configs))
        differs = [next(told) if entry.manifest else {} for entry in group]
        found.append(Group(stage, data, group, differs, in_common(configs)))
    return found


def print_list(store: Store, groups: Sequence[Group]) -> None:
    """The tables of ``list``, one for each stage and data set, and the totals."""
    hashes: dict[str, set[str]] = {}
    for group in groups:
        hashes.setdefault(group.data[0], set()).add(group.data[1])
    for group in groups:
        name, digest = group.data
        data = f" on {name}{f' ({digest[:6]})' if len(hashes[name]) > 1 else ''}" if name else ""
        states = Counter(entry.state for entry in group.entries)
        tally = [*(f"{count} {state}" for state, count in states.items()), _size_of(group.entries)]
        heading(f"{group.stage}{data}: {', '.join(tally)}")
        _print_group(store, group)
    _print_totals(store, shown=sum(len(group.entries) for group in groups))


def _size_of(entries: Sequence[Entry]) -> str:
    return format_size(together(entry.usage for entry in entries).size)


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
        say(f"all: {', '.join(alike)}")
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
    print_table(heads, rows)


def _is_choice(key: str) -> bool:
    """Whether a key says what a group of options, or a part right below one, is made of."""
    return key.endswith(f".{TARGET}") and key.split(".")[0] in CHOICES and key.count(".") <= CHOICES[key.split(".")[0]]


def _print_totals(store: Store, *, shown: int) -> None:
    rows = []
    for stage in STAGES:
        entries = [entry for entry in store.entries if entry.stage == stage]
        if entries:
            rows.append([stage, count_of(len(entries)), _size_of(entries)])
    rows += [[name, f"{len(found.inodes)} files", format_size(found.size)] for name, found in store.folders.items()]
    if store.partials:
        size = together(store.partials.values()).size
        rows.append(["half-written, in the above", f"{len(store.partials)} files", format_size(size)])
    rows.append(["all", "", format_size(store.usage.size)])
    heading(f"{store.root}: {len(store.entries)} artifacts")
    print_table(["", "holds", "size"], rows)
    if shown < len(store.entries):
        say(f"shown: {shown} of {len(store.entries)} artifacts; the totals are those of all")
    ckpt = together(usage(entry.artifact.checkpoint) for entry in store.entries if entry.finished and entry.checkpoint)
    if ckpt.size:
        states = f"{format_size(ckpt.size)} are training states of finished artifacts"
        say(f"{states}, which nothing reads again: prune --checkpoints")
    shared = sum(entry.usage.size for entry in store.entries) - together(entry.usage for entry in store.entries).size
    if shared:
        say(f"{format_size(shared)} are hard links that several artifacts share: in the totals they count once")


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
    content = {
        "root": str(store.root.absolute()),
        "artifacts": records(store, groups),
        "common": [
            {"stage": group.stage, "data": group.data[0] or None, "settings": dict(group.common)} for group in groups
        ],
        "folders": {name: found.size for name, found in store.folders.items()},
        "partial_files": {str(path.relative_to(store.root)): found.size for path, found in store.partials.items()},
        "bytes": store.usage.size,
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
