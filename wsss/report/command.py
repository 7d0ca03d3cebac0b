"""The command line of ``python -m wsss.report``."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from wsss import differences
from wsss.artifacts import Artifact
from wsss.cli import USER_ERROR
from wsss.console import quiet_libraries, setup_logging
from wsss.errors import ConfigError, CorruptArtifact, DataError, UserError
from wsss.report.experiments import Experiment, read_experiments, same_data
from wsss.report.index import PAGE, STORE, write_index
from wsss.report.pair import Gallery, check_pair, gather, read_data, usual_place, write_pair

log = logging.getLogger(__name__)

IMAGES = 6


def main(arguments: Sequence[str] | None = None) -> int:
    """The body of ``python -m wsss.report``; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parse(arguments)
    setup_logging()
    quiet_libraries()
    try:
        if options.names:
            _pair(options, shlex.join(["python", "-m", "wsss.report", *arguments]))
        log.info("index: %s", write_index(options.store))
    except UserError as error:
        log.error("%s: %s", type(error).__name__, error)
        return USER_ERROR
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m wsss.report",
        description="Write the index of all experiments in a store; with two names also a page that has these two side "
        "by side: numbers, settings, classes, and the images on which they differ most.",
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="two of one stage: fingerprints or their beginnings (of segmenters, or labels/72f3), directories, or "
        "pages of experiments",
    )
    parser.add_argument(
        "--store", type=Path, default=STORE, metavar="DIR", help=f"the artifact store (default: {STORE})"
    )
    parser.add_argument(
        "--images", type=int, default=IMAGES, metavar="N", help=f"images of each kind; 0 for none (default: {IMAGES})"
    )
    parser.add_argument(
        "-o", "--out", type=Path, metavar="FILE", help="default: <store>/report/pairs/<first>-<second>.html"
    )
    options = parser.parse_intermixed_args(list(arguments))
    if len(options.names) not in (0, 2):
        parser.error(f"name two experiments to set side by side, or none for the index; not {len(options.names)}")
    if options.out is not None and not options.names:
        parser.error("--out is for the page of two experiments; the index belongs to its store")
    if options.images < 0:
        parser.error("--images must be 0 or more")
    return options


def _pair(options: argparse.Namespace, command: str) -> None:
    first, second = (_read(find(name, store=options.store)) for name in options.names)
    check_pair(first, second)
    galleries = _galleries(first, second, options.images) if options.images else []
    path = write_pair(first, second, galleries, options.out or usual_place(first, second), command)
    log.info("side by side: %s", path)


def find(name: str, *, store: Path) -> Artifact:
    """The finished artifact that a name stands for; digits alone mean a segmenter where they fit one.

    Raises:
        ConfigError: it fits several.
        MissingArtifact: it fits none, or there is no store.
    """
    page = PAGE.fullmatch(Path(name).name)
    return differences.find(page[1] if page else name, store=store, prefer="segmenter")


def _read(artifact: Artifact) -> Experiment:
    """With the ceiling that its store knows by now."""
    found = {one.fingerprint: one for one in read_experiments(artifact.root, artifact.stage)}
    if artifact.fingerprint not in found:
        raise CorruptArtifact(f"{artifact.directory} cannot be read. Delete it and run its stage again")
    return found[artifact.fingerprint]


def _galleries(first: Experiment, second: Experiment, each: int) -> list[Gallery]:
    """Pictures, where the images are still there; numbers can be compared without."""
    if not same_data((first, second)):
        log.warning("no pictures: the two were made on different images, tags or classes")
        return []
    try:
        data = read_data(second)
    except (ConfigError, DataError) as error:
        log.warning("no pictures: %s", error)
        return []
    return gather(first, second, data, each=each)
