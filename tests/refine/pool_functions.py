"""Functions that worker processes import."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from threadpoolctl import threadpool_info

from wsss.errors import DataError


def square(value: int) -> int:
    return value * value


def misbehave(value: int) -> int:
    if value == -1:
        raise ValueError("negative")
    if value == -2:
        raise DataError("mask is unreadable")
    if value == -3:
        os.kill(os.getpid(), signal.SIGKILL)
    return value


def die_once(item: tuple[str, int]) -> int:
    """The first process that comes to item 3 dies."""
    mark, value = Path(item[0]), item[1]
    if value == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return value


def process(value: int) -> int:
    return os.getpid()


def threads(value: int) -> tuple[int, list[int]]:
    """Threads of torch and of every other library of the process."""
    return sys.modules["torch"].get_num_threads(), [library["num_threads"] for library in threadpool_info()]
