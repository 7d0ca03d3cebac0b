"""The index of a store: its experiments by data set, with their numbers, pages, and what tells them apart."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from wsss.artifacts import FINGERPRINT_DIGITS, Artifact, write_text
from wsss.differences import node_of
from wsss.errors import MissingArtifact
from wsss.pages import template
from wsss.report.experiments import Experiment, read_experiments
from wsss.report.page import HEADLINE
from wsss.store.differences import differences, short_keys, value_text

FOLDER = "report"
"""Where the pages of a store lie."""

INDEX = "index.html"
STORE = Path("artifacts")
"""The store that commands mean where none is named."""

PAGE = re.compile(rf".*-([0-9a-f]{{{FINGERPRINT_DIGITS}}})\.html")
PAIR = re.compile(rf"([0-9a-f]{{{FINGERPRINT_DIGITS}}})-([0-9a-f]{{{FINGERPRINT_DIGITS}}})\.html")
PAIRS = "pairs"
"""Where the pages of two experiments lie, below ``FOLDER``."""

SHOWN_ELSEWHERE = frozenset({"seed", "labels"})
"""Settings that have a place of their own."""


@dataclass(frozen=True)
class Group:
    """The experiments of one data set: numbers of different images are not compared.

    Attributes:
        name: of the data set.
        experiments: at least one.
        columns: the rows of ``HEADLINE`` that some of them have, as (step, key, name, short name).
        settings: of each experiment, what tells it from the others, as pairs of a short name and text.
    """

    name: str
    experiments: Sequence[Experiment]
    columns: Sequence[tuple[str, str, str, str]]
    settings: Sequence[Sequence[tuple[str, str]]]


def write_index(root: Path) -> Path:
    """Write the index of a store, whole or not at all: ``<root>/report/index.html``.

    Processes that write it at the same time do so one after the other, so that the last one has seen all.

    Raises:
        MissingArtifact: there is no such folder.
    """
    if not root.is_dir():
        raise MissingArtifact(f"no folder {root.absolute()}. Name the artifact store with --store")
    path = root / FOLDER / INDEX
    with Artifact(root, FOLDER, "index").locked():
        write_text(path, render_index(root))
    return path


def render_index(root: Path) -> str:
    """The index as HTML. Links are relative: the folder ``report`` may be copied elsewhere as a whole."""
    experiments = read_experiments(root)
    pages, pairs = _pages(root / FOLDER), _pairs(root / FOLDER)
    names = {one.fingerprint: one.name for one in experiments}
    groups = group_by_data(experiments)
    return template("index.html").render(
        root=str(root.absolute()),
        groups=[
            {
                "name": group.name,
                "columns": group.columns,
                "weak_over_full": any(one.ratio() is not None for one in group.experiments),
                "rows": [
                    _row(one, group, told, pages.get(one.fingerprint, []))
                    for one, told in zip(group.experiments, group.settings, strict=True)
                ],
            }
            for group in groups
        ],
        count=len(experiments),
        orphans=sorted(page for found, own in pages.items() if found not in names for page in own),
        pairs=[
            {"href": href, "sides": [(name, names.get(name, "")) for name in sides]}
            for sides, href in sorted(pairs.items())
        ],
        tables=_tables(root),
        facts=_facts(groups, pairs) | {"store": "" if root == STORE else f" --store {shlex.quote(str(root))}"},
    )


def group_by_data(experiments: Sequence[Experiment]) -> list[Group]:
    """Experiments by the images, tags and classes that they were made from; in the order of their first ones."""
    groups: dict[str, list[Experiment]] = {}
    for one in experiments:
        groups.setdefault(str(one.data.get("sha256")), []).append(one)
    return [
        Group(
            name=members[0].data_name,
            experiments=members,
            columns=[row for row in HEADLINE if any(one.value(row[0], row[1]) is not None for one in members)],
            settings=_told_apart(members),
        )
        for members in groups.values()
    ]


def _told_apart(experiments: Sequence[Experiment]) -> list[list[tuple[str, str]]]:
    found = differences([one.settings for one in experiments])
    names = short_keys(key for settings in found for key in settings)
    return [
        [
            (names[key], value_text(key, value))
            for key, value in settings.items()
            if key.rpartition(".")[2] not in SHOWN_ELSEWHERE
        ]
        for settings in found
    ]


def _row(one: Experiment, group: Group, told: Sequence[tuple[str, str]], pages: Sequence[str]) -> dict[str, Any]:
    return {
        "one": one,
        "pages": [quote(page) for page in pages],
        "settings": told,
        "values": [one.value(step, key) for step, key, *_ in group.columns],
        "seed": one.manifest.get("seed"),
        "words": " ".join([one.name, one.fingerprint, *(f"{key}={text}" for key, text in told)]).lower(),
        "ratio": one.ratio(),
    }


def _facts(groups: Sequence[Group], pairs: Mapping[tuple[str, str], str]) -> dict[str, Any]:
    """What the page needs to set two experiments side by side."""
    return {
        "experiments": {
            one.fingerprint: {
                "name": one.name,
                "group": number,
                "numbers": [(name, one.value(step, key)) for step, key, name, _ in group.columns],
                "settings": [
                    (key.removesuffix("._target_"), value_text(key, value), node_of(key))
                    for key, value in one.settings.items()
                ],
            }
            for number, group in enumerate(groups)
            for one in group.experiments
        },
        "pairs": {f"{first}-{second}": href for (first, second), href in pairs.items()},
    }


def _pages(folder: Path) -> dict[str, list[str]]:
    """Names of the experiments' pages by fingerprint."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*.html")):
        if match := PAGE.fullmatch(path.name):
            found.setdefault(match[1], []).append(path.name)
    return found


def _pairs(folder: Path) -> dict[tuple[str, str], str]:
    """Pages of two experiments by their fingerprints."""
    names = sorted(path.name for path in (folder / PAIRS).glob("*.html"))
    return {(match[1], match[2]): f"{PAIRS}/{quote(name)}" for name in names if (match := PAIR.fullmatch(name))}


def _tables(root: Path) -> list[dict[str, str]]:
    """The tables that ``python -m wsss.compare`` has left in the store."""
    found = sorted((root / "compare").glob("**/table.html"))
    return [
        {
            "name": str(path.parent.relative_to(root / "compare")),
            "href": quote(os.path.relpath(path, root / FOLDER)),
        }
        for path in found
    ]


__all__ = ["FOLDER", "INDEX", "PAGE", "PAIRS", "STORE", "Group", "group_by_data", "render_index", "write_index"]
