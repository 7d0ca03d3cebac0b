"""What ``show`` tells of one artifact: where it comes from, what was made of it, and how it differs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

from omegaconf import OmegaConf
from rich.text import Text
from rich.tree import Tree

from wsss.console import console, format_cell, format_seconds
from wsss.pipeline import ADDED, NOT_HASHED, STAGES
from wsss.show import composed
from wsss.store.differences import TARGET, changed_settings, flat, whole_config
from wsss.store.entries import Entry, Store
from wsss.store.layout import Key
from wsss.store.printing import format_size, heading, say


def print_one(store: Store, entry: Entry, *, against: Entry | None) -> None:
    """What ``show`` prints: where an artifact comes from, what was made of it, and how it differs."""
    heading(f"{entry.stage} {entry.name}: {entry.words(store.images)}")
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
            say(f"  {name + ':':<12} {value}")
    console.print()
    _print_tree("made from", entry, lambda at: _upstream(store, at))
    chain = [entry, *(store.by_key[key] for key in store.needs(entry))]
    seconds = [other.manifest.get("wall_seconds") for other in chain]
    if len(chain) > 1 and all(isinstance(value, (int, float)) for value in seconds):
        say(f"all of it took {format_seconds(sum(value for value in seconds if value is not None))}")
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
    heading(title if changes else f"{title} nothing")
    for key, before, after in changes:
        change = after if before == "-" else f"{before} -> {'(not set)' if after == '-' else after}"
        say(f"  {key.removesuffix('.' + TARGET)}: {change}")


def default_config(chain: Sequence[Entry]) -> dict[str, Any]:
    """What the stages of ``chain`` read where no option is given, by dotted key."""
    whole: Any = OmegaConf.to_container(composed([])[0], resolve=True, enum_to_str=True)
    found: dict[str, Any] = {}
    for path in dict.fromkeys(path for entry in chain for path in STAGES[entry.stage].reads):
        value = reduce(lambda node, key: node.get(key) if isinstance(node, dict) else None, path.split("."), whole)
        found |= flat(value, path)
    unread = {key for key, value in found.items() if key in NOT_HASHED or (key in ADDED and ADDED[key] == value)}
    return {key: value for key, value in found.items() if key not in unread}


def _data_words(entry: Entry) -> str:
    splits = entry.split_sizes
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
        say(f"{title}: nothing")


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
