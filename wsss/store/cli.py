"""The command line of ``python -m wsss.store``."""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from wsss.cli import INTERRUPTED, USER_ERROR
from wsss.console import console, quiet_libraries, setup_logging
from wsss.errors import UserError
from wsss.pipeline import STAGES
from wsss.store.details import print_one
from wsss.store.integrity import verify_all
from wsss.store.listing import SORTS, grouped, print_list, to_csv, to_json
from wsss.store.printing import say
from wsss.store.prune import prune
from wsss.store.rules import Rule
from wsss.store.scan import read_store

log = logging.getLogger(__name__)

COMMANDS = ("list", "show", "prune", "verify")
UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def seconds_of(text: str) -> float:
    """Read a duration like ``30m``, ``12h``, ``7d`` or ``2w``.

    >>> seconds_of("12h"), seconds_of("1.5d")
    (43200.0, 129600.0)

    Raises:
        ArgumentTypeError: it is written in another way.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([mhdw])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration: write a number and m, h, d or w, as in 12h or 7d")
    return float(match[1]) * UNITS[match[2]]


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
        return prune(options, _rule(options))
    store = read_store(options.root)
    if options.command == "show":
        against = store.find(options.against) if options.against else None
        print_one(store, store.find(options.fingerprint), against=against)
        return 0
    entries = _rule(options).select(store)
    chosen = entries and (options.command == "list" or any(entry.finished for entry in entries))
    if not chosen and not (options.command == "list" and (options.json or options.csv)):
        say(f"{'nothing' if options.command == 'list' else 'nothing finished'} in {store.root} is of that kind")
        return 0
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
    parser.add_argument("--older-than", type=seconds_of, metavar="AGE", help="30m, 12h, 7d, 2w")


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} must be a whole number, 0 or more")
    return int(text)
