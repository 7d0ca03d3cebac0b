"""The geometry of threshold curves, in the coordinates of an SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from wsss.pages import number, percent

CHART = {"width": 560, "height": 300, "left": 40, "right": 546, "top": 48, "bottom": 258}
TICK_STEPS = (0.02, 0.05, 0.1, 0.2)

Metrics = Mapping[str, Any]
Place = Callable[[float], float]


def curve_chart(*seeds: Metrics) -> dict[str, Any] | None:
    """Threshold curves in one chart.

    Args:
        seeds: metrics of seeds: ``curve`` holds pairs of threshold and mIoU; ``threshold`` and ``miou`` are marked as
            fixed, ``threshold_best`` and ``miou_best`` as best.

    Returns:
        Ends, ticks and curves for the template; None where no curve has two points. Of seeds without a curve, ``line``
        is empty.
    """
    curves = [_points(metrics) for metrics in seeds]
    every = [point for points in curves for point in points]
    if not any(len(points) > 1 for points in curves) or len({threshold for threshold, _ in every}) < 2:
        return None
    low, high = min(threshold for threshold, _ in every), max(threshold for threshold, _ in every)
    peak = max(miou for _, miou in every)
    step = next((step for step in TICK_STEPS if peak <= 5 * step), TICK_STEPS[-1])
    count = max(1, math.ceil(peak / step - 1e-9))

    def across(threshold: float) -> float:
        return round(CHART["left"] + (CHART["right"] - CHART["left"]) * (threshold - low) / (high - low), 1)

    def up(miou: float) -> float:
        return round(CHART["bottom"] - (CHART["bottom"] - CHART["top"]) * miou / (step * count), 1)

    return {
        **CHART,
        "curves": [
            _curve(metrics, points, across, up, (low, high)) for metrics, points in zip(seeds, curves, strict=True)
        ],
        "x_ticks": [(across(tick), f"{tick:.2g}") for tick in _ticks(low, high)],
        "y_ticks": [(up(step * index), f"{100 * step * index:.0f}") for index in range(count + 1)],
    }


def _points(seeds: Metrics) -> list[tuple[float, float]]:
    pairs = ((number(threshold), number(miou)) for threshold, miou in seeds.get("curve") or ())
    return sorted((threshold, miou) for threshold, miou in pairs if threshold is not None and miou is not None)


def _curve(
    seeds: Metrics, points: Sequence[tuple[float, float]], across: Place, up: Place, span: tuple[float, float]
) -> dict[str, Any]:
    line = " ".join(f"{across(threshold)},{up(miou)}" for threshold, miou in points)
    ends = (across(points[0][0]), across(points[-1][0])) if points else (0, 0)
    return {
        "line": line,
        "area": f"{ends[0]},{CHART['bottom']} {line} {ends[1]},{CHART['bottom']}",
        "marks": [mark for kind in ("fixed", "best") if (mark := _mark(seeds, kind, across, up, span))],
    }


def _mark(seeds: Metrics, kind: str, across: Place, up: Place, span: tuple[float, float]) -> dict[str, Any] | None:
    """The fixed or the best threshold, with its text on the side that has room."""
    suffix = "" if kind == "fixed" else "_best"
    threshold, miou = number(seeds.get(f"threshold{suffix}")), number(seeds.get(f"miou{suffix}"))
    if threshold is None or miou is None or not span[0] <= threshold <= span[1]:
        return None
    x = across(threshold)
    side = -1 if x > (CHART["left"] + CHART["right"]) / 2 else 1
    return {
        "kind": kind,
        "x": x,
        "y": up(miou),
        "text": f"{kind} {threshold:.2f}: {percent(miou)} %",
        "text_x": x + 6 * side,
        "text_y": CHART["top"] - (30 if kind == "fixed" else 12),
        "anchor": "start" if side > 0 else "end",
    }


def _ticks(low: float, high: float) -> list[float]:
    """The tenths within a range, or its ends where it holds fewer than two."""
    tenths = [tick / 10 for tick in range(math.ceil(low * 10 - 1e-9), math.floor(high * 10 + 1e-9) + 1)]
    return tenths if len(tenths) > 1 else [low, high]
