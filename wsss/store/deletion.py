"""Which artifacts may go, and deleting them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from wsss.console import format_cell
from wsss.errors import LockTimeout
from wsss.store.entries import Entry, Store
from wsss.store.layout import Key
from wsss.store.printing import count_of, format_age, format_size, heading, print_table
from wsss.store.rules import Rule
from wsss.store.scan import read_entry

RECENT = 600
"""Seconds: what was written to later than that may be in the hands of a process that holds no lock right now."""

JUST_NOW = f"written to in the last {RECENT // 60} minutes (--force-recent)"


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
    running = ""
    if (at := store.worked_on) and not while_running:
        running = f"{at.held_by} works on {at.stage} {at.name} and may read it (--while-running)"
    reasons: dict[Key, str] = {}
    for entry in meant:
        reason = reason_to_stay(store, entry, force_recent=force_recent)
        reasons[entry.key] = reason or (running if entry.state in ("finished", "aside") else "")
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
    # an entry was made from more than anything it was made from
    depth = {key: len(store.needs(store.by_key[key], cautious=True)) for key in go}
    return Plan(
        go=[store.by_key[key] for key in sorted(go, key=lambda key: (-depth[key], *key))],
        kept=[(entry, reasons[entry.key]) for entry in meant if reasons[entry.key]],
    )


def reason_to_stay(store: Store, entry: Entry, *, force_recent: bool) -> str:
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


def print_plan(store: Store, found: Plan) -> None:
    """What would go, and what stays although it is meant."""
    if found.go:
        heading("would go")
        rows = [
            [f"{entry.stage} {entry.name}", format_cell(entry.metric), format_size(entry.usage.freed),
             format_age(store.age(entry)), entry.experiment or "-", entry.words(store.images)]
            for entry in found.go
        ]  # fmt: skip
        print_table(["artifact", "metric", "size", "age", "experiment", "state"], rows)
    if found.kept:
        heading("kept although meant")
        rows = [[f"{entry.stage} {entry.name}", reason] for entry, reason in found.kept]
        if len(rows) > 30:  # a rule that means the whole store: the reasons tell more than the names
            reasons = Counter(reason for _, reason in found.kept)
            rows = [[count_of(count), reason] for reason, count in reasons.most_common()]
        print_table(["artifact", "because"], rows)


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
