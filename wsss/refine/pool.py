"""One function over many images, in processes: dense CRF and superpixels hold the interpreter lock."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from wsss.errors import UserError

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class ItemError(RuntimeError):
    """Work on one image failed; the message names it, the cause is attached."""


def map_images(
    function: Callable[[Item], Result], items: Iterable[tuple[str, Item]], *, workers: int, threads: bool = False
) -> Iterator[tuple[str, Result]]:
    """Call ``function(item)`` for each item and yield results as they are finished.

    Args:
        function: picklable: defined at the top of a module, or an object of such a class.
        items: (id, item) pairs, read as they are needed; the item is picklable, and the id goes into messages. Hand
            over names and let the function read the files, rather than arrays.
        workers: number of processes, each with one thread and at most two items under way. 0 works in this process.
        threads: use as many threads of this process instead, for work that a GPU does.

    Yields:
        (id, result), in the order of completion (with 0 workers in the order of the items).

    A worker that dies (often the system ends it for lack of memory) takes nothing with it that is finished. What was
    under way is done again, one item at a time in a process of its own: the one that kills its process is named, and
    where none does, the work goes on with half as many processes.

    Raises:
        UserError: raised by the function; the same class, with the id put before its message.
        ItemError: any other exception of the function, which is attached as the cause, or an item whose worker died
            twice. What has not begun by then is cancelled.
    """
    if workers < 0:
        raise ValueError(f"workers must be 0 or more, got {workers}")
    remaining = iter(items)
    if workers == 0:
        for name, item in remaining:
            try:
                result = function(item)
            except Exception as error:
                raise _named(name, error) from error
            yield name, result
        return
    if threads:
        yield from _pooled(function, remaining, ThreadPoolExecutor(workers), workers, [])
        return
    while True:
        lost: list[tuple[str, Item]] = []
        with _one_thread():
            yield from _pooled(function, remaining, _processes(workers), workers, lost)
        if not lost:
            return
        workers = max(1, workers // 2)
        log.warning(
            "a worker process died; what was under way is done again one at a time (%s). Often the system ends a "
            "process for lack of memory; the rest goes on with %d of them",
            ", ".join(name for name, _ in lost), workers,
        )  # fmt: skip
        for name, item in lost:
            died: list[tuple[str, Item]] = []
            with _one_thread():
                yield from _pooled(function, iter([(name, item)]), _processes(1), 1, died)
            if died:
                raise ItemError(
                    f"{name}: the worker process died at it, twice, the second time with nothing beside it. What is "
                    f"finished is kept. With workers=0 the work is done in this process, where the fault shows"
                )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Processes that are started inside find one thread asked for before they load the libraries that heed it."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _processes(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker)


def _pooled(
    function: Callable[[Item], Result],
    items: Iterator[tuple[str, Item]],
    executor: Executor,
    workers: int,
    lost: list[tuple[str, Item]],
) -> Iterator[tuple[str, Result]]:
    """Work on ``items`` until all is done or a process dies; what was under way then goes to ``lost``."""
    running: dict[Future[Result], tuple[str, Item]] = {}

    def submit_next() -> None:
        for name, item in items:
            try:
                running[executor.submit(function, item)] = (name, item)
            except BrokenProcessPool:  # since the last look; the item has been drawn already
                lost.append((name, item))
                raise
            return

    try:
        for _ in range(2 * workers):
            submit_next()
        while running:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            results = []
            for future in done:
                name, _item = running[future]
                try:
                    results.append((name, future.result()))
                except BrokenProcessPool:
                    continue
                except Exception as error:
                    raise _named(name, error) from error
                del running[future]
            yield from results
            if len(results) < len(done):
                raise BrokenProcessPool
            for _ in done:
                submit_next()
    except BrokenProcessPool:
        lost.extend(running.values())
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
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
