"""``prune``: show what would go, ask, look again, delete."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace

from wsss.errors import ConfigError
from wsss.report.index import FOLDER, INDEX, write_index
from wsss.store.deletion import Plan, delete, plan, print_plan
from wsss.store.entries import Entry, Store
from wsss.store.layout import RESULT
from wsss.store.leftovers import Leftover, delete_leftovers, leftovers, print_leftovers
from wsss.store.printing import count_of, format_size, say
from wsss.store.rules import ANY, Rule
from wsss.store.scan import read_store
from wsss.store.sizes import together

log = logging.getLogger(__name__)


def prune(options: argparse.Namespace, rule: Rule) -> int:
    """The body of ``prune``; returns the exit code: 1 where something could not be deleted.

    Raises:
        ConfigError: no rule is given, rules contradict each other, or there is nobody to ask.
        MissingArtifact: the root is no store.
    """
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
        say("nothing to delete")
        return 0
    whole = together([*(entry.usage for entry in found.go), *(item.usage for item in going)])
    noun = "file or folder" if count == 1 else "files and folders"
    amount = f"{f'{count} {noun}' if files else count_of(count)}, {format_size(whole.freed)}"
    if whole.size > whole.freed:
        say(f"{format_size(whole.size - whole.freed)} of them are hard-linked from elsewhere and stay on the disk")
    if rule.unused and any(entry.finished for entry in found.go):
        say(
            "unused is what no finished artifact was made from: also what a study that ends at seeds or labels has made"
        )
    if options.dry_run:
        say(f"dry run: {amount} would be deleted")
        return 0
    if not options.yes:
        if not sys.stdin.isatty():
            raise ConfigError(f"nobody to ask whether to delete {amount}. Add --yes to delete, --dry-run to look")
        if not _ask(f"Delete {amount}? [y/N] "):
            say("nothing deleted")
            return 0
        # the answer may have taken hours
        store, again, rest_again = look(among=found.go)
        for entry in found.go:
            if entry.key not in {other.key for other in again.go}:
                log.warning("%s %s stays: things have changed since you were asked", entry.stage, entry.name)
        paths = {item.path for item in going}
        found, going = again, [item for item in rest_again if item.path in paths and not item.kept]
    failed = [(f"{entry.stage} {entry.name}", why) for entry, why in delete(store, found.go)]
    failed += [(str(item.path), why) for item, why in delete_leftovers(going)]
    if any(entry.stage == RESULT for entry in found.go) and (options.root / FOLDER / INDEX).is_file():
        write_index(options.root)  # without a line for what is gone
    for name, why in failed:
        log.error("%s is still there: %s", name, why)
    say(f"deleted {len(found.go) + len(going) - len(failed)} of {count}")
    return 1 if failed else 0


def _check_rules(rule: Rule, options: argparse.Namespace, *, files: bool) -> None:
    if not files and rule == ANY:
        raise ConfigError(
            "say what may go: --unfinished, --unused, --keep-best N, --older-than 7d, --stage, --experiment, --data, "
            "--fingerprint, or --partial, --checkpoints, --caches. Several together mean what all of them mean"
        )
    if rule.unfinished and (rule.keep_best is not None or rule.experiments or rule.data is not None):
        raise ConfigError(
            "--unfinished means artifacts without a manifest, which tell neither experiment nor data nor a number: it "
            "goes with --stage, --older-than, --unused and --fingerprint"
        )
    of_artifacts = replace(rule, stages=(), older_than=None) != ANY
    if (options.partial or options.caches) and of_artifacts:
        raise ConfigError("--partial and --caches mean files of no artifact: they go with --stage and --older-than")
    if options.caches and rule.stages:
        raise ConfigError("--caches means superpixels and decoded images, which belong to no stage: leave out --stage")


def _ask(question: str) -> bool:
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        return False
