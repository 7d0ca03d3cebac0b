"""A comparison as one self-contained HTML page: the table, sortable, its plots, and the artifacts it is made of.

Nothing is read but the plots and the page's template, which ships with the package; nothing in the page points outside.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsss.pages import template

if TYPE_CHECKING:
    from wsss.compare import Comparison

SUPERVISION = "supervision"
NUMBER = re.compile(r"(\S+)(?: \((.+)\))?(?: \[(\d+)\])?")
"""A cell: a mean, its range, how many of the row's runs have it."""

TITLES = {"plot": "Metrics", "curves": "mIoU over the threshold"}


def render(comparison: Comparison, command: str, pictures: Sequence[Path]) -> str:
    """The page.

    Args:
        comparison: what is shown.
        command: makes the page again.
        pictures: PNG files that stand in it.
    """
    heads, cells = comparison.table()
    words = 1 + max(len(comparison.keys), 1)  # the mark and the keys come before the numbers
    numbers = [key for key in comparison.keys if all(_number(row.settings[key].value) for row in comparison.rows)]
    numeric = [
        comparison.keys[index - 1] in numbers if comparison.keys and index < words else index >= words
        for index in range(len(heads))
    ]
    best = [id(row) for row in comparison.best()]
    different = _different(comparison)
    rows = [
        {
            "best": id(row) in best,
            "cells": [
                _cell(text, _value(comparison, row, index, head, words), numeric[index] and head != SUPERVISION)
                for index, (head, text) in enumerate(zip(heads, line, strict=True))
                if index
            ],
        }
        for row, line in zip(comparison.rows, cells, strict=True)
    ]
    return template("compare.html").render(
        comparison=comparison,
        command=command,
        heads=[
            {"name": name, "numeric": number and name != SUPERVISION}
            for name, number in zip(heads[1:], numeric[1:], strict=True)
        ],
        rows=rows,
        notes=[note for note in comparison.notes() if not note.startswith("* ")],
        best_by=comparison.best_by if best else None,
        pictures=[{"title": TITLES.get(path.stem, path.stem), "uri": _uri(path)} for path in pictures],
        artifacts=[_artifact(run, different) for run in comparison.runs],
    )


def _cell(text: str, value: float | str, numeric: bool) -> dict[str, Any]:
    parts = NUMBER.fullmatch(text) if numeric else None
    mean, spread, count = parts.groups(default="") if parts else (text, "", "")
    return {"text": mean, "range": spread, "count": count, "value": value, "numeric": numeric}


def _value(comparison: Comparison, row: Any, index: int, head: str, words: int) -> float | str:
    """What a cell is sorted by: numbers as numbers, absent ones below all others."""
    if index < words:
        value = row.settings[comparison.keys[index - 1]].value if comparison.keys else ""
        return str(value) if value is not None and not _number(value) else _sortable(value)
    if head == SUPERVISION:
        return str(row.supervision())
    if head == "n":
        return float(len(row.runs))
    stat = row.stat(head)
    return _sortable(None if stat is None else stat.mean)


def _number(value: Any) -> bool:
    """Whether a setting is a number, or not there."""
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _sortable(value: Any) -> float:
    return float("-inf") if value is None else float(value)


def _different(comparison: Comparison) -> set[str]:
    """The keys that not all runs have alike: a sweep sets others too."""
    texts = [{key: setting.text for key, setting in run.settings.items()} for run in comparison.runs]
    return {key for key in set().union(*texts) if len({own.get(key) for own in texts}) > 1}


def _artifact(run: Any, different: Collection[str]) -> dict[str, Any]:
    manifest = run.manifest
    return {
        "settings": " ".join(f"{key}={setting.text}" for key, setting in run.settings.items() if key in different),
        "fingerprint": run.artifact.fingerprint,
        "directory": str(run.artifact.directory),
        "supervision": run.supervision,
        "created": str(manifest.get("created", ""))[:16].replace("T", " "),
        "seconds": manifest.get("wall_seconds"),
        "command": manifest.get("command", ""),
    }


def _uri(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


__all__ = ["render"]
