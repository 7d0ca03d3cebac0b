"""Charts of a comparison as PNG files: a metric over a number, bars, and threshold curves. Pure drawing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice, pairwise, product
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wsss.artifacts import write_atomically

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555")
"""Told apart by people with any colour vision (Okabe and Ito)."""
STYLES = ("-", "--", ":")
DPI = 150
MOST_CURVES = 12
WIDE_RANGE = 50
"""A positive axis whose ends differ by more than this factor is logarithmic."""


class Stat(NamedTuple):
    """A fraction in [0,1], and the range it was seen in: three times the same for a single run."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Line:
    """Points joined by a line."""

    label: str
    x: Sequence[float]
    y: Sequence[Stat]


@dataclass(frozen=True)
class Bar:
    """One place of a bar chart: a value for each metric."""

    label: str
    values: Sequence[Stat | None]


def line_chart(path: Path, panels: Sequence[tuple[str, Sequence[Line]]], *, title: str, x: str, legend: str) -> None:
    """Draw lines over a number: one panel a metric with a common y axis, in percent.

    Args:
        path: where the PNG goes.
        panels: (name of the metric, its lines), the same labels in each; no name where the labels are metrics.
        title: stands above all.
        x: what the horizontal axis shows.
        legend: what tells the lines apart; shown where there is more than one.
    """
    labels = [line.label for line in panels[0][1]]
    inside = len(labels) <= 4 and len(panels) == 1
    figure = Figure(
        figsize=(4.4 * len(panels) + (1.4 if not inside and len(labels) > 1 else 0.6), 3.8), layout="constrained"
    )
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (name, lines) in zip(axes, panels, strict=True):
        for line, (style, color) in zip(lines, _looks(len(lines)), strict=True):
            y = [100 * stat.mean for stat in line.y]
            axis.plot(line.x, y, marker="o", markersize=4, linestyle=style, color=color, label=line.label)
            if any(stat.low < stat.high for stat in line.y):
                bounds = [[100 * stat[side] for stat in line.y] for side in (1, 2)]
                axis.fill_between(line.x, *bounds, color=color, alpha=0.15, linewidth=0)
        _number_axis(axis, sorted({value for line in lines for value in line.x}), x)
        axis.set_title(name if len(panels) > 1 else "", fontsize=10)
        _plain(axis)
    axes[0].set_ylabel("%" if len(panels) > 1 or not panels[0][0] else f"{panels[0][0]} (%)")
    if len(labels) > 1:
        axis = axes[-1]
        place: dict[str, Any] = {"loc": "best"} if inside else {"loc": "center left", "bbox_to_anchor": (1.02, 0.5)}
        axis.legend(title=legend or None, fontsize=8, title_fontsize=8, frameon=False, **place)
    _save(figure, path, title)


def bar_chart(path: Path, bars: Sequence[Bar], *, metrics: Sequence[str], title: str) -> None:
    """Draw horizontal bars, one a metric at each place, in percent, from top to bottom as given."""
    height = 0.9 + len(bars) * (0.18 + 0.16 * len(metrics))
    figure = Figure(figsize=(7.2, height), layout="constrained")
    axis = figure.subplots()
    thickness = 0.8 / len(metrics)
    for index, (metric, color) in enumerate(zip(metrics, islice(cycle(COLORS), len(metrics)), strict=True)):
        places = [place + (index - (len(metrics) - 1) / 2) * thickness for place in range(len(bars))]
        found = [(place, stat) for place, bar in zip(places, bars, strict=True) if (stat := bar.values[index])]
        axis.barh(
            [place for place, _ in found],
            [100 * stat.mean for _, stat in found],
            height=thickness * 0.92,
            color=color,
            label=metric,
            xerr=_error_bars([stat for _, stat in found]),
            error_kw={"elinewidth": 1, "capsize": 2},
        )
        for place, stat in found:
            axis.text(100 * stat.high + 0.4, place, f"{100 * stat.mean:.1f}", va="center", fontsize=7)
    axis.set_yticks(range(len(bars)), [bar.label for bar in bars], fontsize=8)
    axis.invert_yaxis()
    axis.margins(x=0.08, y=0.02)
    axis.set_xlabel(f"{metrics[0]} (%)" if len(metrics) == 1 else "%")
    if len(metrics) > 1:
        axis.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    _plain(axis, grid="x")
    _save(figure, path, title)


def curve_chart(path: Path, lines: Sequence[Line], *, title: str, legend: str, fixed: float | None) -> None:
    """Draw mIoU over the background threshold, one line a job; ``fixed`` is the threshold chosen without masks."""
    figure = Figure(figsize=(6.8, 4.0), layout="constrained")
    axis = figure.subplots()
    for line, (style, color) in zip(lines, _looks(len(lines)), strict=True):
        axis.plot(line.x, [100 * stat.mean for stat in line.y], linestyle=style, color=color, label=line.label)
    if fixed is not None:
        axis.axvline(fixed, color="#999999", linewidth=1, linestyle=(0, (2, 2)), zorder=0)
        axis.text(fixed, 0.01, f" fixed {fixed:.2f}", transform=axis.get_xaxis_transform(), fontsize=7, color="#666666")
    axis.set_xlim(0, 1)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("threshold")
    axis.set_ylabel("mIoU (%)")
    _plain(axis)
    if len(lines) > 1:
        place: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
        axis.legend(title=legend or None, fontsize=8, title_fontsize=8, frameon=False, **place)
    _save(figure, path, title)


def _looks(count: int) -> list[tuple[str, str]]:
    """``count`` different pairs of line style and colour; colours change first."""
    return list(islice(cycle(product(STYLES, COLORS)), count))


def _error_bars(stats: Sequence[Stat]) -> list[list[float]] | None:
    if all(stat.low == stat.high for stat in stats):
        return None
    return [[100 * (stat.mean - stat.low) for stat in stats], [100 * (stat.high - stat.mean) for stat in stats]]


def _number_axis(axis: Axes, values: Sequence[float], label: str) -> None:
    if values[0] > 0 and values[-1] / values[0] > WIDE_RANGE:
        axis.set_xscale("log")
    elif _apart(values):
        axis.set_xticks(list(values), [f"{value:g}" for value in values])
    axis.set_xlabel(label)


def _apart(values: Sequence[float]) -> bool:
    """Whether ticks at these sorted values leave room for their labels."""
    span = values[-1] - values[0]
    return all(b - a >= span / 12 for a, b in pairwise(values))


def _plain(axis: Axes, *, grid: str = "both") -> None:
    axis.grid(axis=grid, color="#e5e5e5", linewidth=0.8)  # type: ignore[arg-type]
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)


def _save(figure: Figure, path: Path, title: str) -> None:
    figure.suptitle(title, fontsize=10)
    write_atomically(path, lambda partial: figure.savefig(partial, format="png", dpi=DPI))
