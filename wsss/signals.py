"""Signals that end a run (SIGTERM, SIGHUP) are treated as Ctrl-C is: trackers are closed, locks released, others told.

What arrives is raised as an exception that only those catch that clear up, and let go on.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = (signal.SIGTERM, signal.SIGHUP)
"""What schedulers, ``kill`` and closed terminals send."""

_AGAIN = 5.0
"""Seconds in which a signal counts once: where it goes to all processes of a run, some are told it twice."""


class Stopped(KeyboardInterrupt):
    """This process has been told to end.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def raised() -> Iterator[None]:
    """Inside, the signals of ``ENDING`` raise ``Stopped``, but for those that are ignored or handled already.

    Python runs handlers in the main thread; elsewhere nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    last = -math.inf

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal last
        if time.monotonic() - last > _AGAIN:  # and not while the first is being heeded
            last = time.monotonic()
            raise Stopped(number)

    unhandled = [number for number in ENDING if signal.getsignal(number) == signal.SIG_DFL]
    for number in unhandled:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in unhandled:
            signal.signal(number, signal.SIG_DFL)


def behind(error: BaseException | None) -> KeyboardInterrupt | None:
    """The interrupt that ``error`` is, or that was being handled when it was raised; None where there was none.

    Lightning makes an exit with 1 of an interrupt, and what breaks on the way out must not hide it.
    """
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error


def number_of(stop: KeyboardInterrupt) -> int:
    """The signal behind an interrupt.

    >>> number_of(KeyboardInterrupt()) == signal.SIGINT, number_of(Stopped(15)) == signal.SIGTERM
    (True, True)
    """
    return stop.number if isinstance(stop, Stopped) else signal.SIGINT


def exit_code(stop: KeyboardInterrupt) -> int:
    """The exit code, as shells have it.

    >>> exit_code(KeyboardInterrupt()), exit_code(Stopped(signal.SIGTERM))
    (130, 143)
    """
    return 128 + number_of(stop)


def ended_by(code: int) -> signal.Signals | None:
    """The signal that an exit code stands for, of ``exit_code`` or of a process that did not heed it; else None.

    >>> ended_by(-9).name, ended_by(143).name, ended_by(2)
    ('SIGKILL', 'SIGTERM', None)
    """
    number = -code if code < 0 else code - 128
    return signal.Signals(number) if number in set(signal.Signals) else None


def say(stop: KeyboardInterrupt) -> str:
    """What happened, in words.

    >>> say(KeyboardInterrupt()), say(Stopped(signal.SIGHUP))
    ('interrupted', 'stopped by SIGHUP')
    """
    return f"stopped by {signal.Signals(stop.number).name}" if isinstance(stop, Stopped) else "interrupted"
