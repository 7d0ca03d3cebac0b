"""What the benchmarks share: variants that take turns, medians, and ratios to the first."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

Variant = tuple[str, Callable[[], Any]]


def measure(
    title: str, variants: list[Variant], *, rounds: int, images: int, clock: str, warm_up: bool = False
) -> None:
    """Run the variants in turn, in changing order, and print medians per image and the speed relative to the first.

    Args:
        title: printed above.
        variants: names, and what to run.
        rounds: how often each runs.
        images: how many one run works on.
        clock: key of ``CLOCKS``.
        warm_up: run each once before, so that what is set up once is not counted.
    """
    times: dict[str, list[float]] = {name: [] for name, _ in variants}
    if warm_up:
        for _, run in variants:
            run()
    for turn in range(rounds):
        shift = turn % len(variants)
        for name, run in variants[shift:] + variants[:shift]:
            started = CLOCKS[clock]()
            run()
            times[name].append((CLOCKS[clock]() - started) / images)
    first = statistics.median(times[variants[0][0]])
    print(f"\n{title}")
    for name, _ in variants:
        median = statistics.median(times[name])
        print(f"  {name:<66}{1000 * median:9.2f} ms{1 / median:9.0f}/s{first / median:7.2f}x")
