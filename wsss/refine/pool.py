"""One function over many images, in processes: dense CRF and superpixels hold the interpreter lock."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from wsss.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class ItemError(RuntimeError):
    """Work on one image failed; the message names it, the cause is attached."""


def map_images(
    function: Callable[[Item], Result], items: Iterable[tuple[str, Item]], *, workers: int
) -> Iterator[tuple[str, Result]]:
    """Call ``function(item)`` for each item and yield results as they are finished.

    Args:
        function: picklable: defined at the top of a module, or an object of such a class.
        items: (id, item) pairs, read as they are needed; the item is picklable, and the id goes into messages. Hand
            over names and let the function read the files, rather than arrays.
        workers: number of processes, each with one thread and at most two items under way. 0 works in this process.

    Yields:
        (id, result), in the order of completion (with 0 workers in the order of the items).

    Raises:
        UserError: raised by the function; the same class, with the id put before its message.
        ItemError: any other exception of the function, which is attached as the cause, or a worker that died. What has
            not begun by then is cancelled.
    """
    if workers < 0:
        raise ValueError(f"workers must be 0 or more, got {workers}")
    if workers == 0:
        for name, item in items:
            try:
                result = function(item)
            except Exception as error:
                raise _named(name, error) from error
            yield name, result
        return

    executor = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker)
    running: dict[Future[Result], str] = {}
    remaining = iter(items)

    def submit_next() -> None:
        for name, item in remaining:
            running[executor.submit(function, item)] = name
            return

    try:
        for _ in range(2 * workers):
            submit_next()
        while running:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                try:
                    result = future.result()
                except BrokenProcessPool:
                    raise
                except Exception as error:
                    raise _named(running[future], error) from error
                name = running.pop(future)
                submit_next()
                yield name, result
    except BrokenProcessPool as error:
        raise ItemError(
            f"a worker process died at one of: {', '.join(running.values())}. Often the system ended it for lack of "
            f"memory: use fewer workers. With workers=0 the work is done in this process, where the fault shows."
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def _named(name: str, error: Exception) -> Exception:
    if isinstance(error, UserError):
        return type(error)(f"{name}: {error}")
    return ItemError(f"{name}: {type(error).__name__}: {error}")


def _start_worker() -> None:
    """One thread per worker; an interrupt is the parent's to handle, and no worker outlives a killed parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for variable in _THREAD_VARIABLES:  # for libraries that are loaded later, with the function
        os.environ[variable] = "1"
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
