"""What the user sees: one console, one progress bar per long loop, one table per stage, quiet libraries."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence, Sized
from numbers import Integral
from typing import Any, Generic, NamedTuple, TypeVar

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console
from rich.logging import RichHandler
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column, Table
from rich.text import Text

T = TypeVar("T")
Cell = str | int | float | None

console = Console()
"""The console that every module prints to (standard output). Bars, tables and log lines share it and so never mix."""

_LOSS_INTERVAL = 0.5
"""Seconds between two readings of the training loss: reading it makes the accelerator wait."""

_UNBOUNDED = 10_000
"""More columns than any table has."""


def is_main_process() -> bool:
    """Whether this process may print: true outside distributed runs, and on rank 0 of one."""
    return getattr(rank_zero_only, "rank", 0) == 0


# --- progress ---------------------------------------------------------------------------------------------------------


def progress(
    source: Iterable[T] | int,
    description: str,
    *,
    unit: str = "it",
    total: int | None = None,
    completed: int = 0,
) -> Bar[T]:
    """Show one bar over a long loop, or over a known amount of work.

    On a terminal it shows the bar, M/N, the rate, elapsed and remaining time. Elsewhere (a pipe, a log file) it prints
    nothing until the end, and then one line.

        for image in progress(images, "seeds", unit="img"): ...
        with progress(240, "seeds", unit="img", completed=100) as bar: bar.advance(8)

    Args:
        source: what to loop over, that is, the work that is left; or the total amount of work as a number.
        description: what is being done, in a word or two.
        unit: what is counted, for the rate ("img" gives "img/s").
        total: all of the work including ``completed``, where ``source`` does not tell.
        completed: work done by an earlier run; it moves the bar and does not count in the rate.
    """
    if isinstance(source, int):
        return Bar((), description, unit=unit, total=source if total is None else total, completed=completed)
    if total is None and isinstance(source, Sized):
        total = completed + len(source)
    return Bar(source, description, unit=unit, total=total, completed=completed)


class Bar(Generic[T]):
    """A progress bar, made by :func:`progress`: iterate over it, or enter it and call :meth:`advance`."""

    def __init__(
        self, source: Iterable[T], description: str, *, unit: str, total: int | None, completed: int = 0
    ) -> None:
        self._source = source
        self._description = description
        self._unit = unit
        self.total = total
        self.completed = completed
        self._resumed_at = completed
        self._started: float | None = None
        self._stopped: float | None = None
        self._note = ""
        self._live: Progress | None = None

    def __enter__(self) -> Bar[T]:
        if self._started is not None:
            return self
        self._started = time.monotonic()
        if is_main_process() and console.is_terminal and not console.is_dumb_terminal:
            self._live = self._build()
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[T]:
        with self:
            for item in self._source:
                yield item
                self.advance()

    def advance(self, amount: int = 1) -> None:
        """Count ``amount`` more as done."""
        self.update(self.completed + amount)

    def update(self, completed: int, *, note: str | None = None) -> None:
        """Set how much is done in all, and the words shown behind the numbers."""
        self.completed = completed
        self._note = self._note if note is None else note
        if self._live is not None:
            self._live.update(self._live.task_ids[0], completed=completed)

    def close(self) -> None:
        """Take the bar off; on anything but a terminal, print the one line. Does nothing the second time."""
        if self._started is None or self._stopped is not None:
            return
        self._stopped = time.monotonic()
        if self._live is not None:
            self.update(self.completed)
            self._live.stop()
        elif is_main_process():
            console.print(self.summary(), markup=False, highlight=False, soft_wrap=True)

    @property
    def elapsed(self) -> float:
        """Seconds since this run entered the loop."""
        if self._started is None:
            return 0.0
        return (self._stopped or time.monotonic()) - self._started

    @property
    def rate(self) -> float | None:
        """Work per second in this run; None before the first item."""
        done = self.completed - self._resumed_at
        return done / self.elapsed if done > 0 and self.elapsed > 0 else None

    @property
    def remaining(self) -> float | None:
        """Estimated seconds to the end at the mean rate of this run; None where that is not known."""
        if self.total is None or self.rate is None:
            return None
        return max(self.total - self.completed, 0) / self.rate

    def summary(self) -> str:
        """Say in one line what was done: ``seeds 240/240 12.3 img/s 19 s``."""
        count = f"{self.completed}/{'?' if self.total is None else self.total}"
        parts = (self._description, count, format_rate(self.rate, self._unit), format_seconds(self.elapsed), self._note)
        return " ".join(part for part in parts if part)

    def status(self) -> str:
        """Say what stands behind the bar: ``12.3 img/s 8 s ETA 11 s``."""
        left = None if self._stopped else self.remaining
        eta = "" if left is None else f"ETA {format_seconds(left)}"
        parts = (format_rate(self.rate, self._unit), format_seconds(self.elapsed), eta, self._note)
        return " ".join(part for part in parts if part)

    def _build(self) -> Progress:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            _StatusColumn(self),
        )
        live = Progress(*columns, console=console, refresh_per_second=4)
        live.add_task(self._description, total=self.total, completed=self.completed)
        return live


class _StatusColumn(ProgressColumn):
    """Rate, times and note of a bar, read anew at each refresh so that the clock goes on between two items."""

    def __init__(self, bar: Bar[Any]) -> None:
        super().__init__(table_column=Column(no_wrap=True, overflow="ellipsis"))
        self._bar = bar

    def render(self, task: Task) -> Text:
        """Render the current state of the bar."""
        return Text(self._bar.status())


def format_rate(rate: float | None, unit: str) -> str:
    """Write a rate with about three digits; empty where it is unknown.

    >>> format_rate(12.345, "img"), format_rate(0.25, "it"), format_rate(None, "it")
    ('12.3 img/s', '0.25 it/s', '')
    """
    if rate is None:
        return ""
    digits = 0 if rate >= 100 else 1 if rate >= 1 else 2
    return f"{rate:.{digits}f} {unit}/s"


def format_seconds(seconds: float) -> str:
    """Write a duration in its two largest units.

    >>> format_seconds(19.4), format_seconds(200), format_seconds(7500)
    ('19 s', '3 min 20 s', '2 h 05 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class FitProgress(pl.Callback):
    """One bar over a whole fit, counted in optimizer steps; use it with ``Trainer(enable_progress_bar=False)``.

    It shows the epoch and the last training loss behind the rate and the remaining time. A resumed fit starts at the
    step of its checkpoint. The rate includes the time spent on validation, and so does the remaining time.
    """

    def __init__(self, description: str = "training") -> None:
        self._description = description
        self._bar: Bar[Any] | None = None
        self._loss = ""
        self._loss_read = -math.inf

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar, at the step that the fit starts from."""
        if trainer.is_global_zero:
            self._loss, self._loss_read = "", -math.inf
            total = _total_steps(trainer)
            self._bar = Bar((), self._description, unit="it", total=total, completed=trainer.global_step)
            self._bar.__enter__()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the step; read the loss twice a second at most, and at the end."""
        if self._bar is None:
            return
        now = time.monotonic()
        if now - self._loss_read >= _LOSS_INTERVAL or trainer.global_step == self._bar.total:
            self._loss, self._loss_read = _format_loss(outputs), now
        self._bar.update(trainer.global_step, note=self._words(trainer))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say why the count stands still."""
        if self._bar is not None and not trainer.sanity_checking:
            self._bar.update(trainer.global_step, note=f"{self._words(trainer)} validating")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the word back."""
        if self._bar is not None and not trainer.sanity_checking:
            self._bar.update(trainer.global_step, note=self._words(trainer))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Close the bar, so that the message below it stays readable."""
        self._close()

    def _words(self, trainer: pl.Trainer) -> str:
        of = "" if trainer.max_epochs in (None, -1) else f"/{trainer.max_epochs}"
        return f"epoch {trainer.current_epoch + 1}{of} {self._loss}".rstrip()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _total_steps(trainer: pl.Trainer) -> int | None:
    total = trainer.estimated_stepping_batches
    return None if math.isinf(total) else int(total)


def _format_loss(outputs: Any) -> str:
    loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
    return "" if loss is None else f"loss {float(loss):.4g}"


# --- the summary table ------------------------------------------------------------------------------------------------


def table(
    title: str, rows: Iterable[Sequence[Cell]], *, columns: Sequence[str] | None = None, wide: bool = False
) -> None:
    """Print one table: the summary at the end of a stage.

    Args:
        title: the line above it.
        rows: cells from left to right, mostly (name, value). A float is a fraction and is shown as a percentage with
            one decimal (0.412 as "41.2"); None and NaN as "-"; text and whole numbers as they are.
        columns: the heads, where there are more columns than a name and a value.
        wide: outside a terminal, the table takes the width that its cells need, and nothing is folded.
    """
    cells = [[format_cell(cell) for cell in row] for row in rows]
    width = max((len(row) for row in cells), default=0)
    grid = Table(show_header=columns is not None)
    for position in range(max(width, len(columns or ()))):
        head = columns[position] if columns is not None else ""
        grid.add_column(head, justify="left" if position == 0 else "right", overflow="fold")  # a long path stays whole
    for row in cells:
        grid.add_row(*row)
    if is_main_process():
        console.print(Text(title, style="bold"), soft_wrap=True)  # not the grid's own title, which wraps to its width
        if wide and not console.is_terminal:
            needed = Measurement.get(console, console.options.update(max_width=_UNBOUNDED), grid).maximum
            Console(file=console.file, width=needed).print(grid, markup=False)
        else:
            console.print(grid, markup=False)


def format_cell(cell: Cell) -> str:
    """Write one cell of a table.

    >>> format_cell(0.412), format_cell(240), format_cell("0.30"), format_cell(None)
    ('41.2', '240', '0.30', '-')
    """
    if cell is None:
        return "-"
    if isinstance(cell, (str, Integral)):
        return str(cell)
    return "-" if math.isnan(cell) else f"{100 * cell:.1f}"


# --- logging ----------------------------------------------------------------------------------------------------------


class _ConsoleHandler(RichHandler):
    """Rich lines on a terminal; elsewhere plain lines that are never wrapped, so that commands can be copied."""

    def emit(self, record: logging.LogRecord) -> None:
        if console.is_terminal:
            super().emit(record)
        else:
            console.print(_plain(record), markup=False, highlight=False, soft_wrap=True)


_PLAIN = logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")


def _plain(record: logging.LogRecord) -> str:
    return _PLAIN.format(record)


def _not_ours(record: logging.LogRecord) -> bool:
    return record.name != "wsss" and not record.name.startswith("wsss.")


def setup_logging(level: int | str = logging.INFO) -> None:
    """Print the messages of this package (loggers below ``wsss``) to the console, and no message twice.

    Messages still go up to the root logger, so that a log file of Hydra's holds them; only plain stream handlers of the
    root (Hydra's console output) leave them out. On ranks other than 0, warnings and errors alone are printed. It may
    be called again, to change the level.
    """
    logger = logging.getLogger("wsss")
    logger.setLevel(level)
    for old in [handler for handler in logger.handlers if isinstance(handler, _ConsoleHandler)]:
        logger.removeHandler(old)
    handler = _ConsoleHandler(console=console, show_path=False, log_time_format="%H:%M:%S")
    if not is_main_process():
        handler.setLevel(logging.WARNING)
    logger.addHandler(handler)
    for other in logging.getLogger().handlers:
        if type(other) is logging.StreamHandler:
            other.addFilter(_not_ours)


# W&B is not here: its logger writes to the run's own files alone, and wsss.tracking silences what it prints.
_LEVELS = {
    # Lightning: which accelerators exist, tips for other products, "max_epochs reached".
    "pytorch_lightning": logging.WARNING,
    "lightning_fabric": logging.WARNING,
    # Silent at our own level, chatty at DEBUG: image plugins, font search, HTTP connections, file systems.
    "PIL": logging.WARNING,
    "matplotlib": logging.WARNING,
    "urllib3": logging.WARNING,
    "fsspec": logging.WARNING,
    "git": logging.WARNING,
    # timm names each file it loads, at INFO.
    "timm": logging.WARNING,
    # Device meshes and process groups, once per rank.
    "torch.distributed": logging.WARNING,
}


class IgnoredWarning(NamedTuple):
    """One warning that is filtered, and why it cannot be mended at its cause."""

    message: str
    category: type[Warning]
    reason: str


IGNORED_WARNINGS = (
    IgnoredWarning(
        r"`isinstance\(treespec, LeafSpec\)` is deprecated",
        FutureWarning,
        "Lightning 2.6 (utilities/_pytree.py) calls what torch 2.13 deprecates; we cannot change either.",
    ),
    IgnoredWarning(
        r"The '\w+' does not have many workers which may be a bottleneck",
        UserWarning,
        "The number of workers is the user's setting; 0 and 1 are right for small data and in tests.",
    ),
    IgnoredWarning(
        r"Found \d+ module\(s\) in eval mode at the start of training",
        UserWarning,
        "Frozen encoders are in evaluation mode on purpose, so that their batch norm does not drift.",
    ),
)
"""The warnings that :func:`quiet_libraries` filters. Everything else is mended at its cause, or shown."""


def quiet_libraries() -> None:
    """Lower the chatter of the libraries below us: log levels by library, and the listed warnings, no others."""
    for name, level in _LEVELS.items():
        logging.getLogger(name).setLevel(level)
    for entry in IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", message=entry.message, category=entry.category)
