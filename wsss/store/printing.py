"""Sizes, ages, lines and tables as this command prints them."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from wsss.console import console
from wsss.pipeline import STAGES

UNBOUNDED = 10_000
"""More columns than any table has."""

NUMBERS = {"size", "age", "needed by", "holds", *(stage.metric for stage in STAGES.values())}
"""Heads of the columns that are set to the right."""


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


def format_age(seconds: float) -> str:
    """Write an age in its largest unit.

    >>> format_age(20), format_age(7500), format_age(200_000)
    ('0 min', '2 h', '2 d')
    """
    seconds = max(seconds, 0)
    if seconds < 3600:
        return f"{seconds // 60:.0f} min"
    return f"{seconds // 3600:.0f} h" if seconds < 2 * 86400 else f"{seconds // 86400:.0f} d"


def count_of(count: int) -> str:
    """Write a number of artifacts.

    >>> count_of(1), count_of(3)
    ('1 artifact', '3 artifacts')
    """
    return f"{count} artifact{'s' * (count != 1)}"


def heading(text: str) -> None:
    """Print the line above a table."""
    console.print(Text(text, style="bold"), soft_wrap=True)


def say(text: str) -> None:
    """Print a line as it is, however long."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def print_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table whose last column folds; outside a terminal it is as wide as it needs, unless COLUMNS says otherwise."""
    grid = Table(box=None, pad_edge=False)
    for head in heads:
        last = head == heads[-1]
        grid.add_column(head, justify="right" if head in NUMBERS else "left", no_wrap=not last, overflow="fold")
    for row in rows:
        grid.add_row(*(Text(cell) for cell in row))
    if console.is_terminal or "COLUMNS" in os.environ:
        width = console.width
    else:
        width = Measurement.get(console, console.options.update(max_width=UNBOUNDED), grid).maximum
    with io.StringIO() as text:
        Console(file=text, width=width, color_system=None).print(grid)
        for line in text.getvalue().splitlines():
            say(line.rstrip())
    console.print()
