"""Functions that worker processes import."""

from __future__ import annotations

import os
import signal
import sys

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


def threads(value: int) -> tuple[int, str]:
    return sys.modules["torch"].get_num_threads(), os.environ["OMP_NUM_THREADS"]
